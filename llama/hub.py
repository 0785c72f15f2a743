"""Names to files: models and their tokenizers from the Hugging Face hub, downloaded once, into its cache.

    python -m llama.run stories15M                         of karpathy/tinyllamas: 260K, 15M, 42M, 110M
    python -m llama.run TinyLlama/TinyLlama-1.1B-Chat-v1.0  a repository
    python -m llama.run hf:owner/name@v2                   the same, at a branch, tag or commit
    python -m llama.run hf:owner/name/sub/model.gguf@v2    one of its files, a .bin or a .gguf
    python -m llama.run owner/name:Q4_K_M                  the GGUF file whose name has that in it
    python -m llama.run https://huggingface.co/owner/name/blob/main/model.gguf    as a browser has it
    python -m llama.hub stories15M                         only download, and print the paths

    from llama import Llama, hub
    llama = Llama(*hub.download("stories15M"))

Only a name downloads, and only where no file is called so. The four stories are fixed commits: once they are
in the cache the network is left alone. Their tokenizer is the one that belongs to them: tok512.bin for 260K,
Llama 2's for the others. karpathy/tinyllamas does not hold that one, so it comes from TinyLlama, which uses
it as it is and needs no login, as a tokenizer.model; the tokenizer.bin made of it is kept beside the cache.
A .bin of another repository gets the tokenizer inside its file, else tok<vocabulary>.bin, tokenizer.bin or
tokenizer.model of its repository. A repository without a .bin is a folder of Hugging Face or Meta, or a GGUF
file: llama.cache makes a .bin of it.

Left out on purpose: converting (llama.cache), logging in (hf auth login), the place of
the cache (HF_HOME). Needs huggingface_hub, which is imported only when there is something to download.
"""

from __future__ import annotations

import errno
import fnmatch
import glob
import os
import re
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

from llama._engine import lib
from llama.command import run_command
from llama.errors import BadFileError, LlamaError, ResourceError, UsageError
from llama.files import read
from llama.formats.chat_templates import TEMPLATE_FILES
from llama.native import model_open, wrong

PREFIX = "hf:"
FOREIGN = (  # what begins so is no model: parts of folders, and files of other programs
    *("tok", "pytorch_model", "adapter_model", "openvino", "ggml", "mmproj", "imatrix"),
    *("training_args", "optimizer", "scheduler", "rng_state"),
)
FILES = (".bin", ".gguf", ".safetensors", ".pt", ".pth", ".model", ".json")  # what ends so is a path
TIMEOUT = 10  # seconds until the hub has to answer a question


class Files(NamedTuple):
    """Paths. tokenizer: None where the engine is to look for it."""

    model: str
    tokenizer: str | None


class Place(NamedTuple):
    """A file of a repository of the hub. name: what it was asked for as.

    file: "" for its model. quant: "", or what the name of a GGUF file is to have in it.
    """

    name: str
    repository: str
    revision: str
    file: str
    quant: str = ""


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
    from llama.formats.sentencepiece_model import opened

    if (sp := opened(read(model))) is None:
        raise BadFileError(f"{model}: is not a sentencepiece model; export.py reads others")
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


PATH = re.compile(r"[\w-][\w.-]*/[\w.-]+(:[\w.-]+)?(@[\w./-]+)?")  # owner/name:quant@revision
ENDINGS = (".bin", ".gguf")  # of a file that a name may mean
FILE_BEHIND = re.compile(r"((?:refs/[^/]+/)?[^/]+)/(.+)")  # revision/file; refs/pr/1 is one revision
SITES = ("https://huggingface.co/", "https://hf.co/", "huggingface.co/", "hf.co/")
PAGE = re.compile(r"([^/?]+/[^/?]+)(?:/(?:resolve|blob|raw|tree)/([^/?]+)(?:/([^?]+))?)?/?(?:\?.*)?")
FOLDER = (
    "config.json",
    "generation_config.json",
    "params.json",
    "tokenizer",
    "special_tokens",
    "added_tokens",
)
FOLDER += ("chat_template", "model.safetensors.index.json", "pytorch_model.bin.index.json")  # besides weights
WEIGHTS = (  # a file, and what the weights are called if it is there; the first counts, as in kinds.py
    ("model.safetensors", "model.safetensors"),  # besides consolidated.safetensors, which has it all again
    ("model.safetensors.index.json", "model-*-of-*.safetensors"),
    ("model.safetensors.index.json", "*-of-*.safetensors"),
    ("pytorch_model.bin", "pytorch_model.bin"),
    ("pytorch_model.bin.index.json", "pytorch_model-*-of-*.bin"),
    ("consolidated.00.pth", "consolidated.*.pth"),
)


