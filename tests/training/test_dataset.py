"""dataset.py: what is written is what was read, windows cover it exactly, and nothing gets lost."""

import json
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import ROOT, cpu_of, finish, uncounted
from hypothesis import given, settings
from hypothesis import strategies as st

import dataset as program
from llama import files
from llama.errors import BadFileError, ResourceError, UsageError
from llama.formats import tokenizers
from model import IGNORE
from training import parts, shards, windows
from training import pretokenize as dataset
from training.batches import Batches
from training.parts import Part
from training.pretokenize import Selection
from training.shards import open_split
from training.text import Format, text_files
from training.tokenizers import train as train_tokenizer
from training.windows import Windows, val_documents, val_windows

STORIES = [f"Story {i}.\n The cat {'sat  on the mat, ' * (i % 7)}and ran {i * i} times. " for i in range(300)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return train_tokenizer(STORIES, 320, tmp_path_factory.mktemp("tokenizer") / "tok.model")


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    for i in range(3):
        (folder / f"{i}.jsonl").write_text("\n".join(map(json.dumps, STORIES[i * 100 : i * 100 + 100])))
    return folder


@pytest.fixture(scope="module", autouse=True)
def small_batches():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dataset, "BATCH_CHARACTERS", 300)
        yield


def write(folder, tokenizer, text, **options):
    files = text_files([text])
    train, val = Selection(files, 10, False), Selection(files, 10)
    return dataset.pretokenize(folder, tokenizer, train, val, Format(), **{"workers": 1} | options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer, text) -> Path:
    path = tmp_path_factory.mktemp("data") / "tokens"
    write(path, tokenizer, text, shard_tokens=2500)
    return path


def stream(folder, split="train") -> np.ndarray:
    return np.concatenate([shard.tokens for shard in open_split(folder, split)])


def texts(shards, tokenizer) -> list[str]:
    spans = [(s, b, e) for s in shards for b, e in zip([0, *s.ends[:-1]], s.ends, strict=True)]
    return [tokenizer.decode(s.tokens[int(b) : int(e)]) for s, b, e in spans]


def shard_of(tmp_path, tokens, vocab_size=100, bos=1):
    """A shard in memory, without a file."""
    tokens = np.asarray(tokens, dtype=shards.token_type(vocab_size))
    ends = np.append(np.flatnonzero(tokens == bos)[1:], len(tokens)).astype(np.uint64)
    return shards.Shard(tmp_path / "x.tokens", tokens, ends, vocab_size, "", bos, len(tokens))


# --- Shards


