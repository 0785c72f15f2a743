"""Text from PyTorch: greedy it is the engine's, sampled it follows the probabilities, in whole characters.

Left out on purpose: the logits themselves (test_model.py, test_export.py), tokenizers (test_tokenizer.py).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import PROGRAMS, ROOT, assert_refused, finish, run, write_pieces, write_ranked
from references import SHARED, STORIES260K, needs_stories260k
from tiny_models import VOCABULARY
from torch_formats import export_bin

import llama
import sample
from llama.errors import BadFileError, UsageError
from model import Config, Llama
from training.generation import draw, filtered, generate, generate_together, stream
from training.tokenizers import train as train_tokenizer
from training.weights import save_weights

CONFIG = Config(
    dim=64, n_layers=2, n_heads=8, n_kv_heads=4, hidden_dim=192, vocab_size=len(VOCABULARY), tied=False
)
BOS, EOS = 1, 2
INF = float("inf")


def random_model(config: Config = CONFIG, seed: int = 0) -> Llama:
    """Weights whose logits spread over a few units, and that draw BOS and EOS seldom."""
    torch.manual_seed(seed)
    model = Llama(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.endswith("norm.weight"):
                parameter.normal_(0, parameter.shape[-1] ** -0.5)
        if config.tied:  # or every token would be its own successor
            model.output.weight *= 0.2
        else:
            model.output.weight[[BOS, EOS]] = 0
    return model.eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A checkpoint with its tokenizer.bin, and its .bin files v0 and v1 beside it."""
    folder = tmp_path_factory.mktemp("sample")
    weights = random_model().state_dict()
    save_weights(folder / "model.safetensors", CONFIG, weights)
    for version in (0, 1):
        export_bin(folder / f"v{version}.bin", CONFIG, weights, version)
    write_ranked(folder / "tokenizer.bin", VOCABULARY)
    return folder


@pytest.fixture(scope="module")
def model() -> Llama:
    return random_model()


def uncached(model: Llama, ids: list[int], n: int) -> list[int]:
    """The n most likely tokens that follow ids, each from a pass over all before it."""
    ids = list(ids)
    for _ in range(n):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    return ids[-n:]


# --- Greedy


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("version", [0, 1])
def test_two_hundred_greedy_tokens_are_those_of_the_engine(tmp_path, version, tied):
    config = replace(CONFIG, tied=tied)
    model = random_model(config)
    export_bin(tmp_path / "model.bin", config, model.state_dict(), version)
    for prompt in ([BOS], [BOS, 260, 270, 5, 262]):
        new = list(generate(model, prompt, 200, temperature=0))
        assert len(new) == 200
        assert len(set(new)) > 10
        with llama.Llama(tmp_path / "model.bin") as engine:
            # Each token is the engine's choice after those before it, so the engine would write the same.
            chosen = engine.logits(prompt + new).argmax(axis=1)
        assert chosen[len(prompt) - 1 : -1].tolist() == new


@pytest.mark.parametrize("prompt", ["", "the tin", " the\n", "日本 é"])
def test_greedy_text_is_that_of_both_programs_and_both_versions(folder, prompt, capsysbinary):
    arguments = [str(folder), "--temperature", "0", "--max_new_tokens", "200", "--prompt", prompt]
    assert sample.main(arguments) == 0
    text = capsysbinary.readouterr().out
    n_prompt = len(llama.Tokenizer(folder / "tokenizer.bin").encode(prompt))
    steps = str(n_prompt + 199)  # ./run counts positions, the last token takes none
    assert len(text) > 100
    for program in PROGRAMS:
        for version in (0, 1):
            options = ("-t", "0", "-n", steps, "-i", prompt)
            assert run(program, f"v{version}.bin", *options, cwd=folder).stdout == text


@needs_stories260k
def test_the_golden_text_of_stories260K(tmp_path, capsysbinary):
    golden = json.loads(STORIES260K.read_text())
    save_llama2c(SHARED / golden["model"], tmp_path / "model.safetensors")
    shutil.copy(SHARED / golden["tokenizer"], tmp_path / "tokenizer.bin")
    arguments = [str(tmp_path), "--temperature", "0", "--max_new_tokens", str(golden["steps"])]
    assert sample.main(arguments) == 0
    assert capsysbinary.readouterr().out.decode() == golden["text"] + "\n"


