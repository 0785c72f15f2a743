"""python -m llama.evaluate: how good a model is, by texts that it predicts and tasks that all are judged by.

    python -m llama.evaluate stories15M.bin --text data00.json --text novel.txt
    python -m llama.evaluate model.bin --tasks arc_easy,hellaswag --limit 100
    python -m llama.evaluate model.bin --tasks my_task --include my_tasks --shots 2 --json

Of a text: the loss in nats a token, as training has it, and bits per byte, which compare over vocabularies.
How texts are read is said in llama.perplexity. Tasks are those of lm-evaluation-harness (pip install
lm_eval), run by the engine, with the scores of the library's `--model hf`. The library downloads their
questions, unless the .yaml file of a task in --include names a file here.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from typing import Any

from llama.bench import aligned
from llama.command import Parser, name_type, run_command, started_as
from llama.engine import Llama
from llama.errors import UsageError
from llama.perplexity import add_options, judged, opened

NEEDED = "--tasks needs lm_eval: pip install 'lm_eval>=0.4.13'"
TITLES = ("task", "metric", "value", "stderr")


def rows(results: Mapping[str, Mapping[str, Any]]) -> Iterator[list[str]]:
    """The cells of each metric of each task, of lm_eval's results. Those without an error have an empty cell.

    >>> list(rows({"arc": {"alias": "arc", "acc,none": 0.5, "acc_stderr,none": 0.01}}))
    [['arc', 'acc', '0.5000', '0.0100']]
    """
    for task, found in results.items():
        for key, value in found.items():
            metric, comma, kind = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, float | int):
                continue
            error = found.get(f"{metric}_stderr,{kind}")
            name = metric if kind == "none" else f"{metric} ({kind})"
            yield [task, name, f"{value:.4f}", f"{error:.4f}" if isinstance(error, float) else ""]


def names_of(tasks: str) -> list[str]:
    """Names with commas between them. Raises UsageError where there is none."""
    names = [name.strip() for name in tasks.split(",") if name.strip()]
    if not names:
        raise UsageError(f"--tasks = {tasks!r}, allowed are names with commas between them")
    return names


def tasks_of(llama: Llama, options: argparse.Namespace) -> dict[str, Any]:
    """The metrics of each task, and of each group of tasks."""
    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it tells at length what it was asked to do
    from llama.harness import run_tasks  # which imports the library

    names = names_of(options.tasks)
    return run_tasks(llama, names, options.include, options.shots, options.limit, options.chat)["results"]


def report(options: argparse.Namespace) -> None:
    """Judges, and prints. Raises UsageError, BadFileError, OSError."""
    if not options.text and options.tasks is None:
        raise UsageError("allowed are --text FILE and --tasks NAMES, one of them or both")
    if options.tasks is not None and names_of(options.tasks) and find_spec("lm_eval") is None:
        raise UsageError(NEEDED)
    found: dict[str, Any] = {"texts": {}, "tasks": {}}
    with opened(options) as llama:
        for path in options.text:
            found["texts"][path] = result = judged(llama, path, options.field)
            if not options.json:
                told = f"loss {result.loss:.4f}, {result.bits_per_byte:.4f} bits per byte"
                print(f"{path}: {told}; {result.tokens} tokens, {result.bytes} bytes", flush=True)
        if options.tasks is not None:
            found["tasks"] = tasks_of(llama, options)
    if options.json:
        texts = {path: result.to_dict() for path, result in found["texts"].items()}
        print(json.dumps({"texts": texts, "tasks": found["tasks"]}, default=str))
    elif found["tasks"]:
        print("\n".join(aligned([TITLES, *rows(found["tasks"])])))


def main(arguments: list[str]) -> None:
    parser = Parser(prog=started_as("evaluate"), description=__doc__)
    add_options(parser)
    parser.add_argument(
        "--text",
        action="append",
        type=name_type,
        default=[],
        metavar="FILE",
        help="to predict; may come again",
    )
    parser.add_argument("--tasks", metavar="NAMES", help="of lm-evaluation-harness, with commas between them")
    parser.add_argument(
        "--include", type=name_type, metavar="FOLDER", help="with .yaml files of tasks of one's own"
    )
    parser.add_argument(
        "--shots", type=int, metavar="N", help="examples before a question (as the task says)"
    )
    parser.add_argument("--chat", action="store_true", help="ask by the model's chat template")
    parser.add_argument("--limit", type=int, metavar="N", help="questions of each task (all)")
    options = parser.parse_args(arguments)
    report(options)


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv[1:])))
