"""What a model expects of data: of any vocabulary, where texts meet, whatever stops it; and learning it."""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from runs import losses, validations
from test_dataset import STORIES, write

import llama
from llama.errors import BadFileError, UsageError
from llama.formats import tokenizers
from llama.native import SHIPPED
from training import expecting, pretokenize
from training.expected import check_beside, open_beside, path_of
from training.expecting import Bridge, EngineReader, TorchReader, Writer, expect
from training.shards import HEADER_BYTES, open_split
from training.tokenizers import train as train_tokenizer
from training.windows import Windows

TEXTS = [f"Story {i}: Zoë said \u201cgo\u201d to {i * i} cats. " for i in range(40)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Stories in the tokens of a vocabulary of their own."""
    aside = tmp_path_factory.mktemp("stories")
    lines = "\n".join(map(json.dumps, [*STORIES[:40], *TEXTS]))
    (aside / "text.jsonl").write_text(lines)
    tokenizer = train_tokenizer(STORIES + TEXTS[:9], 340, aside / "tok.model")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretokenize, "BATCH_CHARACTERS", 300)
        write(aside / "tokens", tokenizer, aside / "text.jsonl", shard_tokens=1000)
    return aside / "tokens"


def documents_of(folder: Path) -> list[tuple[list[int], np.ndarray]]:
    """The ids of each document, and the rows beside them."""
    found = []
    for shard in map(open_beside, open_split(folder, "train")):
        for begin, end in itertools.pairwise([0, *shard.ends.tolist()]):
            found.append((shard.read(begin, end).tolist(), shard.expected[begin:end]))
    return found


# --- Rows


def test_rows_are_what_the_model_says_where_its_tokens_and_those_of_the_folder_end_together(folder):
    """The shipped model, of 4096 tokens, beside 340: each row worked out by itself, from the texts."""
    mass = expect(folder, str(SHIPPED), top=40)
    ours, model = tokenizers.load(folder), llama.Llama()
    theirs = tokenizers.load(SHIPPED)
    pieces = theirs.vocabulary.pieces
    together = total = compared = 0
    assert len(open_split(folder, "train")) > 1
    documents = documents_of(folder)
    for ids, rows in documents[::7]:
        text = ours.decode(ids)
        read = theirs.encode(text, bos=True)
        ends = {len(theirs.decode(read[: i + 1]).encode()): i for i in range(len(read))}
        logits = torch.from_numpy(model.logits(read)).double().softmax(dim=1)
        for at in range(len(ids)):
            total += 1
            before = ours.decode(ids[: at + 1]) if at else ""
            row = rows[at]
            if "\ufffd" in before or (row_at := ends.get(len(before.encode()))) is None:
                assert not row["probabilities"].any()
                continue
            together += 1
            wanted, unsure = np.zeros(ours.vocab_size), 0.0
            for token, p in enumerate(logits[row_at].tolist()):
                if token in (theirs.bos_id, theirs.eos_id):
                    wanted[ours.bos_id] += p
                elif token > 2 and p > 1e-6:
                    said = pieces[token].decode(errors="replace")
                    said = said.removeprefix(" ") if at == 0 else said
                    after = ours.encode(before + said)
                    if said and "\ufffd" not in said and after[:at] == ids[1 : at + 1]:
                        wanted[after[at]] += p
                    else:  # the folder would cut the text before it in another way
                        unsure += p
            if unsure > 1e-3:
                continue
            compared += 1
            found = np.zeros(ours.vocab_size)
            found[row["ids"]] = row["probabilities"]
            kept = row["ids"][row["probabilities"] > 0]
            np.testing.assert_allclose(found[kept], wanted[kept], atol=6e-3)
            assert np.delete(wanted, kept).max() <= row["probabilities"].min() + 6e-3
    assert total > together > 0.2 * total
    assert compared > 0.5 * together
    assert 0.2 < mass < together / total + 0.05


def test_a_model_with_the_tokens_of_the_folder_is_told_as_it_is(data, train_here, tmp_path):
    train_here(f"--data={data}", f"--out_dir={tmp_path}", "--max_steps=3")
    expect(data, str(tmp_path / "model.bin"), top=4)
    with llama.Llama(tmp_path / "model.bin") as model:
        (shard,) = open_split(data, "train")
        ids = shard.read(0, int(shard.ends[0])).tolist()
        exact = torch.from_numpy(model.logits(ids)).softmax(dim=1)
    rows = open_beside(shard).expected[: len(ids)]
    values, found = exact.topk(4, dim=1)
    assert (rows["probabilities"] > 0).all()
    np.testing.assert_allclose(rows["probabilities"], values, rtol=2e-3)
    assert (rows["ids"] == found.numpy()).mean() > 0.9  # but for ties


def test_pytorch_says_what_the_engine_does_also_in_parts(data, train_here, tmp_path, monkeypatch):
    monkeypatch.setattr(TorchReader, "PART", 7)
    train_here(f"--data={data}", f"--out_dir={tmp_path}", "--max_steps=3")
    name, ids, folder = str(tmp_path / "model.bin"), [1, *range(259, 285)], tokenizers.load(data)
    readers = EngineReader(name), TorchReader(name, torch.device("cpu"))
    assert readers[0].longest == readers[1].longest == 32
    first, second = (torch.cat(list(reader.logits(ids))) for reader in readers)
    torch.testing.assert_close(first, second, atol=1e-4, rtol=1e-4)
    first, second = (Writer(reader, folder, 9).rows(ids)["probabilities"] for reader in readers)
    assert len(first) == len(ids)
    assert first.all()
    np.testing.assert_allclose(first, second, rtol=2e-3)


def test_tokens_of_parts_of_characters_and_names_lead_nowhere(folder):
    bridge = Bridge(tokenizers.load(SHIPPED), ours := tokenizers.load(folder))
    pieces = bridge.model.vocabulary.pieces
    assert bridge.later[bridge.model.bos_id] == bridge.first[bridge.model.eos_id] == ours.bos_id
    assert bridge.later[0] == ours.vocab_size  # <unk>
    parts = [i for i, piece in enumerate(pieces) if len(piece) == 1 and piece >= b"\x80"]
    assert len(parts) == 128
    assert {*bridge.later[parts], *bridge.first[parts]} == {ours.vocab_size}
    word = pieces.index(b" the")
    assert bridge.later[word] == ours.encode(". the")[len(ours.encode("."))]
    assert bridge.first[word] == ours.encode("the")[0]


def test_beyond_the_models_context_nothing_is_expected(folder, monkeypatch):
    writer = Writer(EngineReader(str(SHIPPED)), tokenizers.load(folder), 4)
    ids = [1, *tokenizers.load(folder).encode(STORIES[6] * 2)]
    whole = writer.rows(ids)
    writer.reader.longest = 9
    cut = writer.rows(ids)
    last = np.flatnonzero(cut["probabilities"].any(axis=1)).max()
    assert 0 < last < len(ids) / 2
    cut, whole = cut["probabilities"], whole["probabilities"]
    np.testing.assert_allclose(cut[: last + 1], whole[: last + 1], atol=1e-3)
    assert whole[last + 1 :].any()


# --- Files


def test_what_was_stopped_goes_on_and_ends_the_same(folder, monkeypatch):
    expect(folder, str(SHIPPED), top=3)
    paths = [path_of(shard) for shard in open_split(folder, "train")]
    whole = [path.read_bytes() for path in paths]
    for path in paths:
        path.unlink()
    rows, calls = Writer.rows, []

    def stopped(self, ids):
        calls.append(len(ids))
        if len(calls) % 5 == 0:
            raise KeyboardInterrupt
        return rows(self, ids)

    monkeypatch.setattr(Writer, "rows", stopped)
    for _ in range(100):
        try:
            expect(folder, str(SHIPPED), top=3)
            break
        except KeyboardInterrupt:
            for part in folder.glob("train/*.part"):  # killed in the middle of a row
                part.write_bytes(part.read_bytes() + b"\1" * 7)
    assert [path.read_bytes() for path in paths] == whole
    documents = sum(len(shard.ends) for shard in open_split(folder, "train"))
    assert len(calls) - documents == (len(calls) // 5)
    assert not list(folder.glob("train/*.part"))
    calls.clear()
    expect(folder, str(SHIPPED), top=3)
    assert not calls  # nothing is done twice


def test_another_model_of_the_same_name_is_read_anew(folder, tmp_path):
    model = tmp_path / "model.bin"
    model.write_bytes(SHIPPED.read_bytes())
    expect(folder, str(model), top=1)
    shard = open_split(folder, "train")[0]
    first = path_of(shard).stat().st_mtime_ns
    expect(folder, str(model), top=1)
    assert path_of(shard).stat().st_mtime_ns == first
    os.utime(model, (1, 1))
    expect(folder, str(model), top=1)
    assert path_of(shard).stat().st_mtime_ns != first


def test_texts_that_a_model_can_not_spell_are_said(folder, monkeypatch):
    monkeypatch.setattr(expecting, "places", lambda ids, pieces, text: None)
    with pytest.raises(BadFileError, match=r"its texts are none that the tokens of .*stories\.bin spell"):
        expect(folder, str(SHIPPED), top=5)


def test_a_file_that_is_not_what_was_written_is_refused(folder):
    expect(folder, str(SHIPPED), top=2)
    shard = open_split(folder, "train")[0]
    path = path_of(shard)
    good = path.read_bytes()
    head = json.loads(good[:HEADER_BYTES])

    def refused(message: str, data: bytes | None = None, **changes: object) -> None:
        if data is None:
            data = json.dumps(head | changes).encode().ljust(HEADER_BYTES) + good[HEADER_BYTES:]
        path.write_bytes(data)
        with pytest.raises(BadFileError, match=message):
            open_beside(shard)

    refused("n_tokens = 3, allowed", n_tokens=3)
    refused("tokens_crc32 = 5, allowed", tokens_crc32=5)
    refused("vocab_size = 9, allowed 340", vocab_size=9)
    refused("top = 0, allowed 1, and 1 to 256", top=0)
    refused("version = 2", version=2)
    refused("is not what dataset.py expect writes", top="2")
    refused("size = ", good[:-1])
    refused("is not what dataset.py expect writes", b"")
    refused("is not what dataset.py expect writes", b"[" * 5000)

    def misread(message: str, row: bytes) -> None:
        path.write_bytes(good[:HEADER_BYTES] + 20 * row + good[HEADER_BYTES + 20 * len(row) :])
        with pytest.raises(BadFileError, match=message):
            Windows([open_beside(shard)], 4, seed=1).take(np.arange(len(shard.tokens) // 4 - 1))
        with pytest.raises(BadFileError, match=message):
            check_beside(shard)

    for values in ((np.nan, 0), (-0.1, 0), (0.9, 0.9), (np.inf, 0)):
        row = np.array([1, 2], "<u2").tobytes() + np.array(values, "<f2").tobytes()
        misread("has a row that is no probabilities", row)
    misread("token id = 340, allowed 0 to 339", np.array([1, 340, 0, 0], "<u2").tobytes())
    path.write_bytes(good)
    check_beside(shard)
    path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(BadFileError, match=r"crc32 = \d+, allowed \d+ by its header"):
        check_beside(shard)
    path.unlink()
    with pytest.raises(BadFileError, match=r"is missing; write it: python dataset\.py expect .* --model"):
        open_beside(shard)


def test_what_can_not_be_expected_is_refused(folder, tmp_path, monkeypatch):
    for top in (0, 257):
        with pytest.raises(UsageError, match=f"top = {top}, allowed 1 to 256"):
            expect(folder, str(SHIPPED), top=top)
    with pytest.raises(BadFileError, match="holds neither"):
        expect(tmp_path, str(SHIPPED), top=1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match="device = 'cuda', but PyTorch finds no CUDA device"):
        expect(folder, str(SHIPPED), top=1, device="cuda")
    with pytest.raises(BadFileError, match="nothing here"):
        expect(folder, str(tmp_path / "nothing here.bin"), top=1)


# --- Learning


def test_windows_bring_the_rows_of_their_tokens(folder):
    expect(folder, str(SHIPPED), top=3)
    shards = [open_beside(shard) for shard in open_split(folder, "train")]
    rows = np.concatenate([shard.expected for shard in shards])
    stream = np.concatenate([shard.tokens for shard in shards])
    windows = Windows(shards, 37, seed=3)
    index = np.arange(len(windows))
    tokens, targets, _, ids, probabilities = windows.take(index)
    for n, begin in enumerate(windows.begins(index)):
        here = slice(begin, begin + 37)
        assert tokens[n].tolist() == stream[here].tolist()
        assert targets[n].tolist() == stream[begin + 1 : begin + 38].tolist()
        assert ids[n].tolist() == rows["ids"][here].tolist()
        assert probabilities[n].tolist() == rows["probabilities"][here].tolist()


def test_learning_what_is_stored_is_learning_of_the_teacher(data, train_here, tmp_path):
    """Of a teacher with the same tokens, all of which are kept: rounding to float16 apart."""
    said = ["--max_steps=4", "--eval_interval=2", "--micro_batch_size=4", "--documents", f"--data={data}"]
    train_here(
        f"--out_dir={tmp_path / 'teacher'}",
        *said,
        "--max_steps=30",
        "--learning_rate=1e-2",
        "--warmup_steps=1",
    )
    teacher = tmp_path / "teacher" / "model.bin"
    expect(data, str(teacher), top=256)
    runs = {
        "online": [f"--teachers={teacher}"],
        "stored": ["--teachers=stored"],
        "none": [],
    }
    for name, more in runs.items():
        train_here(f"--out_dir={tmp_path / name}", *said, "--teacher_share=0.8", *more)
    online, stored, none = (losses(tmp_path / name) for name in runs)
    assert list(stored.values()) == pytest.approx(list(online.values()), rel=2e-4)
    assert none[1] != pytest.approx(online[1], rel=1e-3)
    assert validations(tmp_path / "stored")[0] == validations(tmp_path / "none")[0]


def test_a_run_without_what_is_stored_is_refused(data, train_here, tmp_path):
    (shard,) = open_split(data, "train")
    path_of(shard).unlink(missing_ok=True)
    said = [f"--data={data}", f"--out_dir={tmp_path}", "--max_steps=1", "--teachers=stored"]
    with pytest.raises(BadFileError, match=r"00000\.expected: is missing"):
        train_here(*said)
    train_here(*said, "--eval_only=True")


def test_pairs_have_no_teacher_that_is_stored():
    from training.objectives import objective_of

    with pytest.raises(UsageError, match="teachers = stored, allowed '' with data of pairs"):
        objective_of("pairs", SimpleNamespace(teachers="stored"))