def test_shards_decode_to_the_documents_and_each_is_in_one_split(folder, tokenizer):
    held = [story for i, story in enumerate(STORIES) if (i // 100 + i % 100) % 10 == 0]
    assert len(open_split(folder, "train")) > 2
    assert texts(open_split(folder, "val"), tokenizer) == held
    assert texts(open_split(folder, "train"), tokenizer) == [s for s in STORIES if s not in held]


def test_each_document_begins_with_bos_and_has_no_eos(folder, tokenizer):
    for shard in open_split(folder, "train"):
        assert shard.tokens[0] == tokenizer.bos_id
        assert np.array_equal(np.flatnonzero(shard.tokens == tokenizer.bos_id)[1:], shard.ends[:-1])
        assert tokenizer.eos_id not in shard.tokens


def test_bytes_are_those_of_the_text(folder):
    count = sum(shard.n_bytes for split in ("train", "val") for shard in open_split(folder, split))
    assert count == sum(len(story.encode()) for story in STORIES)


def test_tokens_are_mapped_and_take_two_bytes_or_four_by_the_vocabulary(folder):
    assert isinstance(open_split(folder, "val")[0].tokens, np.memmap)
    assert shards.token_type(1 << 16) == np.uint16
    assert shards.token_type((1 << 16) + 1) == np.uint32


def test_two_workers_write_the_same_bytes_as_one(folder, tokenizer, text, tmp_path):
    write(tmp_path / "two", tokenizer, text, workers=2, shard_tokens=2500)
    names = sorted(p.relative_to(folder) for p in folder.rglob("*") if p.is_file())
    assert names == sorted(
        p.relative_to(tmp_path / "two") for p in (tmp_path / "two").rglob("*") if p.is_file()
    )
    for name in names:
        assert (folder / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name


def test_a_run_that_fails_half_way_is_gone_on_with(folder, tokenizer, text, tmp_path, monkeypatch):
    encode, left = dataset.encode_batch, [40]

    def failing(*arguments):
        left[0] -= 1
        if left[0] == 0:
            raise OSError(28, "No space left on device")
        return encode(*arguments)

    monkeypatch.setattr(dataset, "encode_batch", failing)
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path, tokenizer, text, shard_tokens=2500)
    with pytest.raises(BadFileError, match="not finished; run the same pretokenize again"):
        open_split(tmp_path, "train")
    done = len(list((tmp_path / "train").glob("*.tokens")))
    assert done >= 1
    left[0] = 10**9
    write(tmp_path, tokenizer, text, shard_tokens=2500)
    assert 10**9 - left[0] < 80 - done  # what was there was not done again
    for split in ("train", "val"):
        assert np.array_equal(stream(tmp_path, split), stream(folder, split))


def test_an_interrupt_keeps_all_that_was_encoded(folder, tokenizer, text, tmp_path, monkeypatch):
    encode, count = dataset.encode_batch, [0]

    def interrupting(*arguments):
        count[0] += 1
        if count[0] == 40:
            os.kill(os.getpid(), signal.SIGINT)
        return encode(*arguments)

    monkeypatch.setattr(dataset, "encode_batch", interrupting)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, tokenizer, text)
    assert count[0] == 40
    write(tmp_path, tokenizer, text)
    assert len(open_split(tmp_path, "train")) == 2
    assert np.array_equal(stream(tmp_path), stream(folder))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_finished_folder_is_left_alone(folder, tokenizer, text):
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*.tokens")}
    write(folder, tokenizer, text, shard_tokens=2500)
    assert before == {p: p.stat().st_mtime_ns for p in folder.rglob("*.tokens")}


# --- Parts


def write_part(folder: Path, tokenizer, text: Path, part: Part, every: int = 10) -> None:
    files = text_files([text])
    train, val = Selection(files, every, False, part), Selection(files, every, part=part)
    dataset.pretokenize(folder / part.folder, tokenizer, train, val, Format(), 1, 1000)


@pytest.mark.parametrize("of", [2, 7])
def test_parts_are_merged_to_what_one_run_writes(folder, tokenizer, text, tmp_path, of):
    for number in range(of, 0, -1):
        write_part(tmp_path, tokenizer, text, Part(number, of))
    assert max(path.stat().st_size for path in tmp_path.glob("part-*/train/*")) < 4096 + 40_000 // of
    meta = parts.merge(tmp_path)
    for split in ("train", "val"):
        assert np.array_equal(stream(tmp_path, split), stream(folder, split))
        whole, found = (open_split(place, split) for place in (folder, tmp_path))
        assert texts(found, tokenizer) == texts(whole, tokenizer)
        assert dataset.totals(found) == meta["splits"][split]
    assert {key: value for key, value in meta.items() if key != "splits"} == {
        key: value for key, value in shards.read_meta(folder).items() if key != "splits"
    }
    assert not list(tmp_path.glob("part-*"))
    assert parts.merge(tmp_path) == meta


def test_a_file_in_which_documents_have_no_place_is_of_one_part(tokenizer, tmp_path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    inputs = tmp_path / "inputs"
    inputs.mkdir()
    for i in range(3):
        (inputs / f"{i}.txt").write_text(STORIES[i])
    parquet.write_table(pyarrow.table({"text": STORIES}), inputs / "3.parquet")
    write(tmp_path / "one", tokenizer, inputs)
    for number in (1, 2, 3):
        write_part(tmp_path / "parts", tokenizer, inputs, Part(number, 3))
    parts.merge(tmp_path / "parts")
    assert np.array_equal(stream(tmp_path / "parts"), stream(tmp_path / "one"))


def test_a_merge_that_was_stopped_goes_on(folder, tokenizer, text, tmp_path, monkeypatch):
    for number in (1, 2):
        write_part(tmp_path, tokenizer, text, Part(number, 2))
    with monkeypatch.context() as patch:
        patch.setattr(parts, "write_meta", lambda *_: pytest.fail("stopped"))
        with pytest.raises(pytest.fail.Exception):
            parts.merge(tmp_path)
    parts.merge(tmp_path)
    assert np.array_equal(stream(tmp_path), stream(folder))


def test_parts_that_are_none_are_refused_by_name(tokenizer, text, tmp_path):
    with pytest.raises(UsageError, match="part = '0/4', allowed I/N"):
        parts.parse_part("0/4")
    assert parts.parse_part("3/16").folder == "part-03-of-16"
    with pytest.raises(BadFileError, match="parts = 0"):
        parts.merge(tmp_path)
    write_part(tmp_path, tokenizer, text, Part(1, 3))
    with pytest.raises(BadFileError, match="part-2-of-3: is missing, --part 2/3 writes it"):
        parts.merge(tmp_path)
    write_part(tmp_path, tokenizer, text, Part(2, 3))
    write_part(tmp_path, tokenizer, text, Part(3, 3), every=5)
    with pytest.raises(BadFileError, match=r"part-3-of-3: source is another than in .*part-1-of-3"):
        parts.merge(tmp_path)
    write_part(tmp_path, tokenizer, text, Part(1, 2))
    with pytest.raises(BadFileError, match="holds parts of 2 and of 3"):
        parts.merge(tmp_path)


def test_a_killed_worker_is_an_error_and_not_a_wait(tokenizer):
    def batches():
        for i in range(100):
            yield dataset.Batch(["some text"])
            for child in multiprocessing.active_children() if i == 3 else ():
                child.kill()

    with pytest.raises(OSError, match="a worker was killed"):
        list(dataset.encode_all(tokenizer, batches(), workers=2))


def test_an_error_in_a_worker_is_raised_here(tokenizer):
    batches = [dataset.Batch(["fine"]), dataset.Batch([None])]
    with pytest.raises(AttributeError):
        list(dataset.encode_all(tokenizer, iter(batches), workers=2))


def test_only_so_many_batches_are_under_way(tokenizer):
    read = [0]

    def batches():
        for _ in range(50):
            read[0] += 1
            yield dataset.Batch(["some text"])

    for done, _ in enumerate(dataset.encode_all(tokenizer, batches(), workers=2)):
        assert read[0] <= done + 6


# --- Command lines on bad input: one line, and an exit code


def run(*arguments, limit: int = 0) -> subprocess.CompletedProcess:
    """Runs dataset.py; limit: the size of a file at which the system refuses to write on."""

    def refuse():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    command = [sys.executable, ROOT / "dataset.py", *map(str, arguments)]
    return finish(
        command,
        capture_output=True,
        text=True,
        env=uncounted() if limit else None,
        preexec_fn=refuse if limit else None,
    )


def assert_refused(result, code, says):
    line = result.stderr.strip().splitlines()[-1]  # after a progress bar, perhaps
    assert result.returncode == code, result.stderr
    assert line.startswith("error: "), result.stderr
    assert says in line, line
    assert "Traceback" not in result.stderr


def test_a_disk_that_fills_is_one_line_and_loses_nothing(tokenizer, text, folder, tmp_path):
    options = ["pretokenize", "--input", text, "--tokenizer", tokenizer.path, "--output", tmp_path / "d"]
    options += ["--val_every", 10, "--workers", 1]
    assert_refused(run(*options, limit=15000), ResourceError.code, "File too large")
    assert not list(tmp_path.rglob("*.tmp"))
    assert run(*options).returncode == 0
    assert np.array_equal(stream(tmp_path / "d"), stream(folder))


def test_reverse_is_learnable_from_its_folder_alone(tmp_path):
    result = run("reverse", "--output", tmp_path / "r", "--count", 500, "--val_count", 50)
    assert result.returncode == 0, result.stderr
    tokenizer = tokenizers.load(tmp_path / "r")
    lines = {split: texts(open_split(tmp_path / "r", split), tokenizer) for split in ("train", "val")}
    assert [len(lines["train"]), len(lines["val"])] == [500, 50]
    assert not set(lines["train"]) & set(lines["val"])
    for line in lines["train"] + lines["val"]:
        word, _, reverse = line.partition("=")
        assert reverse == word[::-1]
        assert 3 <= len(word) <= 12
        assert len(tokenizer.encode(line)) == len(line) + 1  # a token a letter
    assert_refused(run("reverse", "--output", tmp_path / "r", "--count", 9), 3, "made with other options")


def test_bad_input_is_refused_in_one_line(tokenizer, text, folder, tmp_path):
    (tmp_path / "empty.txt").write_text("  \n")
    (tmp_path / "one.txt").write_text("one document")
    start = ["pretokenize", "--tokenizer", tokenizer.path, "--output", tmp_path / "d", "--input"]
    assert_refused(run(*start, tmp_path / "none"), 3, "is missing")
    assert_refused(run(*start, tmp_path / "empty.txt"), 3, "val documents = 0")
    assert_refused(
        run(*start[:4], tmp_path / "e", "--input", tmp_path / "one.txt"),
        3,
        "train documents = 0, all went to val",
    )
    assert_refused(run(*start[:4], folder, "--input", text), 3, "holds tokens of other input or options")
    assert_refused(run(*start, text, "--val", text), 3, "is in --input and in --val")
    assert_refused(run("info", tmp_path / "nowhere"), 3, "is no folder")
    assert_refused(run("info"), 2, "folder")
    assert_refused(run(*start, text, "--val_every", 1), 2, "val_every = 1, allowed 2 or more")
    assert_refused(run(*start, text, "--workers", -1), 2, "error: workers = -1, allowed 0 to 1024")
    assert_refused(run(*start, text, "--shard_tokens", 0), 2, "error: shard_tokens = 0, allowed 1 or more")
    assert_refused(run(*start, text, "--part", "1/" + "9" * 5000), 2, "allowed I/N, I from 1 to N")
    chat = ["chat", "--input", text, "--model", tokenizer.path, "--output", tmp_path / "d"]
    assert_refused(run(*chat, "--show", -1), 2, "show = -1, allowed 0 to")


REVERSED = {
    "--seed=-1": "seed = -1, allowed 0 to 18446744073709551615",
    "--seed=18446744073709551616": "seed = 18446744073709551616, allowed 0 to",
    "--count=0": "count = 0, allowed 1 to 2147483647",
    "--val_count=-1": "val_count = -1, allowed 1 to 2147483647",
}


@pytest.mark.parametrize("option", REVERSED)
def test_a_toy_task_that_can_not_be_is_refused_by_name(tmp_path, option):
    with pytest.raises(UsageError) as error:
        program.main(["reverse", f"--output={tmp_path / 'r'}", option])
    assert str(error.value).startswith(REVERSED[option])
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    "line",
    [
        "expect|--model=x|",
        "merge|",
        "info|",
        "reverse|--output=",
        "pretokenize|--input=|--tokenizer=t|--output=d",
        "pretokenize|--input=x|--tokenizer=|--output=d",
        "pretokenize|--input=x|--tokenizer=t|--output=",
        "pretokenize|--input=x|--tokenizer=t|--output=d|--val=",
        "chat|--input=|--model=m|--output=d",
        "chat|--input=x|--model=|--output=d",
    ],
)
def test_a_path_that_is_empty_is_refused(capsys, line):
    with pytest.raises(SystemExit):
        program.main(line.split("|"))
    assert "is empty, allowed is a path" in capsys.readouterr().err


def test_a_second_run_into_one_folder_is_refused(tokenizer, text, tmp_path):
    with files.lock_folder(tmp_path), pytest.raises(BadFileError, match="another run is writing here"):
        write(tmp_path, tokenizer, text)


def test_tokens_of_another_tokenizer_are_not_mixed(folder, text, tmp_path):
    other = train_tokenizer(STORIES, 330, tmp_path / "other.model")
    with pytest.raises(BadFileError, match="holds tokens of another tokenizer"):
        write(folder, other, text, shard_tokens=2500)


def changed_head(data: bytes, **fields: object) -> bytes:
    """A shard with other fields in its header."""
    return json.dumps(json.loads(data[:4096]) | fields).encode().ljust(4096) + data[4096:]


def damaged(folder, tmp_path, change) -> Path:
    """A copy of a folder in which the first shard of the training split was changed."""
    for path in folder.rglob("*"):
        if path.is_file():
            (tmp_path / path.relative_to(folder)).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path.relative_to(folder)).write_bytes(path.read_bytes())
    shard = tmp_path / "train" / "00000.tokens"
    shard.write_bytes(change(shard.read_bytes()))
    return tmp_path


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda data: data[:-8], "size = "),
        (lambda data: data + b"x", "size = "),
        (lambda data: b"garbage" + data[7:], "is no shard of tokens"),
        (lambda data: data.replace(b'"version": 1', b'"version": 9'), "version = 9, allowed 1"),
        (
            lambda data: data.replace(b'"vocab_size": 320', b'"vocab_size": 319'),
            "vocab_size = 319, allowed 320",
        ),
        (lambda data: data.replace(b'"tokenizer_hash": "', b'"tokenizer_hash":"x'), "tokenizer_hash = x"),
        (lambda data: data[:-8] + bytes(8), "last document end = 0"),
        (lambda data: b"[" * 4096 + data[4096:], "its header is damaged .(it is nested too|Expecting value)"),
        (lambda data: b"[]".ljust(4096) + data[4096:], "its header is damaged .it is no JSON object"),
        (lambda data: changed_head(data, n_documents=0), "n_documents = 0, allowed whole numbers from 1"),
        (lambda data: changed_head(data, n_documents="5"), "n_documents = '5', allowed whole"),
        (lambda data: changed_head(data, n_bytes=[]), r"n_bytes = \[\], allowed whole"),
        (lambda data: changed_head(data, next=[0]), r"next = \[0\], allowed"),
        (lambda data: b"", "is no shard of tokens"),
    ],
)
def test_a_corrupt_shard_is_refused_when_it_is_opened(folder, tmp_path, change, says):
    with pytest.raises(BadFileError, match=says):
        open_split(damaged(folder, tmp_path, change), "train")


