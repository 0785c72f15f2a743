"""What train.py does where it is not told: the recipe of the machine, and the tokens that are there.

Left out on purpose: the defaults of single options, which options.py has.
"""

from __future__ import annotations

from pathlib import Path

from llama.errors import BadFileError, UsageError
from training.parallel import best_device

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
DATA = Path("data")
USUAL = "tok4096"  # what tinystories.py pretokenize makes by default


def recipe_for(device: str) -> Path:
    """configs/gpu.toml for CUDA, configs/laptop.toml for all else. device: as the option; empty: the best."""
    name = "gpu" if (device or best_device()).startswith("cuda") else "laptop"
    return CONFIGS / f"{name}.toml"


def holds_tokens(folder: Path) -> bool:
    """Whether tinystories.py or dataset.py wrote a folder, if only its beginning, or llama2.c did."""
    return (folder / "meta.json").is_file() or next(folder.glob("*.bin"), None) is not None


def find_data(root: Path = DATA) -> str:
    """The folder of tokens to train on: data/tok4096, or else the only one in data.

    Raises BadFileError where there is none, UsageError where there are several.
    """
    found = sorted(path for path in root.glob("*") if path.is_dir() and holds_tokens(path))
    if root / USUAL in found:
        return str(root / USUAL)
    if not found:
        make = "python tinystories.py download, and then python tinystories.py pretokenize"
        raise BadFileError(f"{root}: holds no tokens to train on; to make them: {make}")
    if len(found) > 1:
        raise UsageError(f"{root}: holds {', '.join(p.name for p in found)}: name one, as --data={found[0]}")
    return str(found[0])
