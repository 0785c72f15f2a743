"""A tokenizer may have fewer tokens than the embedding has rows: those without mean nothing, anywhere.

What compares with llama.cpp needs llama-cpp-python, and is left out where that is not installed.
"""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import gguf
import pytest
import torch
import transformers
from gguf_files import SMALL, LlamaCpp, random_source
from helpers import TEXTS
from references import needs_llama_cpp
from torch_formats import checked_tensors, export_folder, export_gguf, open_source

from llama import Llama, convert
from llama.formats import tokenizers
from llama.formats.gguf_file import GgufFile
from llama.formats.text import NO_BOS, completed
from llama.formats.tokenizer_json_writer import write_tokenizer
from model import Config
from training.tokenizers import train as train_tokenizer

MORE = 46  # rows of the embedding without a token


def run(*arguments: str | Path) -> None:
    assert convert.main([*map(str, arguments)]) == 0


def folder_for(path: Path, known: tokenizers.Tokenizer, n: int) -> Path:
    """A Hugging Face folder whose embedding has n rows, with a tokenizer.json; the last rows are likely."""
    source = random_source(Config(**SMALL | {"vocab_size": n, "tied": False}))
    source.tensors["output.weight"][known.vocab_size :] *= 3
    files = write_tokenizer("model", known.vocabulary)
    export_folder(path, replace(source, bos=max(0, known.bos_id), stops=(known.eos_id,)), tokenizer=files)
    return path


@pytest.fixture(params=["trained", "llama3", "gpt2"])
def known(request) -> tokenizers.Tokenizer:
    return request.getfixturevalue(request.param)


@pytest.fixture
def folder(tmp_path, known) -> Path:
    return folder_for(tmp_path / "padded", known, known.vocab_size + MORE)


def test_tokens_without_a_name_are_never_encoded_and_print_nothing(folder, tmp_path, known):
    run(folder, tmp_path / "model.bin", "--version", "3")
    n = known.vocab_size
    with Llama(tmp_path / "model.bin") as engine:
        tokenizer = engine.tokenizer
        assert tokenizer.vocab_size == n + MORE == engine.config.vocab_size
        for text in [*TEXTS, "[PAD340]", f"[PAD{n}]"]:
            for special in (False, True):
                ids = tokenizer.encode(text, bos=False, special=special)
                assert ids == known.encode(text, special=special)
                assert max(ids) < n
        assert tokenizer.decode([*known.encode("the"), *range(n, n + MORE)]) == known.decode(
            known.encode("the")
        )


def test_the_engine_goes_on_where_such_a_token_is_drawn(folder, tmp_path, known):
    run(folder, tmp_path / "model.bin", "--version", "3")
    with Llama(tmp_path / "model.bin") as engine:
        prompt, unused = known.encode("the girl"), known.vocab_size + 5
        assert "".join(engine.generate(prompt, max_tokens=20, logit_bias={unused: 1e9})) == ""
        others = {*range(known.vocab_size + MORE)} - {*prompt}  # and so none that ends a text
        assert (
            "".join(engine.generate(prompt, max_tokens=20, logit_bias=dict.fromkeys(others, -math.inf))) != ""
        )


@pytest.mark.parametrize("name", ["model.gguf", "v3.bin", "again"])
def test_rows_and_tokens_are_kept_by_way_of_every_format(folder, tmp_path, known, name):
    run(folder, tmp_path / name, *(["--version", "3"] if name == "v3.bin" else []))
    run(folder, tmp_path / "direct.bin", "--version", "3")
    run(tmp_path / name, tmp_path / "back.bin", "--version", "3")
    source, found = open_source(folder), open_source(tmp_path / "back.bin")
    assert found.config == source.config
    assert all(torch.equal(found.tensors[key], tensor) for key, tensor in checked_tensors(source).items())
    direct = open_source(tmp_path / "direct.bin").vocabulary()
    assert len(found.vocabulary()) == known.vocab_size + MORE
    assert [*found.vocabulary().pieces] == [*direct.pieces]
    assert [*found.vocabulary().types] == [*direct.types]


def test_transformers_has_the_tokens_and_the_rows(folder, tmp_path, known):
    run(folder, tmp_path / "model.gguf")
    for name in ("model.gguf", "padded"):
        out = tmp_path / f"of {Path(name).stem}"
        run(tmp_path / name, out)
        theirs = transformers.AutoTokenizer.from_pretrained(out)
        assert len(theirs) == known.vocab_size
        assert theirs.encode("the girl", add_special_tokens=False) == known.encode("the girl")
        config = transformers.AutoConfig.from_pretrained(out)
        assert config.vocab_size == known.vocab_size + MORE


def test_a_gguf_file_says_the_tokens_are_unused(folder, tmp_path, known):
    run(folder, tmp_path / "model.gguf")
    file, n = GgufFile(tmp_path / "model.gguf"), known.vocab_size
    assert file.get("tokenizer.ggml.tokens")[n:] == [f"[PAD{i}]" for i in range(n, n + MORE)]
    assert set(file.get("tokenizer.ggml.token_type")[n:]) == {int(gguf.TokenType.UNUSED)}


