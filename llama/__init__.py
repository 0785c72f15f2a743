"""cria: run any Llama of the llama2.c family from Python, without torch.

    from llama import Llama

    with Llama("stories15M.bin") as llama:
        for piece in llama.generate("Once upon a time", max_tokens=100):
            print(piece, end="", flush=True)

The same from a shell: `python -m llama.run stories15M.bin -i "Once upon a time"`. Importing this package
loads nothing; the compiled engine comes in with the first of its classes that is named, numpy with the first
call of `Llama.logits`. Training is not here: it works from a checkout of the project.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from llama.errors import BadFileError, CancelledError, ClosedError, LlamaError, ResourceError, UsageError

if TYPE_CHECKING:
    from llama.batch import Batch
    from llama.config import Config
    from llama.engine import Llama
    from llama.generation import Generation
    from llama.tokenizer import Tokenizer

__version__ = "0.1.0"

__all__ = [
    "BadFileError",
    "Batch",
    "CancelledError",
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

OF_THE_ENGINE = {  # and the modules that they are in
    "Batch": "batch",
    "Config": "config",
    "Generation": "generation",
    "Llama": "engine",
    "Tokenizer": "tokenizer",
}

if not TYPE_CHECKING:  # or type checkers would take any name for one of this package

    def __getattr__(name: str) -> Any:
        """A class of the engine, when it is first named (PEP 562).

        So what only reads and writes files (llama.formats), and training with it, works where the engine is
        not built. Raises AttributeError for other names, ImportError where the engine is not built.
        """
        if name not in OF_THE_ENGINE:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(f"llama.{OF_THE_ENGINE[name]}"), name)
        globals()[name] = value  # the next time it is found without this function
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
