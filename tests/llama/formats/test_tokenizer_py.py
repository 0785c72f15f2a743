"""tokenizer.py: against sentencepiece, tiktoken and the C engine, and on hostile files."""

import base64
import io
import json
import math
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from gguf_files import SMALL, random_source
from helpers import ROOT, environment, write_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from references import smollm2_path
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from torch_formats import export_bin, export_v3

import llama
import tokenizer as program
from llama import command, files, names
from llama.errors import BadFileError
from llama.formats import tokenizers
from llama.formats import vocabulary as tokens
from llama.formats.sentencepiece_model import KEEPS_SPACES
from llama.formats.split_patterns import LLAMA3_PATTERN
from llama.formats.tokenizer_json_writer import write_tokenizer as write_json
from model import Config
from training import text as reading
from training.text import Format, read_documents, text_files
from training.tokenizers import train as train_tokenizer

TEXTS = [
    "Once upon a time, there was a little girl named Lily.\nShe loved to play.\n\n  in 1234 parks  ",
    "def f(x):\n\treturn  x + 1\n",
    "Où êtes-vous? 世界 \U0001f600",
    "the cat sat on the mat and the dog ran to the big red ball ",
]
PLAIN = Format()
anything = st.text(
    st.characters(exclude_categories=["Cs"]) | st.sampled_from("  \n\tthe cat▁<s>"), max_size=60
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return train_tokenizer(TEXTS * 3, 340, tmp_path_factory.mktemp("tokenizer") / "tok.model")


@pytest.fixture(scope="module")
def engine(trained):
    path = trained.path.with_suffix(".bin")
    tokenizers.export_bin(trained, path)
    return llama.Tokenizer(path)


@pytest.fixture(scope="module")
def llama3(tmp_path_factory):
    """A tokenizer.model in Llama 3's form: the 256 bytes and some merges."""
    merges = [b"th", b"the", b" t", b" the", b"ll", b"llo", b"he", b"hello", b"  ", b"12", b"123"]
    tokens = [bytes([byte]) for byte in range(256)] + merges
    path = tmp_path_factory.mktemp("llama3") / "tokenizer.model"
    path.write_bytes(b"".join(base64.b64encode(t) + b" %d\n" % i for i, t in enumerate(tokens)))
    return tokenizers.load(path)


def refused(capfd, *arguments) -> str:
    """Runs the command line, which must fail with one line on stderr."""
    assert command.run_command(lambda: program.main([str(a) for a in arguments])) != 0
    error = capfd.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    return error


# --- sentencepiece


def test_the_trained_vocabulary_has_the_size_asked_for_and_llama_ids(trained):
    assert (trained.vocab_size, trained.bos_id, trained.eos_id) == (340, 1, 2)
    assert trained.model.id_to_piece(3 + 10) == "<0x0A>"


def test_ids_are_those_of_the_sentencepiece_library(trained):
    sp = SentencePieceProcessor(model_file=str(trained.path))
    for text in TEXTS:
        assert trained.encode(text, bos=True, eos=True) == [1, *sp.encode(text), 2]


@settings(max_examples=300, deadline=None)
@given(text=anything)
def test_the_engine_gives_the_same_ids(trained, engine, text):
    assert engine.encode(text, bos=False) == trained.encode(text)


@settings(max_examples=300, deadline=None)
@given(text=anything.filter(lambda text: "▁" not in text))
def test_decode_gives_back_the_text_with_all_its_whitespace(trained, text):
    assert trained.decode(trained.encode(text, bos=True, eos=True)) == text


def test_a_lone_surrogate_counts_as_a_replacement_character(trained, engine):
    assert trained.encode("a\ud800b") == trained.encode("a\ufffdb") == engine.encode("a\ud800b", bos=False)


def test_names_of_special_tokens_in_text_are_text(trained):
    assert not {0, 1, 2} & set(trained.encode("<s>hello</s><unk>"))


def test_digits_are_split(trained):
    pieces = [trained.model.id_to_piece(i) for i in range(259, trained.vocab_size)]
    assert not [
        piece for piece in pieces if sum(c.isdigit() for c in piece) > 1 or piece.strip("▁0123") == "4x"
    ]


def test_a_folder_is_the_tokenizer_in_it(trained, tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(trained.path.read_bytes())
    assert tokenizers.load(tmp_path).hash == trained.hash


@pytest.mark.parametrize(("size", "says"), [(100, "smaller than required_chars"), (9999, "too high")])
def test_a_vocabulary_that_can_not_be_is_refused_and_nothing_is_written(tmp_path, size, says):
    with pytest.raises(BadFileError, match=says):
        train_tokenizer(TEXTS, size, tmp_path / "tok.model")
    assert list(tmp_path.iterdir()) == []


def test_no_text_is_refused(tmp_path):
    with pytest.raises(BadFileError, match="no text"):
        train_tokenizer([], 300, tmp_path / "tok.model")


def test_a_line_too_long_for_sentencepiece_is_learnt_from_all_the_same(tmp_path):
    long = "the cat sat on the mat " * 1000 + "ж"
    assert "ж" in [
        train_tokenizer([long], 300, tmp_path / "t.model").model.id_to_piece(i) for i in range(300)
    ]


def test_an_id_outside_the_vocabulary_is_refused(trained):
    for i in (-1, trained.vocab_size):
        with pytest.raises(BadFileError, match=f"token id = {i}, allowed 0 to 339"):
            trained.decode([i])


# --- Llama 3


@settings(max_examples=200, deadline=None)
@given(text=anything)
def test_llama3_ids_are_those_of_tiktoken_and_decode_back(llama3, text):
    tiktoken = pytest.importorskip("tiktoken")
    ranks = {piece: i for i, piece in enumerate(llama3.vocabulary.pieces[:267])}
    library = tiktoken.Encoding("l", pat_str=LLAMA3_PATTERN, mergeable_ranks=ranks, special_tokens={})
    ids = llama3.encode(text, bos=True, eos=True)
    assert ids[1:-1] == library.encode_ordinary(text)
    assert llama3.decode(ids) == text


def test_llama3_special_tokens_follow_the_ranks_in_metas_order(llama3):
    assert llama3.vocab_size == 267 + 256
    names = {"begin_of_text": 0, "end_of_text": 1, "start_header_id": 6, "eot_id": 9, "python_tag": 10}
    for name, place in names.items():
        assert llama3.special[f"<|{name}|>"] == 267 + place
    assert llama3.special["<|image|>"] == 267 + 11
    assert llama3.special["<|reserved_special_token_245|>"] == llama3.vocab_size - 1


def test_a_tokenizer_json_beside_llama3s_model_names_the_special_tokens(llama3, tmp_path):
    """Of the first Llama 3, which had none for images; the model's file is the same."""
    vocabulary = llama3.vocabulary
    pieces = [*vocabulary.pieces[: 267 + 11], *(b"<|reserved_special_token_%d|>" % i for i in range(6, 251))]
    for name, data in write_json("made", replace(vocabulary, pieces=pieces)).items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "tokenizer.model").write_bytes(llama3.path.read_bytes())
    both = tokenizers.load(tmp_path)
    assert both.special["<|reserved_special_token_6|>"] == 267 + 11
    assert both.encode("the<|eot_id|>", special=True) == llama3.encode("the<|eot_id|>", special=True)
    assert (both.bos_id, both.eos_id, len(both.special)) == (267, 268, 256)


def test_special_names_are_text_unless_asked_for(llama3, trained, engine):
    text = "the<|eot_id|>hello"
    assert max(llama3.encode(text)) < 267
    assert llama3.encode(text, special=True) == [*llama3.encode("the"), 267 + 9, *llama3.encode("hello")]
    text, ids = "the</s> cat<s>", [*trained.encode("the"), 2, *trained.encode(" cat"), 1]
    assert trained.encode(text, special=True) == engine.encode(text, bos=False, special=True) == ids


@pytest.mark.parametrize("damage", [b"IQ== 0\nIQ==\n", b"IQ== 0\nIg== 5\n", b"IQ== 0\n*** 1\n", b"IQ== 0\n"])
def test_a_damaged_llama3_file_is_refused(tmp_path, damage):
    path = tmp_path / "tokenizer.model"
    path.write_bytes(damage)
    with pytest.raises(BadFileError, match=r"tokenizer\.model: "):
        tokenizers.load(path)


# --- Files for the engine


@pytest.mark.parametrize("form", ["llama2c", "indexed"])
def test_every_form_has_the_same_ids_and_becomes_the_others(trained, llama3, tmp_path, form):
    for tokenizer in (trained, llama3):
        path = tmp_path / "tokenizer.bin"
        tokenizers.export_bin(tokenizer, path, indexed=form == "indexed")
        read = tokenizers.load(path)
        assert (read.kind, read.vocab_size) == ("tokenizer.bin", tokenizer.vocab_size)
        assert (read.bos_id, read.eos_id, read.special) == (
            tokenizer.bos_id,
            tokenizer.eos_id,
            tokenizer.special,
        )
        assert [read.encode(text) for text in TEXTS] == [tokenizer.encode(text) for text in TEXTS]
        assert tokenizers.to_bin(read) == tokenizers.to_bin(tokenizer)
        assert tokens.count_bin(path, path.read_bytes()) == tokenizer.vocab_size


def test_a_tokenizer_bin_is_llama2cs_where_it_can_be(trained, llama3, tmp_path):
    path = tmp_path / "tokenizer.bin"
    tokenizers.export_bin(trained, path)
    assert (
        path.read_bytes()
        == tokenizers.to_llama2c_bin(trained)
        == write_tokenizer(path, trained.model).read_bytes()
    )
    with pytest.raises(BadFileError, match=r"tokenizer\.model: can't be a tokenizer\.bin of llama2\.c"):
        tokenizers.to_llama2c_bin(llama3)


def test_pieces_of_sentencepiece_that_are_user_defined_are_found_in_any_text(tmp_path):
    model = tmp_path / "t.model"
    SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS * 3),
        model_prefix=str(model.with_suffix("")),
        model_type="bpe",
        vocab_size=330,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        user_defined_symbols=["<sep>", "▁big", "ll"],
        control_symbols=["<pad>"],
        minloglevel=2,
    )
    tokenizer = tokenizers.load(model)
    engine = llama.Tokenizer.from_bytes(tokenizers.to_bin(tokenizer))
    for text in (*TEXTS, "a<sep> big<sep><pad>ball", "<sep>", " big big", "lll<s>ll", "big"):
        assert engine.encode(text, bos=False) == tokenizer.model.encode(text)
        assert engine.encode(text, bos=False, special=True) == tokenizer.encode(text, special=True)
        assert engine.decode(tokenizer.encode(text)) == text
    with pytest.raises(BadFileError, match="can't be a tokenizer"):
        tokenizers.to_llama2c_bin(tokenizer)