@needs_llama_cpp
def test_llama_cpp_loads_the_rows(folder, tmp_path, known):
    run(folder, tmp_path / "model.gguf")
    model, ids = LlamaCpp(tmp_path / "model.gguf"), known.encode("the girl")
    assert model.ids("the girl") == ids
    run(folder, tmp_path / "model.bin", "--version", "3")
    with Llama(tmp_path / "model.bin") as engine:
        torch.testing.assert_close(
            torch.tensor(model.logits(ids)), torch.tensor(engine.logits(ids)), rtol=0, atol=1e-3
        )


def test_of_two_tokenizers_in_a_folder_the_larger_one_counts(folder, tmp_path, known):
    train_tokenizer(["ab ab"], 263, folder / "tokenizer.model")
    run(folder, tmp_path / "model.bin", "--version", "3")
    assert open_source(tmp_path / "model.bin").vocabulary().unpadded.pieces == [*known.vocabulary.pieces]


# --- What is refused


def test_a_smaller_tokenizer_does_not_stand_in_for_one_that_cannot_be_read(folder, tmp_path, capsys):
    """Phi-3's tokenizer.json has tokens that its tokenizer.model has not."""
    train_tokenizer(["ab ab"], 263, folder / "tokenizer.model")
    fields = json.loads((folder / "tokenizer.json").read_text())
    fields["model"]["dropout"] = 0.1
    (folder / "tokenizer.json").write_text(json.dumps(fields))
    assert convert.main([str(folder), str(tmp_path / "model.bin"), "--version", "3"]) == 3
    assert "tokenizer.json: model.dropout = 0.1, allowed null or 0.0" in capsys.readouterr().err


def test_a_tokenizer_that_is_given_or_lies_elsewhere_must_have_all_tokens(folder, tmp_path, known, capsys):
    """Or any small tokenizer would do for any model."""
    given = shutil.copy(folder / "tokenizer.json", tmp_path / "tokenizer.json")
    arguments = [str(folder), str(tmp_path / "model.bin"), "--version", "3", "--tokenizer", str(given)]
    n = known.vocab_size
    assert convert.main(arguments) == 3
    error = f"error: {given}: has {n} tokens, the model's vocab_size = {n + MORE}\n"
    assert capsys.readouterr().err == error
    run(folder, tmp_path / "v0.bin", "--version", "0", "--force")
    capsys.readouterr()
    assert convert.main([str(tmp_path / "v0.bin"), str(tmp_path / "v3.bin"), "--version", "3"]) == 3
    assert capsys.readouterr().err == error


@pytest.mark.parametrize("out", ["model.bin", "model.gguf", "folder"])
def test_a_tokenizer_with_more_tokens_than_rows_is_refused(tmp_path, trained, capsys, out):
    folder = folder_for(tmp_path / "theirs", trained, trained.vocab_size - 1)
    options = ["--version", "3"] if out == "model.bin" else []
    assert convert.main([str(folder), str(tmp_path / out), *options]) == 3
    message = f"error: {folder / 'tokenizer.json'}: has 330 tokens, the model's vocab_size = 329\n"
    assert capsys.readouterr().err == message
    assert not (tmp_path / out).exists()


def gguf_with_an_unused_token(path: Path, trained: tokenizers.Tokenizer) -> Path:
    """A GGUF file may have unused tokens anywhere: here 288."""
    source = random_source(Config(**SMALL | {"vocab_size": trained.vocab_size}))
    v = trained.vocabulary
    unused = replace(
        v, pieces=[*v.pieces[:288], b"", *v.pieces[289:]], types=[*v.types[:288], 2, *v.types[289:]]
    )
    export_gguf(path, source, "fp32", vocabulary=unused)
    return path


@needs_llama_cpp
def test_a_name_for_an_unused_token_is_no_text_in_llama_cpp_either(tmp_path, trained):
    path = gguf_with_an_unused_token(tmp_path / "model.gguf", trained)
    run(path, tmp_path / "folder")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "folder")
    assert theirs.encode("a [PAD288]") == LlamaCpp(path)._model.tokenize(b"a [PAD288]")


def test_a_name_for_an_unused_token_is_no_text(tmp_path, trained):
    path = gguf_with_an_unused_token(tmp_path / "model.gguf", trained)
    found = open_source(path).vocabulary()
    assert (found.pieces[288], found.types[288]) == (b"", 2)
    run(path, tmp_path / "folder")
    fields = json.loads((tmp_path / "folder" / "tokenizer.json").read_text())
    assert fields["model"]["vocab"]["[PAD288]"] == 288


def test_added_tokens_beyond_the_rows_of_the_embedding_are_left_out(tmp_path, llama3):
    folder = folder_for(tmp_path / "more", llama3, llama3.vocab_size)
    path, n = folder / "tokenizer.json", llama3.vocab_size
    data = json.loads(path.read_text())
    data["added_tokens"].append(data["added_tokens"][0] | {"id": n, "content": "<pad>"})
    path.write_text(json.dumps(data))
    with Llama(folder, dtype="fp32") as engine:
        assert engine.config.vocab_size == engine.tokenizer.vocab_size == n
        assert engine.tokenizer.encode("<pad>", special=True) == engine.tokenizer.encode("<pad>")


@pytest.mark.parametrize("said", [None, False, True])
def test_without_bos_a_text_begins_with_itself(said):
    source = replace(random_source(Config(**SMALL)), bos=-1, add_bos=said)
    with_ends = completed(source, {}, -1, 2)
    assert with_ends.add_bos is False
    assert (NO_BOS in with_ends.notes) is (said is True)
    assert completed(source, {}, 1, 2).add_bos is (said is not False)
