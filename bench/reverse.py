"""How many strings that it never saw a model of the toy task reverses without a mistake.

python dataset.py reverse && python train.py configs/reverse.toml
python -m bench.reverse out/reverse/model.bin --lines data/reverse/text/val.jsonl
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from llama import Llama
from llama.command import run_command


def reverses(llama: Llama, line: str) -> bool:
    """Whether the likeliest text after `word=` is the rest of the line."""
    word, _, answer = line.partition("=")
    text = "".join(llama.generate(f"{word}=", max_tokens=len(answer) + 1, temperature=0))
    return text == answer


def measure(arguments: list[str]) -> None:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("model", type=Path)
    parser.add_argument("--lines", type=Path, default=Path("data/reverse/text/val.jsonl"))
    options = parser.parse_args(arguments)
    lines = [json.loads(line) for line in options.lines.read_text().splitlines()]
    with Llama(options.model) as llama:
        right = sum(reverses(llama, line) for line in lines)
    print(f"{right} of {len(lines)} strings reversed, {right / len(lines):.1%}")


if __name__ == "__main__":
    sys.exit(run_command(lambda: measure(sys.argv[1:])))