def test_the_engine_opens_every_kind_of_file_as_it_is(trained, llama3, tmp_path):
    """With the ids that it has from the file that export makes of it."""
    pytest.importorskip("tokenizers")
    written = write_json("model", trained.vocabulary, "none")["tokenizer.json"]
    (tmp_path / "tokenizer.json").write_bytes(written)
    for path in (trained.path, llama3.path, tmp_path / "tokenizer.json"):
        tokenizers.export_bin(tokenizers.load(path), out := tmp_path / "out.bin", indexed=True)
        as_it_is, exported = llama.Tokenizer(path), llama.Tokenizer(out)
        for text in (*TEXTS, " a  b", "<s>", ""):
            assert as_it_is.encode(text, special=True) == exported.encode(text, special=True)


def test_a_model_takes_a_tokenizer_of_any_kind(trained, llama3, tmp_path):
    size = SMALL | {"vocab_size": trained.vocab_size}
    export_bin(path := tmp_path / "m.bin", (source := random_source(Config(**size))).config, source.tensors)
    model = llama.Llama(path, tokenizer=trained.path)
    assert model.encode("the ball") == trained.encode("the ball", bos=True)
    with pytest.raises(llama.BadFileError, match=r"tokenizer\.model: has \d+ tokens, the model has 340"):
        llama.Llama(path, tokenizer=llama3.path)
    with names.opened(path, str(trained.path)) as files:
        assert llama.Tokenizer(files.tokenizer).encode("the ball") == model.encode("the ball")
    assert not Path(files.tokenizer).exists()