def sites() -> tuple[str, ...]:
    """What the address of a page of the hub begins with."""
    own = os.environ.get("HF_ENDPOINT", "").rstrip("/")
    return (*SITES, f"{own}/") if own else SITES


def page_name(address: str) -> str | None:
    """owner/name/file@revision for the address of a page or a file of the hub, None for any other."""
    begins = next((site for site in sites() if address.startswith(site)), None)
    match = PAGE.fullmatch(address.removeprefix(begins)) if begins else None
    if not match:
        return None
    repository, revision, file = (unquote(part or "") for part in match.groups())
    return repository + (f"/{file}" if file else "") + (f"@{revision}" if revision else "")


def parse(name: str) -> Place:
    """The place that hf:owner/name/file@revision means, or another form of it. Raises UsageError."""
    if not isinstance(name, str):
        raise wrong("name", name, "a string")
    path, at, revision = (page_name(name) or name.removeprefix(PREFIX)).partition("@")
    if revision.endswith(ENDINGS) and (match := FILE_BEHIND.fullmatch(revision)):
        revision, path = match[1], f"{path}/{match[2]}"
    owner, _, rest = path.partition("/")
    whole, _, file = rest.partition("/")
    repository, colon, quant = whole.partition(":")
    twice = colon and (file or not quant)
    if not owner or not repository or twice or (at and not revision) or (file and not file.endswith(ENDINGS)):
        allowed = "allowed hf:owner/name, with /file.bin, /file.gguf or :Q4_K_M and @revision after it"
        raise UsageError(f"{name}: {allowed}")
    return Place(name, f"{owner}/{repository}", revision or "main", file, quant)


def is_name(name: str) -> bool:
    """Whether a model that no file is called like is one of the hub: a story, hf:..., or owner/name.

    So is the address of a page, also that of another site: parse says what is allowed.
    """
    if name in STORIES or name.startswith((PREFIX, "https://", "http://", *sites())):
        return True
    owner = name.partition("/")[0]
    return bool(PATH.fullmatch(name)) and not name.endswith(FILES) and not Path(owner).exists()


def models_in(files: list[str]) -> list[str]:
    """The .bin files of a repository that may be models of ours."""
    bins = [file for file in files if file.endswith(".bin")]
    return [file for file in bins if not file.rpartition("/")[2].startswith(FOREIGN)]


def folder_files(files: list[str]) -> list[str]:
    """The files of a repository that make a folder of Hugging Face or Meta; [] where it is none."""
    top = [file for file in files if "/" not in file]
    if not {"config.json", "params.json"} & set(top):
        return []
    kinds = [fnmatch.filter(top, kind) for file, kind in WEIGHTS if file in top]
    weights = next(filter(None, kinds), [])
    besides = [
        file for file in files if file == TEMPLATE_FILES[0] or (file in top and file.startswith(FOLDER))
    ]
    return weights and weights + besides


def only(place: Place, files: list[str]) -> str:
    """The one file of a list. Raises BadFileError, with all of them, where there are several."""
    if len(files) > 1:
        one = f"hf:{place.repository}/{files[0]}"
        raise BadFileError(f"{place.name}: has {', '.join(files)}: name one, as {one}")
    return files[0]


def fetched_folder(place: Place, files: list[str]) -> str:
    """The path of a folder in the cache with these files of a repository. Raises as fetched.

    What the first file is of, the others are too, even if the repository changes meanwhile.
    """
    folder = Path(fetched(place._replace(file=files[0]))).parent  # snapshots/<commit>
    for file in files[1:]:
        fetched(place._replace(file=file, revision=folder.name))
    return str(folder)


def parts_of(file: str, files: list[str]) -> list[str]:
    """All parts of a GGUF file that is split, in their order; the file itself where it is whole."""
    split = re.fullmatch(r"(.*)-\d{5}-of-(\d{5})\.gguf", file)
    return fnmatch.filter(files, f"{glob.escape(split[1])}-*-of-{split[2]}.gguf") if split else [file]


