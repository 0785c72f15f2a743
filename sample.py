"""Write text with a checkpoint in PyTorch.

    python sample.py out/last --prompt "Once upon a time"
    python sample.py out/last --num_samples 3 --max_new_tokens 200 --temperature 0.8 --top_k 50 --top_p 0.9

The text goes to standard output as it comes, as ./run writes it: the prompt, what follows it, a newline, and
--- between texts. Greedy text (--temperature 0) is that of ./run on the exported model. A seed gives the same
text again, but not the one that it gives ./run, which draws with another generator.

Left out on purpose: penalties, chat and speed, which run.c has; many texts at once.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from export import load_model
from model import Cache, Llama
from training.command import BadInput, Parser, UsageError, run_command

# --- Drawing tokens


def check_sampling(temperature: float, top_k: int, top_p: float) -> None:
    """Raises UsageError for an option out of range."""
    if not 0 <= temperature < float("inf"):
        raise UsageError(f"temperature = {temperature}, allowed 0 or more")
    if top_k < 0:
        raise UsageError(f"top_k = {top_k}, allowed 0 or more")
    if not 0 <= top_p <= 1:
        raise UsageError(f"top_p = {top_p}, allowed 0 to 1")


def filtered(probabilities: Tensor, top_k: int, top_p: float) -> Tensor:
    """Probabilities (V), 0 for the tokens that do not get through top_k, then top_p, as in ./run.

    top_p keeps the most likely tokens, up to the one with which they exceed top_p of what top_k left.
    """
    ordered, tokens = probabilities.sort(descending=True, stable=True)
    if 0 < top_k < len(ordered):
        ordered[top_k:] = 0
    if 0 < top_p < 1:
        before = ordered.cumsum(0) - ordered
        ordered[before > top_p * ordered.sum()] = 0
    return torch.zeros_like(probabilities).scatter_(0, tokens, ordered)


def draw(
    logits: Tensor, temperature: float, top_k: int, top_p: float, generator: torch.Generator | None
) -> int:
    """A token drawn by its logits (V); the most likely one, the first among equals, at temperature 0."""
    if not logits.isfinite().all():
        raise BadInput("logits are not finite: the weights of the model are broken")
    if temperature == 0:
        return int(logits.argmax())
    # The largest becomes 0, in float64: no temperature is so small that its division gives a NaN.
    scaled = (logits.double() - logits.max()) / temperature
    probabilities = filtered(scaled.softmax(0), top_k, top_p)
    if generator is not None:
        probabilities = probabilities.to(generator.device)
    return int(torch.multinomial(probabilities, 1, generator=generator))


@contextmanager
def evaluating(model: Llama) -> Iterator[None]:
    """Without dropout, and as it was afterwards."""
    if (
        not model.training
    ):  # going through all modules for every token takes a third of the time of a tiny model
        yield
        return
    model.eval()
    try:
        yield
    finally:
        model.train()


@torch.no_grad()
def next_logits(model: Llama, ids: Sequence[int], cache: Cache) -> Tensor:
    """Logits (V), float32 on the CPU, after the last of ids, which are added to the cache."""
    tokens = torch.tensor([ids], device=cache.keys.device)  # (1, T)
    with evaluating(model):
        x = model.hidden(tokens, cache=cache)[0, -1]  # (D): the classifier runs for the last token alone
        return model.output(x).float().cpu()


def generate(
    model: Llama,
    ids: Sequence[int],
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    generator: torch.Generator | None = None,
    stop_ids: Collection[int] = (),
) -> Iterator[int]:
    """Tokens that follow ids (one at least, BOS for a new text), drawn one by one.

    It ends after max_new_tokens, where the model's max_seq_len does, or before a token of stop_ids.
    temperature: 0 is greedy. top_k: 0 is off. top_p: 0 or 1 is off. generator: on any device, None: torch's.
    Raises UsageError, at once.
    """
    check_sampling(temperature, top_k, top_p)
    context, size = model.config.max_seq_len, model.config.vocab_size
    if not 0 < len(ids) <= context:
        raise UsageError(f"prompt = {len(ids)} tokens, allowed 1 to {context}")
    if max_new_tokens < 0:
        raise UsageError(f"max_new_tokens = {max_new_tokens}, allowed 0 or more")
    if wrong := [token for token in ids if not 0 <= token < size]:
        raise UsageError(f"token = {wrong[0]}, allowed 0 to {size - 1}")

    def tokens() -> Iterator[int]:
        positions = min(len(ids) + max_new_tokens - 1, context)  # the last token is not run, so it takes none
        weight = model.tok_embeddings.weight
        cache = Cache(model.config, 1, positions, weight.device, weight.dtype)
        new: Sequence[int] = ids
        while cache.length + len(new) <= positions:
            token = draw(next_logits(model, new, cache), temperature, top_k, top_p, generator)
            if token in stop_ids:
                return
            yield token
            new = [token]

    return tokens()


# --- Text


def stream(tokenizer: Any, prompt: Sequence[int], ids: Iterable[int]) -> Iterator[str]:
    """The text of ids that follow those of a prompt, piece by piece: only whole characters, none empty.

    What a token says depends on its neighbours: the space before the first word of a text is dropped, a
    character may lie over several tokens. So it is decoded together with the last piece that has a word.
    """
    held, told, new = list(prompt), len(tokenizer.decode(list(prompt))), 0  # of held, told characters are out
    for token in ids:
        held.append(token)
        new += 1  # tokens that are not out
        text = tokenizer.decode(held)
        if len(text) <= told or text.endswith("\ufffd"):
            continue
        yield text[told:]
        piece, told = tokenizer.decode(held[-new:]), len(text)
        if piece.strip():
            held, told = held[-new:], len(piece)
        new = 0
    if rest := tokenizer.decode(held)[told:]:
        yield rest


def read_prompt(options: argparse.Namespace) -> str:
    """The prompt; of a file without the newline that ends it. Raises BadInput."""
    if options.prompt_file is None:
        return os.fsencode(options.prompt).decode(errors="replace")
    try:
        if options.prompt_file == "-":
            data = sys.stdin.buffer.read()
        else:
            data = Path(options.prompt_file).read_bytes()
    except OSError as error:
        raise BadInput(f"{options.prompt_file}: {error.strerror}") from None
    return data.decode(errors="replace").removesuffix("\n")


def find_tokenizer(checkpoint: Path) -> Path:
    """The tokenizer that train.py put beside the weights. Raises BadInput."""
    folder = checkpoint if checkpoint.is_dir() else checkpoint.parent
    for name in ("tokenizer.model", "tokenizer.bin"):
        if (folder / name).is_file():
            return folder / name
    raise BadInput(f"{folder}: has no tokenizer.model or tokenizer.bin, name one with --tokenizer")


def open_tokenizer(path: Path, vocab_size: int) -> Any:
    """The tokenizer of a model. Raises BadInput if the file is none, or one of another size."""
    try:  # imported here, since train.py needs generate alone
        if path.suffix == ".bin":
            from llama import Tokenizer as load  # the engine's, which gives the ids that run.c would
        else:
            from tokenizer import load
        tokenizer = load(path)
    except ValueError as error:
        raise BadInput(str(error)) from None
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}") from None
    if tokenizer.vocab_size != vocab_size:
        raise BadInput(f"{path}: has {tokenizer.vocab_size} tokens, the model {vocab_size}")
    return tokenizer


# --- The program

HELP = """Write text with a checkpoint of train.py.

  python sample.py out/last --prompt "Once upon a time"
  python sample.py out/last --num_samples 3 --temperature 0.8 --top_k 50 --top_p 0.9 --seed 1337
  echo "Once upon a time" | python sample.py out/last --prompt_file - --temperature 0"""


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The options of a command line."""
    parser = Parser(description=HELP)
    add = parser.add_argument
    add("checkpoint", type=Path, help="a folder with model.safetensors, or that file")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--prompt", default="", metavar="TEXT", help="go on from TEXT (a new text)")
    source.add_argument("--prompt_file", metavar="FILE", help="read it from FILE, - for standard input")
    add("--num_samples", type=int, default=1, metavar="N", help="texts to write (1)")
    add("--max_new_tokens", type=int, default=256, metavar="N", help="length of each at most (256)")
    add("--temperature", type=float, default=1.0, metavar="T", help="0: always the most likely token (1.0)")
    add("--top_k", type=int, default=0, metavar="K", help="draw from the K most likely tokens (0: off)")
    add("--top_p", type=float, default=0.9, metavar="P", help="from those that reach P (0.9; 0 or 1: off)")
    add("--seed", type=int, default=1337, metavar="S", help="the same one gives the same texts (1337)")
    add("--device", metavar="D", help="cpu, cuda, cuda:1, mps (cuda where there is one)")
    add("--tokenizer", type=Path, metavar="FILE", help="default: beside the checkpoint")
    return parser.parse_args(arguments)