def test_a_pointer_of_git_lfs_is_called_that(tmp_path, capfd):
    path = tmp_path / "tokenizer.model"
    path.write_bytes(
        b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 499723\n"
    )
    assert refused(capfd, "info", path).endswith("tokenizer.model: is a Git LFS pointer: run git lfs pull\n")


@pytest.mark.parametrize("removes", [False, True])
def test_a_model_that_leaves_out_extra_spaces_is_read_with_a_note(tmp_path, removes):
    prefix = str(tmp_path / "t")
    options = {"vocab_size": 330, "hard_vocab_limit": False, "byte_fallback": True, "minloglevel": 2}
    SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS * 3),
        model_prefix=prefix,
        model_type="bpe",
        normalization_rule_name="identity",
        remove_extra_whitespaces=removes,
        **options,
    )
    assert tokenizers.load(prefix + ".model").vocabulary.notes == ((KEEPS_SPACES,) if removes else ())


@pytest.mark.parametrize("kind", ["word", "char"])
def test_a_model_of_sentencepiece_that_is_neither_bpe_nor_unigram_is_refused(tmp_path, kind):
    prefix = str(tmp_path / "t")
    options = {"vocab_size": 300, "hard_vocab_limit": False, "byte_fallback": True, "minloglevel": 2}
    SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS * 3),
        model_prefix=prefix,
        model_type=kind,
        normalization_rule_name="identity",
        **options,
    )
    with pytest.raises(BadFileError, match=f"model_type = {kind.upper()}, allowed UNIGRAM and BPE"):
        _ = tokenizers.load(prefix + ".model").vocabulary