@pytest.mark.parametrize(
    "data", ["[]", "5", "null", "[" * 100_000, '{"splits": 5}', '{"splits": {"train": {"shards": 0}}}', "{}"]
)
def test_a_broken_meta_json_is_refused_in_one_line(folder, tmp_path, data):
    bad = damaged(folder, tmp_path, lambda shard: shard)
    (bad / "meta.json").write_text(data)
    with pytest.raises(BadFileError, match=r"meta\.json: is no description of tokens: ") as raised:
        open_split(bad, "train")
    assert "\n" not in str(raised.value)


def test_a_shard_that_is_gone_is_refused(folder, tmp_path):
    bad = damaged(folder, tmp_path, lambda data: data)
    (bad / "train" / "00001.tokens").unlink()
    with pytest.raises(BadFileError, match=r"00001\.tokens: is missing"):
        open_split(bad, "train")


def test_a_flipped_bit_is_found_by_check(folder, tmp_path):
    bad = damaged(folder, tmp_path, lambda data: data[:5000] + bytes([data[5000] ^ 1]) + data[5001:])
    with pytest.raises(BadFileError, match="crc32 = "):
        shards.check_shard(open_split(bad, "train")[0])
    for shard in open_split(folder, "train"):
        shards.check_shard(shard)


def test_the_checksum_of_a_large_shard_is_of_all_after_the_header(tmp_path):
    data = np.arange(1 << 20, dtype=np.uint64).tobytes()  # 8 MiB, read in parts
    (tmp_path / "large").write_bytes(bytes(shards.HEADER_BYTES) + data)
    assert shards.checksum(tmp_path / "large") == zlib.crc32(data)


