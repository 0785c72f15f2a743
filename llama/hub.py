"""Names to files: models and their tokenizers from the Hugging Face hub, downloaded once, into its cache.

    python -m llama.run stories15M                         of karpathy/tinyllamas: 260K, 15M, 42M, 110M
    python -m llama.run hf:owner/name                      the .bin file of a repository
    python -m llama.run hf:owner/name/sub/model.bin@v2     one of its files, at a branch, tag or commit
    python -m llama.hub stories15M                         only download, and print the paths

    from llama import Llama, hub
    llama = Llama(*hub.download("stories15M"))

Only a name downloads, and only where no file is called so. The four stories are fixed commits: once they are
in the cache the network is left alone. Their tokenizer is the one that belongs to them: tok512.bin for 260K,
Llama 2's for the others. karpathy/tinyllamas does not hold that one, so it comes from TinyLlama, which uses
it as it is and needs no login, as a tokenizer.model; the tokenizer.bin made of it is kept beside the cache.
A model of hf: gets the tokenizer inside its file, else tok<vocabulary>.bin, tokenizer.bin or tokenizer.model
of its repository.

Left out on purpose: weights of other kinds (export.py reads them), logging in (hf auth login), the place of
the cache (HF_HOME). Needs huggingface_hub, which is imported only when there is something to download.
"""

from __future__ import annotations

import errno
import os
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from llama._engine import lib
from llama.command import run_command
from llama.errors import BadFileError, LlamaError, ResourceError, UsageError
from llama.native import model_open

PREFIX = "hf:"
FOREIGN = ("tok", "pytorch_model", "adapter_model", "training_args", "optimizer")  # .bin files, not for us
TIMEOUT = 10  # seconds until the hub has to answer a question


class Files(NamedTuple):
    """Paths. tokenizer: None where the engine is to look for it."""

    model: str
    tokenizer: str | None


class Place(NamedTuple):
    """A file of a repository of the hub. file: "" for its .bin. name: what it was asked for as."""

    name: str
    repository: str
    revision: str
    file: str


TINYLLAMAS = ("karpathy/tinyllamas", "0bd21da7698eaf29a0d7de3992de8a46ef624add")
STORIES = {  # name: model, tokenizer
    "stories260K": ("stories260K/stories260K.bin", "stories260K/tok512.bin"),
    "stories15M": ("stories15M.bin", None),
    "stories42M": ("stories42M.bin", None),
    "stories110M": ("stories110M.bin", None),
}
LLAMA2_TOKENIZER = Place(
    "the tokenizer of Llama 2",
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0",
    "af8e934848d8dd00074cc2cd8a40a9b05c3b011e",
    "tokenizer.model",
)


# --- The hub


def explained(error: Exception, place: Place) -> LlamaError:
    """What went wrong, as one line."""
    from huggingface_hub import constants, errors

    name, address = place.name, f"{constants.ENDPOINT}/{place.repository}"
    reason = str(error).strip().partition("\n")[0] or type(error).__name__
    if isinstance(error, errors.GatedRepoError):
        return BadFileError(f"{name}: is gated: ask for access at {address}, then run hf auth login")
    if isinstance(error, errors.RepositoryNotFoundError):
        return BadFileError(f"{name}: {address} is not there, or private: then run hf auth login")
    if isinstance(error, errors.RevisionNotFoundError):
        return BadFileError(f"{name}: {address} has no revision {place.revision}")
    if isinstance(error, errors.EntryNotFoundError) and not isinstance(error, errors.LocalEntryNotFoundError):
        return BadFileError(f"{name}: {address} has no file {place.file}")
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return ResourceError(f"{name}: {reason}")
    return BadFileError(f"{name}: is not in the cache, and {constants.ENDPOINT} does not give it: {reason}")


@contextmanager
def asking(place: Place) -> Iterator[None]:
    """For calls of huggingface_hub: what they raise becomes a LlamaError, what they warn of is dropped."""
    try:
        from huggingface_hub.utils import logging
    except ImportError:
        raise BadFileError(f"{place.name}: to download it: pip install huggingface_hub") from None
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    except Exception as error:  # its own errors, those of its HTTP library, and OSError
        raise explained(error, place) from None
    finally:
        logging.set_verbosity(verbosity)


def listed(place: Place) -> list[str]:
    """The files of a repository; where the hub can't be reached, those in the cache. Raises BadFileError."""
    with asking(place):
        from huggingface_hub import HfApi, errors, snapshot_download

        try:
            info = HfApi().model_info(place.repository, revision=place.revision, timeout=TIMEOUT)
            return [file.rfilename for file in info.siblings or []]
        except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError):
            raise
        except Exception as unreachable:
            try:
                cached = snapshot_download(place.repository, revision=place.revision, local_files_only=True)
            except errors.LocalEntryNotFoundError:
                raise unreachable from None
            return [path.relative_to(cached).as_posix() for path in Path(cached).rglob("*") if path.is_file()]


def fetched(place: Place) -> str:
    """The path of a file in the cache, downloaded if need be. Raises BadFileError, ResourceError."""
    with asking(place):
        from huggingface_hub import hf_hub_download, try_to_load_from_cache

        where = {"repo_id": place.repository, "filename": place.file, "revision": place.revision}
        path = try_to_load_from_cache(**where)
        if isinstance(path, str) and is_commit(place.revision):
            return path
        return hf_hub_download(**where)