def test_a_score_that_is_no_number_is_refused(trained, tmp_path):
    model, score = trained.path.read_bytes(), struct.pack("<f", trained.vocabulary.scores[-1])
    path = tmp_path / "t.model"
    at = model.rindex(b"\x15" + score)  # the field of a piece
    path.write_bytes(model[: at + 1] + struct.pack("<f", math.nan) + model[at + 5 :])
    with pytest.raises(BadFileError, match=r"score of token \d+ = nan, allowed finite numbers of 32 bits"):
        _ = tokenizers.load(path).vocabulary


def test_the_command_of_llama2c_writes_the_file_beside_the_model(trained, tmp_path):
    model = tmp_path / "tokenizer.model"
    model.write_bytes(trained.path.read_bytes())
    program.main([f"--tokenizer-model={model}"])
    assert (tmp_path / "tokenizer.bin").read_bytes() == tokenizers.to_llama2c_bin(trained)


def test_neither_a_command_nor_a_model_is_refused(capfd):
    for arguments in ([], ["-t", "x", "info", "y"]):
        with pytest.raises(SystemExit):
            program.main(arguments)
        assert "allowed are a command, or --tokenizer-model alone" in capfd.readouterr().err


def test_text_is_utf8_whatever_the_code_page_of_the_console(trained):
    console = environment(PYTHONUTF8="0", PYTHONIOENCODING="cp1252")
    ids = trained.encode("\U0001f44d")

    def run(*arguments: str, text: str = "") -> str:
        command = [sys.executable, ROOT / "tokenizer.py", *arguments]
        done = subprocess.run(
            command, input=text.encode(), capture_output=True, env=console, check=True, cwd=ROOT
        )
        return done.stdout.decode().rstrip("\n")

    assert run("decode", str(trained.path), *map(str, ids)) == "\U0001f44d"
    assert run("encode", str(trained.path), text="\U0001f44d") == " ".join(map(str, ids))


# --- Reading text


def documents(path, form=PLAIN) -> list[str]:
    with path.open("rb") as file:
        return list(read_documents(file, form))