def test_an_id_past_the_vocabulary_is_refused_when_it_is_read(tmp_path):
    batches = Batches(Windows([shard_of(tmp_path, [1, 2, 3, 200, 4, 5])], 5, seed=0), 1)
    with pytest.raises(BadFileError, match="token id = 200, allowed 0 to 99"):
        batches.at(0)


def test_headerless_shards_of_llama2c_are_read(tmp_path):
    folder = tmp_path / "tok64"
    folder.mkdir()
    for i in range(3):
        np.array([1, 10 + i, 5, 1, 6], dtype=np.uint16).tofile(folder / f"data0{i}.bin")
    assert [s.tokens[1] for s in open_split(folder, "val")] == [10]
    shards = open_split(folder, "train")
    assert [s.tokens[1] for s in shards] == [11, 12]
    assert (shards[0].vocab_size, list(shards[0].ends), shards[0].n_bytes) == (64, [3, 5], None)


# --- Windows


@settings(max_examples=100, deadline=None)
@given(n=st.integers(1, 3000), seed=st.integers(0, 2**64 - 1))
def test_permute_is_a_permutation(n, seed):
    keys = np.random.default_rng(seed).integers(0, 2**64, windows.ROUNDS, dtype=np.uint64)
    assert np.array_equal(np.sort(windows.permute(np.arange(n), n, keys)), np.arange(n))