def check(options: argparse.Namespace) -> None:
    """Raises UsageError for an option out of range, before anything is read."""
    check_sampling(options.temperature, options.top_k, options.top_p)
    if options.num_samples < 1:
        raise UsageError(f"num_samples = {options.num_samples}, allowed 1 or more")
    if options.max_new_tokens < 0:
        raise UsageError(f"max_new_tokens = {options.max_new_tokens}, allowed 0 or more")
    if not 0 <= options.seed < 2**64:
        raise UsageError(f"seed = {options.seed}, allowed 0 to 2**64 - 1")


def usable_device(name: str | None) -> torch.device:
    """The device of a name, None for the best one. Raises UsageError if this machine has none such."""
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # torch was built without it, or knows no such name
        raise UsageError(f"device = {name}: {str(error).splitlines()[0]}") from None


def write(text: str) -> None:
    """Writes to standard output at once. Raises OSError."""
    try:
        sys.stdout.buffer.write(text.encode(errors="replace"))
        sys.stdout.buffer.flush()
    except OSError as error:
        sys.stdout = None  # or Python would try again as it ends, and complain
        error.filename = "standard output"
        raise


def sample(options: argparse.Namespace) -> None:
    """Does what a command line says."""
    check(options)
    device = usable_device(options.device)
    prompt = read_prompt(options)
    model = load_model(options.checkpoint, device)
    path = options.tokenizer or find_tokenizer(options.checkpoint)
    tokenizer = open_tokenizer(path, model.config.vocab_size)
    ids = tokenizer.encode(prompt, bos=True)
    sampling = (options.temperature, options.top_k, options.top_p)
    generator = torch.Generator().manual_seed(options.seed)  # on the CPU: the same draws on every device
    stop_ids = {tokenizer.bos_id, tokenizer.eos_id}
    for index in range(options.num_samples):
        write(("---\n" if index else "") + prompt)
        tokens = generate(model, ids, options.max_new_tokens, *sampling, generator, stop_ids)
        for piece in stream(tokenizer, ids, tokens):
            write(piece)
        write("\n")


def main(arguments: list[str] | None = None) -> int:
    """Runs a command line without its program name (None: sys.argv) and returns the exit status."""
    options = parse(arguments)
    return run_command(lambda: sample(options))


if __name__ == "__main__":
    sys.exit(main())
