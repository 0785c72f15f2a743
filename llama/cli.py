"""cria: every program of the package under one name.

    cria run MODEL -i "Once upon a time"     a text
    cria chat MODEL                          a conversation
    cria info MODEL                          what a model is
    cria perplexity MODEL FILE               how well it predicts a text
    cria evaluate MODEL --tasks arc_easy     what it can do, by lm-evaluation-harness
    cria bench MODEL                         how fast it is here
    cria serve MODEL                         an HTTP server, as OpenAI's
    cria convert MODEL OUT                   .bin, .gguf or a folder for transformers
    cria surgery MODEL OUT --drop 20-23      fewer or more layers, sums of models, other tokens
    cria cache                               models of other formats, converted once and kept

MODEL is a .bin, a .gguf, a folder of Hugging Face or Meta, a checkpoint, the name of a story (stories15M)
or of a repository of the Hugging Face hub (owner/name). `cria COMMAND --help` says more; `python -m
llama.COMMAND` is the same program.
"""

from __future__ import annotations

import sys
from importlib import import_module

from llama.command import run_command
from llama.errors import UsageError

COMMANDS = ("run", "chat", "info", "perplexity", "evaluate", "bench", "serve", "convert", "surgery", "cache")
MODULES = {"serve": "server.__main__"}  # of the commands that are not called as their modules


def start(arguments: list[str]) -> int | None:
    """Runs the program that the first argument names. Raises UsageError for any other."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(__doc__.strip())
        return None
    command, *rest = arguments
    if command == "--version":
        print(f"cria {import_module('llama').__version__}")
        return None
    if command not in COMMANDS:
        raise UsageError(f"command = {command}, allowed {', '.join(COMMANDS)}; cria --help says more")
    return import_module(f"llama.{MODULES.get(command, command)}").main(rest)


def main() -> int:
    """The entry of the console script."""
    return run_command(lambda: start(sys.argv[1:]))


if __name__ == "__main__":
    sys.exit(main())