@pytest.mark.parametrize("chunk", [1, 7, 1 << 20])
def test_a_document_is_the_same_in_every_kind_of_file_and_size_of_chunk(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(reading, "CHUNK", chunk)
    (tmp_path / "a.json").write_text(json.dumps([{"story": text} for text in TEXTS], ensure_ascii=False))
    (tmp_path / "b.json").write_text(json.dumps(TEXTS, indent=2))
    (tmp_path / "a.jsonl").write_text("\n\n".join(json.dumps({"id": 1, "text": text}) for text in TEXTS))
    (tmp_path / "a.txt").write_text("<|endoftext|>".join(TEXTS))
    for path in tmp_path.iterdir():
        assert documents(path) == TEXTS, path


def test_parquet_gives_its_text_column(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"n": [1, 2, 3, 4], "text": TEXTS}), tmp_path / "a.parquet")
    assert documents(tmp_path / "a.parquet") == TEXTS
    with pytest.raises(BadFileError, match="columns = n, text, allowed body"):
        documents(tmp_path / "a.parquet", Format(field="body"))


@pytest.mark.parametrize("chunk", [1, 2, 1 << 20])
def test_lines_of_windows_are_as_others(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(reading, "CHUNK", chunk)
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\r\n\r\nth\rree\r")
    assert documents(tmp_path / "a.txt") == ["one\ntwo\n\nth\rree\r"]


@pytest.mark.parametrize("chunk", [100, 1700, 1 << 20])
def test_a_very_long_text_is_cut_at_a_line_end(tmp_path, monkeypatch, chunk):
    """The same parts, whatever is read at once."""
    monkeypatch.setattr(reading, "CHUNK", chunk)
    monkeypatch.setattr(reading, "DOCUMENT_MAX", 1000)
    text = "".join(f"line {i}\n" for i in range(1000))
    (tmp_path / "a.txt").write_text(text + "<|endoftext|>" + text)
    parts = documents(tmp_path / "a.txt")
    assert "".join(parts) == text + text
    assert max(map(len, parts)) <= 1000
    half = len(parts) // 2
    assert parts[:half] == parts[half:]
    assert min(map(len, parts[: half - 1])) > 990
    assert all(part.endswith("\n") for part in parts)


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("a.json", b'{"story": "x"}', "begins with '{', allowed a JSON list"),
        ("a.json", b'[{"story": "x"}, {"sto', "item 1 is cut off"),
        ("a.json", b'[{"story": "x"}', "item 1 is cut off"),
        ("a.json", b'[{"body": "x"}]', "fields = body, allowed text or story or content"),
        ("a.json", b'[{"text": 5}]', "text = int, allowed a string"),
        ("a.jsonl", b'{"text": "x"}\n{', "line 2 is no JSON"),
        ("a.json", b"[" * 100_000, "item 0 is nested too deeply"),
        ("a.json", b"[" + b"9" * 5000 + b"]", "item 0 is cut off or no JSON: Exceeds the limit"),
        ("a.jsonl", b"[" * 100_000, "line 1 is no JSON: it is nested too deeply"),
        ("a.jsonl", b"9" * 5000, "line 1 is no JSON: Exceeds the limit"),
        ("a.json", b'["a"] ["b"]', r"has '\[' .character 6. behind the list, allowed nothing"),
        ("a.json", b'["a"] x', r"has 'x' .character 6. behind the list"),
        ("a.json", b"[] 5", r"has '5' .character 3. behind the list"),
        ("a.json", b'[,"a"]', r"item 0 is cut off or no JSON: Expecting value .character 1."),
        ("a.json", b'["a",,"b"]', r"item 1 is cut off or no JSON: Expecting value .character 5."),
        ("a.json", b'["a",]', r"item 1 is cut off or no JSON: Expecting value .character 5."),
        ("a.json", b'["a" "b"]', r"item 1 is cut off or no JSON: '\"' .character 5., allowed , or \]"),
        ("a.json", b"[12 3]", "item 0: text = int, allowed a string"),
        ("a.json", b"", "begins with '', allowed a JSON list"),
        ("a.txt", b"abc\xff\xfe", "not UTF-8 at byte 3"),
        ("a.txt", b"\xef\xbb\xbfabc\xc3", "not UTF-8 at byte 6"),
        ("a.json", b'["abc\xff"]', "not UTF-8 at byte 5"),
        ("a.parquet", b"PAR1 not", "is no Parquet file"),
    ],
)
@pytest.mark.parametrize("chunk", [1, 5, 1 << 20])
def test_a_broken_file_is_refused_with_its_place(tmp_path, monkeypatch, chunk, name, data, says):
    monkeypatch.setattr(reading, "CHUNK", chunk)
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    (tmp_path / name).write_bytes(data)
    with pytest.raises(BadFileError, match=says):
        documents(tmp_path / name)


