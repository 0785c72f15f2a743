"""cria: run any Llama of the llama2.c family from Python, without torch.

    from llama import Llama

    with Llama("stories15M.bin") as llama:
        for piece in llama.generate("Once upon a time", max_tokens=100):
            print(piece, end="", flush=True)

The same from a shell: `python -m llama.run stories15M.bin -i "Once upon a time"`. Importing this package
loads the compiled engine and nothing else; numpy comes in with the first call of `Llama.logits`. Training is
not here: it works from a checkout of the project.
"""

from llama.engine import Config, Generation, Llama, Tokenizer
from llama.errors import BadFileError, ClosedError, LlamaError, ResourceError, UsageError

__version__ = "0.1.0"

__all__ = [
    "BadFileError",
    "ClosedError",
    "Config",
    "Generation",
    "Llama",
    "LlamaError",
    "ResourceError",
    "Tokenizer",
    "UsageError",
    "__version__",
]
