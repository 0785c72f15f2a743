"""TinyStories (Eldan and Li, 2023): download it, train a vocabulary on it, turn it into tokens.

    python tinystories.py download                       # 1.6 GB; goes on where it was stopped
    python tinystories.py pretokenize                    # trains a vocabulary of 4096 tokens first
    python train.py                                      # takes data/tok4096

    python tinystories.py train_vocab --vocab_size=2048  # a vocabulary of another size, alone
    python tinystories.py pretokenize --vocab_size=2048
    python tinystories.py pretokenize --vocab_size=0     # Llama 2's 32,000 tokens, from the hub
    python tinystories.py pretokenize --input FOLDER     # with data00.json and others, without a download
    python tinystories.py words                          # stories on request, to tune a model with

download leaves data/TinyStories_all_data/data00.json and so on. train_vocab writes data/tok2048.model and
.bin, pretokenize the folder data/tok2048 (dataset.py says what is in it). As in llama2.c, data00.json is the
validation split, a vocabulary learns from the first ten other files, stories are stripped, and a vocabulary
of 0 is Llama 2's. Unlike there, no --vocab_size means 4096: an embedding of 32,000 would be most of a small
model. HF_ENDPOINT names a mirror of the hub. words leaves data/words/train.jsonl and val.jsonl, conversations
for dataset.py chat: who asks for a story with three words gets one that has them.

Left out on purpose: the text-only editions of the dataset, which python dataset.py pretokenize reads.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import sys
import tarfile
import time
import urllib.error
import urllib.request
from collections import Counter
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from zlib import error as ZlibError

from tqdm import tqdm

from llama.command import Parser, path_type, run_command
from llama.errors import BadFileError
from llama.files import sync, write_aside
from llama.formats import tokenizers
from training.pretokenize import Selection, add_writer_options, pretokenize, print_totals
from training.text import Format, sample
from training.tokenizers import train as train_tokenizer

HUB = "https://huggingface.co"  # or what HF_ENDPOINT says, as for llama.hub
ARCHIVE = "datasets/roneneldan/TinyStories/resolve/main/TinyStories_all_data.tar.gz"
FOLDER = "TinyStories_all_data"
FORM = Format(field="story", strip=True)
VOCAB_SIZE = 4096
ASKED = 3  # words
FEW, MANY = 10, 0.05  # stories that have a word that is asked for: a number, and a part of them
VOCAB_FILES, VOCAB_BYTES = 10, 500_000_000  # a vocabulary hardly changes with more

# ---------------------------------------------------------------------------------------------------------
# Download


def open_url(url: str, begin: int) -> tuple[HTTPResponse, int, int]:
    """A response, the byte it begins at (0 where the server can't begin at `begin`) and the size of the file.

    Raises BadFileError. The size is -1 where the server does not tell.
    """
    if not url.startswith(("http://", "https://")):
        raise BadFileError(f"{url}: is no address, allowed http://... and https://...")
    request = urllib.request.Request(url, headers={"Range": f"bytes={begin}-"} if begin else {})
    response = urllib.request.urlopen(request, timeout=60)
    length = int(response.headers.get("Content-Length", -1))
    if response.status != 206:
        return response, 0, length
    found = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
    if not found or int(found[1]) != begin:
        raise BadFileError(
            f"{url}: Content-Range = {response.headers.get('Content-Range')}, asked from {begin}"
        )
    return response, begin, int(found[2])


def receive(url: str, part: Path) -> bool:
    """Gets what is missing of part. Returns whether the file is whole; False where the connection broke."""
    begin = part.stat().st_size if part.exists() else 0
    try:
        response, begin, size = open_url(url, begin)
    except urllib.error.HTTPError as error:
        if error.code == 416 and error.headers.get("Content-Range") == f"bytes */{begin}":
            return True  # nothing is missing
        raise BadFileError(f"{url}: the server says {error.code} {error.reason}") from None
    bar = tqdm(total=size if size > 0 else None, initial=begin, unit="B", unit_scale=True, desc=part.stem)
    with response, part.open("r+b" if begin else "wb") as file, bar:
        file.seek(begin)
        try:
            while data := response.read(1 << 18):
                file.write(data)
                bar.update(len(data))
        except (HTTPException, TimeoutError, ConnectionError):
            return False
        finally:
            file.flush()
            os.fsync(file.fileno())
        if size >= 0 and file.tell() > size:
            raise BadFileError(f"{part}: size = {file.tell()}, allowed {size} by the server; delete it")
        return size < 0 or file.tell() == size


def fetch(url: str, path: Path, tries: int = 5) -> None:
    """Downloads url to path, by way of path.part, which a later call goes on with. Raises BadFileError."""
    part, reason = path.with_name(path.name + ".part"), "the connection broke"
    path.parent.mkdir(parents=True, exist_ok=True)
    for attempt in range(tries):
        time.sleep(attempt and 2**attempt / 4)
        try:
            if receive(url, part):
                part.replace(path)
                return sync(path.parent)
        except urllib.error.URLError as error:
            reason = str(error.reason)
    raise BadFileError(f"{url}: {reason}, {tries} times; what is here is kept, try again")


def extract(archive: Path, folder: Path) -> None:
    """The data*.json of a .tar.gz in a folder that appears once all are there.

    Raises BadFileError, OSError.
    """
    aside = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        with tarfile.open(archive, "r|gz") as tar:
            for member in tqdm(tar, desc="extract", unit=" files"):
                name, source = Path(member.name).name, tar.extractfile(member)
                if source and re.fullmatch(r"data\d+\.json", name):
                    with (aside / name).open("wb") as file:
                        shutil.copyfileobj(source, file, 1 << 20)
    except (tarfile.TarError, EOFError, ZlibError) as error:
        raise BadFileError(f"{archive}: is no whole .tar.gz: {error}; delete it and download again") from None
    aside.replace(folder)
    sync(folder.parent)


def download(data: Path, url: str) -> None:
    """Brings data/TinyStories_all_data here. What is there is not done again."""
    archive, folder = data / f"{FOLDER}.tar.gz", data / FOLDER
    if not folder.exists():
        if not archive.exists():
            fetch(url, archive)
        extract(archive, folder)
    print(f"{folder}: {len(story_files(folder))} files")


# ---------------------------------------------------------------------------------------------------------
# Tokens


def story_files(folder: Path) -> list[Path]:
    """data00.json (validation) and the others (training). Raises BadFileError."""
    files = sorted(folder.glob("data*.json"))
    if len(files) < 2 or files[0].name != "data00.json":
        found = "no folder" if not folder.is_dir() else f"{len(files)} files data*.json"
        raise BadFileError(
            f"{folder}: {found}, allowed data00.json and at least one more: tinystories.py download"
        )
    return files


def train_vocab(folder: Path, vocab_size: int, path: Path, max_bytes: int = VOCAB_BYTES) -> None:
    """Trains a vocabulary on stories of the training split, and writes path and a .bin beside it."""
    files = story_files(folder)[1 : 1 + VOCAB_FILES]
    trained = train_tokenizer(sample(files, FORM, max_bytes), vocab_size, path)
    tokenizers.export_bin(trained, path.with_suffix(".bin"))
    print(f"{path}: {vocab_size} tokens", flush=True)


def llama2_tokenizer() -> Path:
    """Llama 2's tokenizer.model, downloaded once into the hub's cache. Raises BadFileError."""
    from llama.hub import LLAMA2_TOKENIZER, fetched  # here alone a network is needed for tokens

    try:
        return Path(fetched(LLAMA2_TOKENIZER))
    except BadFileError as error:
        raise BadFileError(f"{str(error).rstrip('.')}; or name a copy with --tokenizer") from None


def vocabulary_file(options: argparse.Namespace, folder: Path) -> Path:
    """The tokenizer that is named, Llama 2's, or one of TinyStories' own, trained where it is missing."""
    if options.tokenizer:
        return options.tokenizer
    if options.vocab_size == 0:
        return llama2_tokenizer()
    size = options.vocab_size or VOCAB_SIZE
    path = options.data / f"tok{size}.model"
    if not path.exists():
        print(f"{path}: is not there yet, a vocabulary is trained first", flush=True)
        train_vocab(folder, size, path)
    return path


def pretokenize_stories(options: argparse.Namespace) -> None:
    folder = options.input or options.data / FOLDER
    files = story_files(folder)
    tokenizer, size = tokenizers.load(vocabulary_file(options, folder)), options.vocab_size
    if size and tokenizer.vocab_size != size:
        found = f"vocab_size = {tokenizer.vocab_size}"
        raise BadFileError(f"{tokenizer.path}: {found}, allowed {size} by --vocab_size")
    output = options.output or options.data / f"tok{tokenizer.vocab_size}"
    train, val = Selection(files[1:]), Selection(files[:1])
    meta = pretokenize(output, tokenizer, train, val, FORM, options.workers, options.shard_tokens)
    print_totals(output, meta["splits"])


# ---------------------------------------------------------------------------------------------------------
# Stories on request


def words_of(story: str) -> set[str]:
    """The words of a story that are not names: of small letters, three or more."""
    return set(re.findall(r"\b[a-z]{3,}\b", story))


def request(words: list[str]) -> str:
    """Asks for a story with three words."""
    return "Write a story with the words {}, {} and {}.".format(*words)


def write_requests(files: list[Path], worth: set[str], path: Path) -> None:
    """Writes the stories of files, each as the answer to who asks for three of its words."""
    draw, n = random.Random(1337), 0
    with write_aside(path) as file:
        for story in sample(files, FORM, sys.maxsize):
            words = sorted(words_of(story) & worth)
            if len(words) >= ASKED:
                asked = {"role": "user", "content": request(draw.sample(words, ASKED))}
                messages = [asked, {"role": "assistant", "content": story}]
                file.write(json.dumps({"messages": messages}).encode() + b"\n")
                n += 1
    print(f"{path}: {n:,} stories")


def make_words(folder: Path, output: Path) -> None:
    """Writes output/train.jsonl, and of data00.json val.jsonl.

    What few stories have can't be learnt, and to find what many have says nothing.
    """
    val, *train = story_files(folder)
    each = [words_of(story) for story in sample(train, FORM, sys.maxsize)]
    known = Counter(word for words in each for word in words)
    worth = {word for word, n in known.items() if FEW <= n <= len(each) * MANY}
    output.mkdir(parents=True, exist_ok=True)
    write_requests(train, worth, output / "train.jsonl")
    write_requests([val], worth, output / "val.jsonl")


# ---------------------------------------------------------------------------------------------------------
# The command line


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser(prog="tinystories.py", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    url = f"{os.environ.get('HF_ENDPOINT', HUB)}/{ARCHIVE}"
    for name, about in (
        ("download", "get the stories"),
        ("train_vocab", "train a vocabulary on them"),
        ("pretokenize", "turn them into tokens"),
        ("words", "make conversations of them"),
    ):
        command = commands.add_parser(name, help=about)
        command.add_argument(
            "--data", type=path_type, default=Path("data"), help="folder of it all (%(default)s)"
        )
        if name == "download":
            command.add_argument("--url", default=url, help="of the .tar.gz, for a mirror (%(default)s)")
            continue
        command.add_argument(
            "--input", type=path_type, help=f"folder with data*.json (default: DATA/{FOLDER})"
        )
        if name == "words":
            command.add_argument("--output", type=path_type, help="default: DATA/words")
            continue
        size = command.add_argument("--vocab_size", "--vocab-size", type=int, help="number of tokens (4096)")
        if name == "train_vocab":
            size.default = VOCAB_SIZE
            command.add_argument("--max_bytes", type=int, default=VOCAB_BYTES, help="to read (%(default)s)")
            continue
        size.help = f"of DATA/tok<vocab_size>.model, trained if need be ({VOCAB_SIZE}); 0: Llama 2's"
        command.add_argument("--tokenizer", type=path_type, help="take this one, of any size")
        command.add_argument("--output", type=path_type, help="default: DATA/tok<vocab_size>")
        add_writer_options(command)
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> None:
    options = parse(arguments)
    if options.command == "download":
        download(options.data, options.url)
    elif options.command == "train_vocab":
        path = options.data / f"tok{options.vocab_size}.model"
        train_vocab(options.input or options.data / FOLDER, options.vocab_size, path, options.max_bytes)
    elif options.command == "words":
        make_words(options.input or options.data / FOLDER, options.output or options.data / "words")
    else:
        pretokenize_stories(options)


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv[1:]), "interrupted; run the same command again to go on"))