def test_a_folder_without_text_is_refused(tmp_path):
    (tmp_path / "run.c").write_text("int x;")
    with pytest.raises(BadFileError, match=r"holds no text file, allowed \.txt \.md \.json"):
        text_files([tmp_path])


def test_a_folder_is_searched_for_notes_and_any_file_that_is_named_is_text(tmp_path):
    notes, code = tmp_path / "notes.md", tmp_path / "run.c"
    notes.write_text("# a")
    code.write_text("int x;")
    assert text_files([tmp_path]) == [notes]
    assert text_files([tmp_path, code]) == [notes, code]
    assert (documents(notes), documents(code)) == (["# a"], ["int x;"])
    with code.open("rb") as file, pytest.raises(BadFileError, match=r"run\.c: holds no records"):
        list(read_documents(file, Format(records=True)))


@given(st.lists(st.lists(st.integers() | st.text() | st.floats(allow_nan=False)), max_size=6), st.booleans())
@settings(max_examples=50, deadline=None)
def test_the_items_of_a_list_are_those_of_json(tmp_path_factory, items, spaced):
    path = tmp_path_factory.getbasetemp() / "items.json"
    path.write_text(json.dumps(items, indent=1 if spaced else None, ensure_ascii=not spaced), "utf-8")
    for chunk in (1, 3, 1 << 20):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(reading, "CHUNK", chunk)
            assert [json.loads(text) for text in documents(path, Format(records=True))] == items


@pytest.mark.parametrize("name", ["a.csv", "a.TSV", "a.bin", "a.png", "a"])
def test_a_file_that_is_no_text_is_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"a,b\n" if name[2:].lower() in ("csv", "tsv", "bin") else b"PNG\0")
    with pytest.raises(BadFileError, match=rf"{name}: is no text file, allowed \.txt \.md \.json"):
        text_files([tmp_path / name])


def test_a_suffix_of_capital_letters_is_the_same(tmp_path):
    (tmp_path / "a.JSONL").write_text('{"text": "x"}')
    assert [documents(path) for path in text_files([tmp_path])] == [["x"]]


# --- The command line


def test_the_commands_train_export_encode_decode_and_info_work_together(tmp_path, capfd):
    (tmp_path / "a.txt").write_text("\n".join(TEXTS * 3))
    model = tmp_path / "out" / "t.model"

    def run(*arguments) -> str:
        assert command.run_command(lambda: program.main([str(a) for a in arguments])) == 0
        return capfd.readouterr().out

    run("train", "--input", tmp_path / "a.txt", "--vocab_size", 330, "--output", model)
    exported = model.with_suffix(".bin").read_bytes()
    run("export", model, "--output", tmp_path / "x.bin")
    assert (tmp_path / "x.bin").read_bytes() == exported
    ids = run("encode", model, "the  cat", "--bos").split()
    assert ids[0] == "1"
    assert run("decode", model, *ids) == "the  cat\n"
    assert "vocab_size  330" in run("info", model)
    run("export", model, "--output", tmp_path / "x.bin", "--indexed")
    assert run("encode", tmp_path / "x.bin", "the  cat", "--bos").split() == ids
    assert "merges      characters by scores\nspecial     2: <s> </s>\n" in run("info", tmp_path / "x.bin")


def test_the_tokenizer_in_a_model_is_one(tmp_path, capfd):
    """In a v3 file and in a GGUF, wherever one is loaded; its export is not written over the model."""
    text = "Once upon a time, Zoë <|im_start|>"
    for path, ids in (
        (ROOT / "llama/models/stories.bin", llama.Llama().encode(text, bos=False)),
        (smollm2_path(), llama.Llama(smollm2_path()).encode(text, bos=False)),
    ):
        model = tmp_path / f"model{path.suffix}"
        model.symlink_to(path)
        known = tokenizers.load(model)
        assert known.encode(text) == ids
        assert known.decode(ids) == text
        assert llama.Tokenizer(model).encode(text, bos=False) == ids
        program.main(["export", str(model)])
        assert llama.Tokenizer(tmp_path / "tokenizer.bin").encode(text, bos=False) == ids
        assert "which is the model" in refused(capfd, "export", model, "--output", path)
    bare = random_source(Config(**SMALL))
    export_v3(tmp_path / "bare.bin", bare.config, bare.tensors)
    assert "is a model without a tokenizer in it" in refused(capfd, "info", tmp_path / "bare.bin")