def test_permute_mixes_and_needs_no_memory_for_billions():
    keys = np.random.default_rng(1).integers(0, 2**64, windows.ROUNDS, dtype=np.uint64)
    out = windows.permute(np.arange(10_000), 10**12, keys).astype(float) / 1e12
    assert np.abs(np.histogram(out, 10, (0, 1))[0] - 1000).max() < 150  # five standard deviations
    assert abs(np.corrcoef(out[:-1], out[1:])[0, 1]) < 0.05


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_each_window_of_an_epoch_is_seen_once_by_one_rank(tmp_path, world_size):
    shards = [shard_of(tmp_path, np.arange(a, b), 1 << 20) for a, b in ((0, 501), (501, 777), (777, 1003))]
    found = Windows(shards, 10, seed=7)
    ranks = [Batches(found, 4, rank, world_size) for rank in range(world_size)]
    assert len(found) == 99
    rows = torch.cat([ranks[r].at(step)[0] for step in range(99) for r in range(world_size)])
    orders = []
    for epoch in rows.split(99):  # 4 epochs, with borders inside a step
        firsts = epoch[:, 0]
        offset = int(firsts.min())
        assert sorted(firsts.tolist()) == [offset + 10 * i for i in range(99)]
        assert torch.equal(epoch, firsts[:, None] + torch.arange(10))
        orders.append((firsts - offset).tolist())
    assert len({tuple(order) for order in orders}) == 4
    assert len({int(epoch.min()) for epoch in rows.split(99)}) > 1  # offsets