def save_llama2c(source: Path, path: Path) -> None:
    """Saves a v0 file with a tied classifier as a checkpoint."""
    data = source.read_bytes()
    fields = np.frombuffer(data, "<i4", 7).tolist()
    names = ("dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "max_seq_len")
    config = Config(**dict(zip(names, fields, strict=True)))
    state = Llama(config).state_dict()
    order = ["attention_norm", *(f"attention.{w}" for w in ("wq", "wk", "wv", "wo")), "ffn_norm"]
    order += [f"feed_forward.{w}" for w in ("w1", "w2", "w3")]
    layers = [f"layers.{i}.{part}.weight" for part in order for i in range(config.n_layers)]
    offset = 28
    for name in ["tok_embeddings.weight", *layers, "norm.weight"]:
        size = state[name].numel()
        values = np.frombuffer(data, "<f4", size, offset).reshape(state[name].shape)
        state[name].copy_(torch.from_numpy(values.copy()))
        offset += 4 * size
    save_weights(path, config, state)


def test_the_cache_does_not_change_the_tokens(model):
    prompt = [BOS, 270, 4, 261]
    assert list(generate(model, prompt, 40, temperature=0)) == uncached(model, prompt, 40)


def test_equal_logits_give_the_first_token_as_in_the_engine():
    assert draw(torch.tensor([0.0, 3.0, 3.0, 3.0]), 0, 0, 1.0, None) == 1


# --- Where it ends


def test_it_ends_before_a_stop_token(model):
    tokens = list(generate(model, [BOS], 50, temperature=0))
    stop = tokens[20]
    expected = tokens[: tokens.index(stop)]
    assert list(generate(model, [BOS], 50, temperature=0, stop_ids={stop})) == expected


@pytest.mark.parametrize(
    ("n_prompt", "asked", "given"), [(1, 0, 0), (1, 1, 1), (7, 5, 5), (10, 99, 7), (16, 9, 1)]
)
def test_it_ends_with_the_tokens_asked_for_or_the_context(n_prompt, asked, given):
    model = random_model(replace(CONFIG, max_seq_len=16))
    assert len(list(generate(model, [BOS] * n_prompt, asked, temperature=0))) == given


@pytest.mark.parametrize(
    ("ids", "options", "message"),
    [
        ([], {}, "prompt = 0 tokens, allowed 1 to 256"),
        ([1] * 257, {}, "prompt = 257 tokens, allowed 1 to 256"),
        ([1, len(VOCABULARY)], {}, f"token = {len(VOCABULARY)}, allowed 0 to {len(VOCABULARY) - 1}"),
        ([-1], {}, f"token = -1, allowed 0 to {len(VOCABULARY) - 1}"),
        ([1], {"max_new_tokens": -1}, "max_new_tokens = -1, allowed 0 or more"),
        ([1], {"temperature": -0.1}, "temperature = -0.1, allowed 0 or more"),
        ([1], {"temperature": float("nan")}, "temperature = nan, allowed 0 or more"),
        ([1], {"temperature": INF}, "temperature = inf, allowed 0 or more"),
        ([1], {"top_k": -1}, "top_k = -1, allowed 0 or more"),
        ([1], {"top_p": 1.1}, "top_p = 1.1, allowed 0 to 1"),
    ],
)
def test_what_can_not_be_is_refused_at_the_call(model, ids, options, message):
    with pytest.raises(UsageError) as error:
        generate(model, ids, **{"max_new_tokens": 5, **options})
    assert str(error.value) == message


# --- Sampling


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_seed_gives_its_tokens_again_and_another_seed_others(model):
    texts = [tuple(generate(model, [BOS], 30, generator=seeded(seed))) for seed in (1, 2, 3)]
    again = [tuple(generate(model, [BOS], 30, generator=seeded(seed))) for seed in (1, 2, 3)]
    assert texts == again
    assert len(set(texts)) == 3


@pytest.mark.parametrize("options", [{"top_k": 1}, {"top_p": 1e-9}, {"temperature": 1e-30}], ids=str)
def test_the_narrowest_options_are_greedy(model, options):
    expected = list(generate(model, [BOS], 30, temperature=0))
    assert list(generate(model, [BOS], 30, **options)) == expected


@pytest.mark.parametrize(
    ("top_k", "top_p", "expected"),
    [
        (0, 1.0, [0.125, 0.5, 0.25, 0.125]),
        (0, 0.0, [0.125, 0.5, 0.25, 0.125]),
        (2, 1.0, [0, 0.5, 0.25, 0]),
        (3, 1.0, [0.125, 0.5, 0.25, 0]),  # among equals the first
        (9, 1.0, [0.125, 0.5, 0.25, 0.125]),
        (0, 0.49, [0, 0.5, 0, 0]),
        (0, 0.5, [0, 0.5, 0.25, 0]),  # 0.5 is reached, not exceeded
        (0, 0.75, [0.125, 0.5, 0.25, 0]),
        (2, 0.6, [0, 0.5, 0, 0]),  # of the 0.75 that top_k has left
        (2, 0.7, [0, 0.5, 0.25, 0]),
    ],
)
def test_the_filters_keep_what_they_say(top_k, top_p, expected):
    probabilities = torch.tensor([0.125, 0.5, 0.25, 0.125], dtype=torch.float64)
    assert filtered(probabilities, top_k, top_p).tolist() == expected
    assert probabilities.tolist() == [0.125, 0.5, 0.25, 0.125]


@pytest.mark.parametrize(
    ("temperature", "top_k", "expected"),
    [
        (1.0, 0, [0.2, 0.3, 0.5]),
        (1.0, 2, [0, 0.375, 0.625]),
        (0.5, 0, [0.04 / 0.38, 0.09 / 0.38, 0.25 / 0.38]),
    ],
)
def test_draws_follow_the_probabilities(temperature, top_k, expected):
    logits, generator, n = torch.tensor([0.2, 0.3, 0.5]).log(), seeded(1), 10_000
    drawn = [draw(logits, temperature, top_k, 1.0, generator) for _ in range(n)]
    shares = np.bincount(drawn, minlength=3) / n
    np.testing.assert_allclose(shares, expected, atol=4 * 0.5 / n**0.5)


@pytest.mark.parametrize("value", [float("nan"), INF])
def test_broken_weights_are_refused(value):
    model = random_model()
    with torch.no_grad():
        model.norm.weight[3] = value
    for temperature in (0, 1):
        with pytest.raises(BadFileError, match="logits are not finite"):
            list(generate(model, [BOS], 3, temperature=temperature))


# --- What it leaves behind


def test_a_model_in_training_samples_without_dropout_and_stays_in_training():
    model = random_model(replace(CONFIG, dropout=0.5)).train()
    tokens = generate(model, [BOS], 20, temperature=0)
    first = next(tokens)
    assert model.training
    assert all(module.training for module in model.modules())
    assert torch.is_grad_enabled()
    assert [first, *tokens] == uncached(model.eval(), [BOS], 20)


# --- Text


def pieces(tokenizer, prompt: list[int], ids: list[int]) -> list[str]:
    out = list(stream(tokenizer, prompt, ids))
    assert "".join(out) == tokenizer.decode(prompt + ids)[len(tokenizer.decode(prompt)) :]
    assert all(out)
    return out


def test_only_whole_characters_come_out(folder):
    tokenizer = llama.Tokenizer(folder / "tokenizer.bin")
    lama = [3 + byte for byte in "🦙".encode()]
    assert pieces(tokenizer, [BOS], lama + lama) == ["🦙", "🦙"]
    assert pieces(tokenizer, [BOS], lama[:3] + [260]) == ["\ufffd\ufffd\ufffde"]
    assert pieces(tokenizer, [BOS], [260] + lama[:2]) == ["e", "\ufffd\ufffd"]  # the unfinished at the end
    assert pieces(tokenizer, [BOS], []) == []


def test_pieces_make_up_the_text_whatever_the_tokens_are(folder):
    tokenizer, rng = llama.Tokenizer(folder / "tokenizer.bin"), np.random.default_rng(0)
    spaces = VOCABULARY.index(" ")
    for _ in range(100):
        ids = rng.integers(0, len(VOCABULARY), 30)
        ids[rng.random(30) < 0.3] = spaces
        prompt = [BOS] + rng.integers(spaces, len(VOCABULARY), 3).tolist()
        pieces(tokenizer, prompt[: rng.integers(1, 4)], ids.tolist())


def test_spaces_stay_where_a_tokenizer_drops_those_at_the_start():
    """As sentencepiece does with remove_extra_whitespaces, in tok512 for instance."""

    def decode(ids: list[int]) -> str:
        return "".join(" ab"[i] for i in ids).lstrip()

    tokenizer = SimpleNamespace(decode=decode)
    assert pieces(tokenizer, [1], [0, 0, 2, 0, 1]) == [" ", " ", "b", " ", "a"]
    assert pieces(tokenizer, [], [0, 2, 0, 0, 1]) == ["b", " ", " ", "a"]


def test_a_sentencepiece_model_beside_the_checkpoint_is_used(folder, tmp_path, capsysbinary):
    lines = ["once upon a time there was a llama", "the llama  sat on the mat", "日本 llama é"] * 20
    tokenizer = train_tokenizer(lines, 300, tmp_path / "tokenizer.model")
    config = replace(CONFIG, vocab_size=300)
    model = random_model(config)
    save_weights(tmp_path / "model.safetensors", config, model.state_dict())
    prompt = tokenizer.encode("the llama", bos=True)
    ids = list(generate(model, prompt, 60, temperature=0, stop_ids={BOS, EOS}))
    pieces(tokenizer, prompt, ids)
    options = ["--temperature", "0", "--max_new_tokens", "60", "--prompt", "the llama"]
    assert sample.main([str(tmp_path), *options]) == 0
    assert capsysbinary.readouterr().out.decode() == tokenizer.decode(prompt + ids) + "\n"


# --- The command line


def output(folder: Path, capsys, *options: str) -> bytes:
    assert sample.main([str(folder), "--max_new_tokens", "30", *options]) == 0
    return capsys.readouterr().out


def test_samples_share_the_prompt_and_differ_and_a_seed_gives_them_again(folder, capsysbinary):
    options = ("--prompt", "the tin", "--num_samples", "3", "--top_k", "50", "--seed", "7")
    text = output(folder, capsysbinary, *options)
    samples = text.split(b"---\n")
    assert len(set(samples)) == 3
    assert all(one.startswith(b"the tin") and one.endswith(b"\n") for one in samples)
    assert output(folder, capsysbinary, *options) == text
    assert output(folder, capsysbinary, *options[:-1], "8") != text


def test_texts_of_a_batch_are_those_of_their_seeds_alone(folder, capsysbinary, monkeypatch):
    monkeypatch.setattr(sample, "TOGETHER", 2)
    samples = output(folder, capsysbinary, "--num_samples=3", "--seed=7", "--top_k=5").split(b"---\n")
    assert samples == [output(folder, capsysbinary, f"--seed={seed}", "--top_k=5") for seed in (7, 8, 9)]


def test_a_text_that_ends_leaves_the_others_theirs(model):
    alone = [list(generate(model, [BOS], 30, generator=seeded(seed))) for seed in range(6)]
    stop = alone[0][10]
    together = generate_together(model, [BOS], 30, generators=[*map(seeded, range(6))], stop_ids={stop})
    expected = [tokens[: tokens.index(stop)] if stop in tokens else tokens for tokens in alone]
    assert len({len(tokens) for tokens in expected}) > 1
    assert [list(tokens) for tokens in reversed(together)] == expected[::-1]


def test_a_prompt_file_is_read_without_its_last_newline(folder, tmp_path, capsysbinary):
    expected = output(folder, capsysbinary, "--temperature", "0", "--prompt", "the tin")
    (tmp_path / "prompt.txt").write_bytes(b"the tin\n")
    file = str(tmp_path / "prompt.txt")
    assert output(folder, capsysbinary, "--temperature", "0", "--prompt_file", file) == expected
    assert output(folder, capsysbinary, "--temperature", "0", f"--start=FILE:{file}") == expected


@pytest.mark.parametrize("mark", [b"\xff\xfe", b"\xfe\xff"])
def test_a_prompt_file_of_utf16_is_refused_by_name(folder, tmp_path, capsys, mark):
    (tmp_path / "prompt.txt").write_bytes(mark + b"a\0")
    assert sample.main([str(folder), f"--prompt_file={tmp_path / 'prompt.txt'}"]) == 3
    assert capsys.readouterr().err == f"error: {tmp_path / 'prompt.txt'}: is UTF-16, allowed UTF-8\n"


def test_the_words_of_llama2c_mean_the_same(folder, capsysbinary):
    assert sample.main([str(folder), "--temperature=0", "--prompt=the tin"]) == 0
    expected = capsysbinary.readouterr().out
    for checkpoint in (folder, folder / "model.safetensors", folder / "v0.bin"):
        assert sample.main([f"--checkpoint={checkpoint}", "--start=the tin", "--temperature=0.0"]) == 0
        assert capsysbinary.readouterr().out == expected
    assert sample.parse([]).checkpoint == Path("out/last")


BAD = {
    "--num_samples=0": (2, "num_samples = 0, allowed 1 or more"),
    "--max_new_tokens=-1": (2, "max_new_tokens = -1, allowed 0 or more"),
    "--seed=-1": (2, "seed = -1, allowed 0 to 2**64 - 1"),
    "--top_p=2": (2, "top_p = 2.0, allowed 0 to 1"),
    "--device=toaster": (2, "device = toaster: "),
    "--prompt_file=": (2, "prompt_file is empty, allowed is a path"),
    "--start=FILE:": (2, "prompt_file is empty, allowed is a path"),
    "--device=meta": (2, "device = meta, allowed cpu, cuda, cuda:1, mps"),
    "--prompt_file=no.txt": (3, "no.txt: No such file or directory"),
    "--tokenizer=no.bin": (3, "no.bin: No such file or directory"),
    "--tokenizer=no.model": (3, "no.model: No such file or directory"),
}


@pytest.mark.parametrize("option", BAD)
def test_errors_are_one_line_and_have_the_exit_status_of_their_kind(folder, capsysbinary, option):
    code, message = BAD[option]
    assert sample.main([str(folder), option]) == code
    result = capsysbinary.readouterr()
    assert result.err.decode().startswith(f"error: {message}")
    assert result.err.count(b"\n") == 1
    assert result.out == b""


@pytest.mark.parametrize("line", [[""], ["--checkpoint="], ["--tokenizer="]])
def test_a_path_that_is_empty_is_refused(capsys, line):
    with pytest.raises(SystemExit):
        sample.main(line)
    assert "is empty, allowed is a path" in capsys.readouterr().err


def test_a_checkpoint_without_a_tokenizer_or_with_another_ones_is_refused(folder, tmp_path, capsysbinary):
    shutil.copy(folder / "model.safetensors", tmp_path)
    assert sample.main([str(tmp_path)]) == 3
    assert b"has no tokenizer, nor is one beside it: name one with" in capsysbinary.readouterr().err
    write_pieces(tmp_path / "tokenizer.bin", [(piece, 0.0) for piece in VOCABULARY[:-1]])
    assert sample.main([str(tmp_path)]) == 3
    found = f"has {len(VOCABULARY) - 1} tokens, the model's vocab_size = {len(VOCABULARY)}"
    assert found.encode() in capsysbinary.readouterr().err


def program(*arguments: str | Path, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "sample.py"), *map(str, arguments)]
    return finish(command, stderr=subprocess.PIPE, **options)


def test_the_help_has_examples():
    result = program("--help", stdout=subprocess.PIPE)
    assert (result.returncode, result.stderr) == (0, b"")
    assert b'python sample.py out/last --prompt "Once upon a time"' in result.stdout


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_output_that_can_not_be_written_is_one_line(folder):
    with Path("/dev/full").open("wb") as full:
        result = program(folder, "--max_new_tokens", "3", stdout=full)
    assert_refused(result, 4, f"standard output: {os.strerror(28)}")