@pytest.mark.parametrize("data", [b"", b"garbage garbage", b"\x0a\x01"])
def test_a_file_that_is_no_tokenizer_is_refused_in_one_line(tmp_path, capfd, data):
    (tmp_path / "t.model").write_bytes(data)
    assert "is neither a sentencepiece model nor" in refused(capfd, "info", tmp_path / "t.model")


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (b"<0x02>", b"<\xff\xff02>", "is neither a sentencepiece model nor"),  # its reason is no UTF-8
        (b"\x03<s>\x15\0\0\0\0\x18\3", b"\x03<s>\x15\0\0\0\0\x18\x0b", ""),  # a type that there is not
        (b"\x03<s>\x15\0\0\0\0\x18\3", b"\x03<s>\x12\0\0\0\0\x18\3", ""),
    ],
)
def test_a_damaged_sentencepiece_model_is_at_most_one_line(trained, tmp_path, capfd, old, new, says):
    assert trained.data.count(old) == 1
    (tmp_path / "t.model").write_bytes(trained.data.replace(old, new))
    code = command.run_command(lambda: program.main(["info", str(tmp_path / "t.model")]))
    said = capfd.readouterr().err
    assert said.count("\n") == (code != 0)
    assert says in said


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("--vocab_size=99999999999999999999", "vocab_size = 99999999999999999999, allowed 1 to 16777215"),
        ("--vocab_size=-5", "vocab_size = -5, allowed 1 to"),
        ("--character_coverage=nan", "character_coverage = nan, allowed above 0, up to 1"),
        ("--character_coverage=0", "character_coverage = 0.0, allowed above 0, up to 1"),
        ("--character_coverage=1.5", "character_coverage = 1.5, allowed above 0, up to 1"),
        ("--character_coverage=1e-9", "there is no text to train on with character_coverage = 1e-09"),
        ("--max_bytes=0", "max_bytes = 0, allowed 1 or more"),
        ("--max_bytes=-1", "max_bytes = -1, allowed 1 or more"),
        ("--output={}/t.bin", "t.bin, allowed a name that ends in .model"),
        ("--output={}/t", "t, allowed a name that ends in .model"),
        ("--input={}/bad.jsonl", "error: {}/bad.jsonl: line 2: text = int"),
    ],
)
def test_what_no_vocabulary_is_trained_with_is_refused_by_name(tmp_path, capfd, option, says):
    (tmp_path / "a.txt").write_text("\n".join(TEXTS * 3))
    (tmp_path / "bad.jsonl").write_text('{"text": "the cat"}\n{"text": 5}\n')
    before = {*tmp_path.iterdir()}
    line = ["train", "--input", tmp_path / "a.txt", "--vocab_size=330", "--output", tmp_path / "t.model"]
    assert says.format(tmp_path) in refused(capfd, *line, option.format(tmp_path))
    assert {*tmp_path.iterdir()} == before


def test_an_id_that_is_none_is_refused_by_name(trained, capfd, monkeypatch):
    for text, said in (("1 abc", "'abc'"), ("9" * 5000, "'999")):
        monkeypatch.setattr(sys, "stdin", io.StringIO(text))
        assert f"token id = {said}" in refused(capfd, "decode", trained.path)


def test_a_path_that_is_empty_is_refused(trained, capfd):
    for line in (["info", ""], ["export", trained.path, "--output="], ["-t", ""]):
        with pytest.raises(SystemExit):
            program.main([str(word) for word in line])
        assert "is empty, allowed is a path" in capfd.readouterr().err


def test_a_missing_file_is_refused_in_one_line(tmp_path, capfd):
    assert "No such file" in refused(capfd, "info", tmp_path / "none.model")


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "f"
    path.write_bytes(b"old")

    def fail_half_way():
        with files.write_aside(path) as file:
            file.write(b"new")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_half_way()
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("f", b"old")]