def is_commit(revision: str) -> bool:
    """Whether a revision always means the same files."""
    return len(revision) == 40 and not revision.strip("0123456789abcdef")


# --- Tokenizers


def write_tokenizer(model: Path, path: Path) -> None:
    """Makes a tokenizer.bin of a sentencepiece model. Raises BadFileError."""
    from sentencepiece import SentencePieceProcessor

    try:
        sp = SentencePieceProcessor(model_file=str(model))
    except RuntimeError:
        raise BadFileError(f"{model}: is not a sentencepiece model; export.py reads others") from None
    names = {sp.bos_id(): "\n<s>\n", sp.eos_id(): "\n</s>\n"}
    texts = (names.get(i, sp.id_to_piece(i)).replace("\u2581", " ") for i in range(sp.vocab_size()))
    pieces = [text.encode() for text in texts]
    records = (struct.pack("<fi", sp.get_score(i), len(piece)) + piece for i, piece in enumerate(pieces))
    aside = path.with_name(f"{path.name}.{os.getpid()}")
    aside.write_bytes(struct.pack("<I", max(map(len, pieces))) + b"".join(records))
    aside.replace(path)


def fetched_tokenizer(place: Place) -> str:
    """The path of a tokenizer.bin, made of a tokenizer.model where that is the file. Raises BadFileError."""
    path = fetched(place)
    if place.file.endswith(".bin"):
        return path
    with asking(place):
        from huggingface_hub import cached_assets_path

        commit = Path(path).parts[-1 - len(Path(place.file).parts)]  # snapshots/<commit>/file
        made = cached_assets_path("cria", place.repository, commit) / "tokenizer.bin"
    if not made.exists():
        write_tokenizer(Path(path), made)
    return str(made)


def tokenizer_file(model: str, file: str, files: list[str]) -> str | None:
    """The file of a repository that a model's tokenizer is, None: it has its own, or there is none."""
    handle = model_open(model)
    if lib.llama_has_tokenizer(handle):
        return None
    names = (f"tok{lib.llama_config(handle).vocab_size}.bin", "tokenizer.bin", "tokenizer.model")
    folder = file.rpartition("/")[0]
    candidates = [f"{folder}/{name}" for name in names if folder] + list(names)
    return next((candidate for candidate in candidates if candidate in files), None)


# --- Names


def parse(name: str) -> Place:
    """The place that hf:owner/name/file@revision means. Raises UsageError."""
    path, at, revision = name.removeprefix(PREFIX).partition("@")
    owner, _, rest = path.partition("/")
    repository, _, file = rest.partition("/")
    if not owner or not repository or (at and not revision) or (file and not file.endswith(".bin")):
        raise UsageError(f"{name}: allowed hf:owner/name, with /file.bin and @revision after it")
    return Place(name, f"{owner}/{repository}", revision or "main", file)


def only_model(place: Place, files: list[str]) -> str:
    """The .bin file of a repository that is a model. Raises BadFileError where it is not just one."""
    bins = [file for file in files if file.endswith(".bin")]
    models = [file for file in bins if not file.rpartition("/")[2].startswith(FOREIGN)]
    if len(models) == 1:
        return models[0]
    if models:
        raise BadFileError(f"{place.name}: has {', '.join(models)}: name one, as {place.name}/{models[0]}")
    short = place.repository.rpartition("/")[2]
    get = f"hf download {place.repository} --local-dir {short}"
    make = f"{get} && python export.py {short} {short}.bin --dtype int8"
    raise BadFileError(f"{place.name}: has no .bin file; to make one, in a checkout of cria: {make}")


def download(name: str) -> Files:
    """The files of a named model, downloaded where they are not in the cache.

    name: stories260K, stories15M, stories42M, stories110M or hf:owner/name[/file.bin][@revision].
    Raises UsageError for any other name, BadFileError where it can't be had, ResourceError for a full disk.
    """
    if name in STORIES:
        file, tokenizer = STORIES[name]
        model = Place(name, *TINYLLAMAS, file)
        tokenizer_place = model._replace(file=tokenizer) if tokenizer else LLAMA2_TOKENIZER
        return Files(fetched(model), fetched_tokenizer(tokenizer_place))
    if not name.startswith(PREFIX):
        raise UsageError(f"{name}: allowed {', '.join(STORIES)} and hf:owner/name")
    place = parse(name)
    files = listed(place)
    place = place._replace(file=place.file or only_model(place, files))
    path = fetched(place)
    tokenizer = tokenizer_file(path, place.file, files)
    return Files(path, fetched_tokenizer(place._replace(file=tokenizer)) if tokenizer else None)


def find(model: str | bytes, tokenizer: str | bytes | None = None) -> tuple[str | bytes, str | bytes | None]:
    """The model and tokenizer of a command line: paths as they are, names downloaded. Raises as download."""
    name = os.fsdecode(model)
    if Path(name).exists() or not (name in STORIES or name.startswith(PREFIX)):
        return model, tokenizer
    files = download(name)
    return files.model, tokenizer or files.tokenizer


def main(arguments: list[str]) -> None:
    if len(arguments) != 1 or arguments[0].startswith("-"):
        raise UsageError("usage: python -m llama.hub NAME")
    print("\n".join(filter(None, download(arguments[0]))))


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv[1:])))
