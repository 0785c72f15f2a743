"""How many of the words that it is asked for a model uses in its stories.

python tinystories.py words
python -m bench.words llama/models/stories.bin --template llama2   # as it was
python -m bench.words out/asked/model.bin                          # tuned, as docs/training.md says

A word counts where it stands as asked, or as the beginning of a longer one (jump: jumped). The last figure is
what the stories have of words that were not asked for, those of the next request: what chance gives.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
from collections.abc import Sequence
from pathlib import Path

from llama import Llama


def words_in(request: str) -> list[str]:
    """The words of "Write a story with the words a, b and c."."""
    return re.findall(r"[a-z]+", request.partition("words ")[2].replace(" and ", " "))


def used(words: Sequence[str], story: str) -> float:
    """The share of words that a story has."""
    return sum(bool(re.search(rf"\b{word}", story.lower())) for word in words) / len(words)


def main() -> None:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("model", type=Path)
    parser.add_argument("--template", help="of a model that has none")
    parser.add_argument("--lines", type=Path, default=Path("data/words/val.jsonl"))
    parser.add_argument("--temperature", type=float, default=0.5)
    options = parser.parse_args()
    requests = [json.loads(line)["messages"][0] for line in options.lines.read_text().splitlines()]
    with Llama(options.model, sequences=8) as llama:
        prompts = [llama.encode_chat([request], template=options.template) for request in requests]
        texts = llama.generate_all(prompts, seed=1, temperature=options.temperature)
        stories = ["".join(text) for text in texts]
    asked = [words_in(request["content"]) for request in requests]
    of_others = itertools.islice(itertools.cycle(asked), 1, len(asked) + 1)
    share, chance = (sum(map(used, words, stories)) / len(stories) for words in (asked, of_others))
    print(f"{len(stories)} stories have {share:.1%} of the words asked for, {chance:.1%} of others")


if __name__ == "__main__":
    main()