def test_a_step_has_the_same_windows_in_the_same_order_on_any_number_of_ranks(folder):
    shards = open_split(folder, "train")
    found = Windows(shards, 16, 3, documents=True)
    alone = Batches(found, 12)
    for world_size in (2, 3, 12):
        ranks = [Batches(found, 12, rank, world_size) for rank in range(world_size)]
        for step in (0, 5, 12345):
            for whole, *shares in zip(alone.at(step), *(rank.at(step) for rank in ranks), strict=True):
                assert torch.equal(whole, torch.cat(shares))


def test_targets_are_the_next_tokens_and_seeds_differ(folder):
    shards = open_split(folder, "train")
    tokens, targets, doc_ids = Batches(Windows(shards, 32, 1), 8).at(3)
    assert tokens.shape == targets.shape == (8, 32)
    assert tokens.dtype == targets.dtype == torch.int64
    assert doc_ids is None
    assert torch.equal(tokens[:, 1:], targets[:, :-1])
    assert not torch.equal(tokens, Batches(Windows(shards, 32, 2), 8).at(3)[0])
    assert torch.equal(tokens, Batches(Windows(shards, 32, 1), 8).at(3)[0])


def test_documents_are_numbered_from_one_bos_to_the_next(tmp_path):
    shards = [shard_of(tmp_path, [1, 5, 6, 1, 7]), shard_of(tmp_path, [1, 8, 9, 9])]
    tokens, _, doc_ids = Batches(Windows(shards, 8, 0, documents=True), 1).at(0)
    assert tokens.tolist() == [[1, 5, 6, 1, 7, 1, 8, 9]]
    assert doc_ids.tolist() == [[1, 1, 1, 2, 2, 3, 3, 3]]