def models_in_gguf(files: list[str]) -> list[str]:
    """The GGUF files of a repository that may be models, of one that is split the first part."""
    ggufs = [file for file in files if file.endswith(".gguf")]
    whole = [file for file in ggufs if parts_of(file, files)[:1] in ([], [file])]
    return [file for file in whole if not file.rpartition("/")[2].startswith(FOREIGN)]


def has_quant(file: str, quant: str) -> bool:
    """Whether a quantisation is a word of a file's path: Q4_K is none of a.Q4_K_M.gguf."""
    return bool(re.search(rf"(?<![a-z0-9]){re.escape(quant.lower())}(?!\w)", file.lower()))


def chosen_gguf(place: Place, files: list[str]) -> str:
    """The GGUF file of a repository, of several the one with the quantisation. Raises BadFileError."""
    ggufs = models_in_gguf(files)
    found = [file for file in ggufs if not place.quant or has_quant(file, place.quant)]
    if ggufs and not found:
        allowed = ", ".join(ggufs)
        raise BadFileError(f"{place.name}: has no .gguf with {place.quant} in its name, allowed {allowed}")
    if not found:
        wanted = ".gguf" if place.quant else ".bin, no .gguf and no folder of Hugging Face or Meta"
        raise BadFileError(f"{place.name}: holds no {wanted}")
    return only(place, found)


def fetched_gguf(place: Place, files: list[str]) -> str:
    """The path of a GGUF file, of its first part where it is split. Raises BadFileError."""
    parts = sorted(parts_of(place.file, files)) or [place.file]
    paths = [fetched(place._replace(file=part)) for part in parts]
    return paths[0]


def fetched_bin(place: Place, files: list[str]) -> Files:
    """A model of ours and its tokenizer. Raises BadFileError."""
    path = fetched(place)
    tokenizer = tokenizer_file(path, place.file, files)
    return Files(path, fetched_tokenizer(place._replace(file=tokenizer)) if tokenizer else None)


def download_repository(place: Place) -> Files:
    """The model of a repository: what was named, else its .bin, else its folder, else its GGUF.

    Raises BadFileError where it holds none of these, or several.
    """
    files = listed(place)
    if place.file.endswith(".gguf"):
        return Files(fetched_gguf(place, files), None)
    models = [place.file] if place.file else models_in(files)
    if models and not place.quant:
        return fetched_bin(place._replace(file=only(place, models)), files)
    folder = folder_files(files)
    if folder and not place.quant:
        return Files(fetched_folder(place, folder), None)
    return Files(fetched_gguf(place._replace(file=chosen_gguf(place, files)), files), None)


def download(name: str) -> Files:
    """The files of a named model, downloaded where they are not in the cache.

    name: stories260K, stories15M, stories42M, stories110M, owner/name[:quantisation], the address of a
    page of the hub, or hf:owner/name[/file][@revision].
    The model may be one that has to be converted (llama.cache).
    Raises UsageError for any other name, BadFileError where it can't be had, ResourceError for a full disk.
    """
    if not isinstance(name, str):
        raise wrong("name", name, "a string")
    if name in STORIES:
        file, tokenizer = STORIES[name]
        model = Place(name, *TINYLLAMAS, file)
        tokenizer_place = model._replace(file=tokenizer) if tokenizer else LLAMA2_TOKENIZER
        return Files(fetched(model), fetched_tokenizer(tokenizer_place))
    if not is_name(name):
        raise UsageError(f"{name}: allowed {', '.join(STORIES)}, owner/name and hf:owner/name")
    return download_repository(parse(name))


def find(model: str | bytes, tokenizer: str | bytes | None = None) -> Files:
    """The model and tokenizer of a command line: paths as they are, names downloaded. Raises as download."""
    name, given = os.fsdecode(model), None if tokenizer is None else os.fsdecode(tokenizer)
    if not name:
        raise UsageError("the name of the model is empty")
    if not is_name(name) or Path(name).exists():
        return Files(name, given)
    files = download(name)
    return Files(files.model, files.tokenizer if given is None else given)


def main(arguments: list[str]) -> None:
    if len(arguments) != 1 or arguments[0].startswith("-"):
        raise UsageError("usage: python -m llama.hub NAME")
    print("\n".join(filter(None, download(arguments[0]))))


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv[1:])))
