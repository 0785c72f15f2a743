"""python -m llama.perplexity: how well a model predicts a text, as perplexity and as bits per byte.

    python -m llama.perplexity stories15M.bin data00.json
    python -m llama.perplexity stories15M.bin novel.txt -c 256
    python -m llama.perplexity model.bin stories.jsonl --field story --json
    python -m llama.perplexity stories15M stories.txt     # a name, or a model of another format

A .json file holds a list of documents, a .jsonl file one a line: strings, or objects whose --field is the
text (default: story or text). Any other file is one document, of which ./run --perplexity says the same. A
byte order mark at the start of a file is dropped (./run counts it). Each document is stripped of blanks at
its ends and read alone, after BOS if the model's tokenizer puts it there. One that is longer than the context
is read in windows that overlap by half, and each token is judged once, with at least half a context before
it.

Perplexity depends on the vocabulary, bits per byte does not: it compares any two models on a text.
llama.evaluate asks models more than how likely a text is, and reads texts by this module.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llama import files, names
from llama.command import Parser, counted, name_type, run_command, started_as
from llama.engine import Llama
from llama.errors import BadFileError, UsageError
from llama.formats.files import parse_json
from llama.native import KV, c_bytes

FIELDS = ("story", "text")  # where objects of .json files have their text
BLANKS = " \t\n\v\f\r"  # what is stripped from the ends of a document


@dataclass
class Perplexity:
    """What a text is to a model. tokens: those judged, so all but the first, which is BOS in most models."""

    documents: int = 0
    tokens: int = 0
    bytes: int = 0
    log_probability: float = 0.0  # sum over the tokens, in nats
    seconds: float = 0.0

    @property
    def loss(self) -> float:
        """In nats a token, as training has it."""
        return -self.log_probability / self.tokens

    @property
    def perplexity(self) -> float:
        return math.exp(self.loss) if self.loss < 709 else math.inf

    @property
    def bits_per_byte(self) -> float:
        return -self.log_probability / math.log(2) / self.bytes

    def to_dict(self) -> dict[str, float]:
        figures = {"loss": self.loss, "perplexity": self.perplexity, "bits_per_byte": self.bits_per_byte}
        return asdict(self) | figures

    def __str__(self) -> str:
        return (
            f"{counted(self.documents, 'document')}, {self.tokens} tokens, {self.bytes} bytes: "
            f"log-probability {self.log_probability:.1f}, perplexity {self.perplexity:.4f}, "
            f"{self.bits_per_byte:.4f} bits per byte; {self.tokens / self.seconds:.0f} tokens/s"
        )


# --- Documents


def text_of(record: Any, field: str | None, place: str) -> str:
    """The text of a record of a .json or .jsonl file. Raises BadFileError."""
    if isinstance(record, str):
        return record
    names = [field] if field else FIELDS
    for name in names:
        if isinstance(record, dict) and isinstance(record.get(name), str):
            return record[name]
    found = list(record) if isinstance(record, dict) else type(record).__name__
    raise BadFileError(f"{place}: found {found}, allowed are strings or objects with {' or '.join(names)}")


def read(path: str) -> Any:
    """The records of a file. Raises OSError, and ValueError for what is not JSON or UTF-8."""
    text = files.read(Path(path)).decode().removeprefix("\ufeff")
    if path.endswith(".json"):
        return parse_json(text)
    if path.endswith(".jsonl"):
        return [parse_json(line) for line in text.split("\n") if line.strip()]
    return [text]


def documents(path: str, field: str | None = None) -> Iterator[str]:
    """The documents of a file, stripped, without the empty ones. Raises BadFileError."""
    try:
        records = read(path)
    except OSError as error:
        raise BadFileError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise BadFileError(f"{path}: byte {error.start} is not UTF-8") from None
    except ValueError as error:
        raise BadFileError(f"{path}: {error}") from None
    if not isinstance(records, list):
        raise BadFileError(f"{path}: found {type(records).__name__}, allowed is a list")
    for i, record in enumerate(records):
        if text := text_of(record, field, f"{path}: record {i}").strip(BLANKS):
            yield text


# --- Judging them


def windows(ids: Sequence[int], context: int) -> Iterator[tuple[Sequence[int], int]]:
    """Pieces of at most context ids, and how many of each piece's scores are new: the last ones."""
    done, step = min(len(ids), context), max(1, context // 2)
    yield ids[:done], done - 1
    while done < len(ids):
        n = min(step, len(ids) - done)
        yield ids[done + n - context : done + n], n
        done += n


Score = Callable[[Sequence[int]], list[float]]  # Llama.score
Say = Callable[[Perplexity], object]


def judge(result: Perplexity, ids: Sequence[int], n_bytes: int, context: int, score: Score, say: Say) -> None:
    """Adds a document to a result, which say hears of. Raises UsageError for a context without a window."""
    if context < 2:
        raise UsageError(f"--context = {context}, allowed 2 or more to judge a text")
    result.documents += 1
    result.bytes += n_bytes
    for piece, new in windows(ids, context):
        scores = score(piece)
        result.log_probability += math.fsum(scores[len(scores) - new :])
        result.tokens += new
        say(result)


def say_nothing(_: Perplexity) -> None:
    pass


def say_tokens(result: Perplexity) -> None:
    """Shows how far it is in a terminal."""
    if sys.stderr.isatty():
        print(f"\r{result.tokens} tokens", end="", file=sys.stderr, flush=True)


def measure(llama: Llama, texts: Iterable[str], say: Say = say_nothing) -> Perplexity:
    """Reads the texts. Raises BadFileError, UsageError."""
    result, start = Perplexity(), time.perf_counter()
    for text in texts:
        judge(result, llama.encode(text), len(c_bytes(text)), llama.context, llama.score, say)
    result.seconds = time.perf_counter() - start
    return result


def judged(llama: Llama, path: str, field: str | None) -> Perplexity:
    """What a file is to a model, shown as it goes. Raises BadFileError for one without a text, UsageError."""
    result = measure(llama, documents(path, field), say_tokens)
    if sys.stderr.isatty():
        print("\r", end="", file=sys.stderr)
    if not result.tokens:
        raise BadFileError(f"{path}: holds no text")
    return result


# --- The program


def add_options(parser: argparse.ArgumentParser) -> None:
    """A model, how to run it, and which field of records is text, for a program that judges."""
    parser.add_argument("model", help="a file, a folder or a name (llama.names)")
    parser.add_argument("-z", "--tokenizer", type=name_type, help="default: found beside the model")
    parser.add_argument("-c", "--context", type=int, help="positions (default: the model's)")
    parser.add_argument("-j", "--threads", type=int, help="default: chosen by size")
    parser.add_argument("--kv", choices=KV, default=KV[0], help="type of keys and values (%(default)s)")
    parser.add_argument("--exact", action="store_true", help="keep activations in fp32 (slower)")
    parser.add_argument("--rope-theta", type=float, metavar="X", help="of RoPE (default: the file's)")
    parser.add_argument("--field", type=name_type, help="of the objects of a .json or .jsonl file")
    parser.add_argument("--json", action="store_true", help="print an object")
    names.add_lora_option(parser)
    names.add_model_options(parser)


@contextmanager
def opened(options: argparse.Namespace) -> Iterator[Llama]:
    """The model that such options name, good until the end of the block. Raises as names.opened."""
    special = {"kv": options.kv, "exact": options.exact, "rope_theta": options.rope_theta}
    with (
        names.opened(options.model, options.tokenizer, options.dtype, not options.no_cache) as files,
        names.opened_adapter(options.lora, files.model, not options.no_cache) as lora,
        Llama(*files, options.threads, options.context, **special, lora=lora) as llama,
    ):
        yield llama


def main(arguments: list[str]) -> None:
    parser = Parser(prog=started_as("perplexity"), description=__doc__)
    add_options(parser)
    parser.add_argument("text", type=name_type, help="a file")
    options = parser.parse_args(arguments)
    with opened(options) as llama:
        result = judged(llama, options.text, options.field)
    print(json.dumps(result.to_dict()) if options.json else result)


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv[1:])))