def test_what_can_not_be_cut_into_windows_is_refused(tmp_path):
    shards = [shard_of(tmp_path, range(10))]
    assert Windows(shards, 9, 0).take(np.array([0]))[1].tolist() == [list(range(1, 10))]
    with pytest.raises(BadFileError, match="seq_len = 10, allowed 1 to 9"):
        Windows(shards, 10, 0)
    with pytest.raises(BadFileError, match="allowed multiples of world_size = 2"):
        Batches(Windows(shards, 2, 0), 3, world_size=2)


@pytest.mark.parametrize("world_size", [1, 3])
@pytest.mark.parametrize("seq_len", [1, 7, 64, 10**5])
def test_val_windows_count_each_target_once_in_order(folder, seq_len, world_size):
    shards, tokens = open_split(folder, "train"), torch.from_numpy(stream(folder).astype(np.int64))
    seq_len = min(seq_len, 2 * len(tokens))
    ranks = [list(val_windows(shards, seq_len, rank, world_size)) for rank in range(world_size)]
    assert len({len(windows) for windows in ranks}) == 1  # a rank with fewer would leave the others waiting
    windows = [ranks[i % world_size][i // world_size] for i in range(sum(map(len, ranks)))]
    targets = torch.cat([t for _, t in windows])
    inputs = torch.cat([t for t, _ in windows])
    assert {t.shape for pair in windows for t in pair} == {(seq_len,)}
    assert torch.equal(targets[targets != IGNORE], tokens[1:])
    assert torch.equal(inputs[targets != IGNORE], tokens[:-1])


def test_val_documents_stand_alone_and_say_what_they_leave_out(tmp_path):
    shards = [shard_of(tmp_path, [1, 5, 6, 7, 1, 8]), shard_of(tmp_path, [1, 9, 9])]
    got = [(a.tolist(), b.tolist(), left) for a, b, left in val_documents(shards, 2)]
    assert got == [([1, 5], [5, 6], 1), ([1], [8], 0), ([1, 9], [9, 9], 0)]
    assert len(list(val_documents(shards, 2, rank=1, world_size=2))) == 1


def test_a_batch_of_a_billion_tokens_costs_as_one_of_a_million(tmp_path):
    def cost(n: int) -> float:
        path = tmp_path / f"{n}.bin"
        with path.open("wb") as file:
            file.truncate(2 * n)  # sparse: takes no room on disk
        tokens = np.memmap(path, "<u2", "r")
        shard = shards.Shard(path, tokens, np.array([n], np.uint64), 100, "", 1, None)
        batches = Batches(Windows([shard], 256, 0), 32)
        return min(cpu_of(lambda: batches.at(10**6)) for _ in range(3))

    assert cost(10**9) < 10 * cost(10**6)
