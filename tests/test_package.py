"""The Python package: what it imports, its objects and errors, interrupting it, the wheel it becomes.

    python -m pytest tests/test_package.py                 all
    python -m pytest tests/test_package.py -m "not slow"   without building a wheel

The model is tiny and random: whether its text is right is for the tests of the engine.
"""

import dataclasses
import importlib
import inspect
import math
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import llama

ROOT = Path(__file__).resolve().parent.parent
LETTERS = "abcdefghijklmnopqrstuvwxyz"
SHAPE = {"dim": 16, "hidden_dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "vocab_size": 286}


def write_model(path, max_seq_len=64):
    """A random fp32 checkpoint in the v0 format, classifier and embedding shared."""
    header = [*SHAPE.values(), max_seq_len]
    dim, hidden, layers, heads, kv_heads, vocab, _ = header
    head = dim // heads
    matrices = dim * dim * 2 + 2 * dim * head * kv_heads + 3 * dim * hidden
    n = vocab * dim + layers * (2 * dim + matrices) + dim + max_seq_len * head
    weights = np.random.default_rng(1).standard_normal(n).astype("<f4") * 0.3
    path.write_bytes(struct.pack("<7i", *header) + weights.tobytes())
    return path


def write_tokens(path):
    """A tokenizer.bin: <unk>, BOS, EOS, the bytes, a space and the letters."""
    pieces = ["<unk>", "\n<s>\n", "\n</s>\n", *(f"<0x{byte:02X}>" for byte in range(256)), " ", *LETTERS]
    records = (struct.pack("<fi", -float(i), len(p)) + p.encode() for i, p in enumerate(pieces))
    path.write_bytes(struct.pack("<I", 6) + b"".join(records))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    write_model(path / "model.bin")
    write_tokens(path / "tokenizer.bin")
    return path


@pytest.fixture
def model(folder):
    with llama.Llama(folder / "model.bin") as model:
        yield model


def python(*arguments, cwd, **options):
    """Runs Python in a folder where the package is not, with the path of this process."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        **options,
    )


# --- import and types


def test_import_brings_in_neither_numpy_nor_torch(tmp_path):
    code = (
        "import sys, llama, llama.run; print(sorted({'numpy', 'torch', 'sentencepiece'} & set(sys.modules)))"
    )
    result = python("-c", code, cwd=tmp_path)
    assert (result.stdout, result.stderr) == ("[]\n", "")


def test_a_run_brings_in_neither_numpy_nor_torch(folder, tmp_path):
    code = (
        "import sys; from llama.run import main; code = main(sys.argv[1:]);"
        "print(code, sorted({'numpy', 'torch', 'sentencepiece'} & set(sys.modules)))"
    )
    result = python("-c", code, str(folder / "model.bin"), "-n", "8", cwd=tmp_path)
    assert result.stdout.splitlines()[-1] == "0 []", result.stderr


def functions(module):
    """The functions and methods that a module defines, by qualified name."""
    owners = [
        module,
        *(x for _, x in inspect.getmembers(module, inspect.isclass) if x.__module__ == module.__name__),
    ]
    for owner in owners:
        for value in vars(owner).values():
            function = getattr(value, "fget", None) or getattr(value, "__func__", value)
            code = getattr(function, "__code__", None)
            if code and code.co_filename == module.__file__:
                yield function


@pytest.mark.parametrize("name", ["llama.engine", "llama.run", "llama.build_engine"])
def test_every_function_is_annotated(name):
    found = list(functions(importlib.import_module(name)))
    assert len(found) > 3
    for function in found:
        parameters = [p for p in inspect.signature(function).parameters if p not in ("self", "cls")]
        missing = {*parameters, "return"} - function.__annotations__.keys()
        assert not missing, f"{function.__qualname__}: {missing}"


def test_package_is_marked_as_typed():
    assert Path(llama.__file__).with_name("py.typed").exists()


def test_all_names_exist():
    assert all(hasattr(llama, name) for name in llama.__all__)


# --- errors


def test_errors_are_also_the_builtin_ones():
    assert issubclass(llama.UsageError, ValueError)
    assert issubclass(llama.ClosedError, llama.UsageError)
    assert issubclass(llama.BadFileError, OSError)
    assert issubclass(llama.ResourceError, MemoryError)
    errors = [
        value for value in vars(llama).values() if inspect.isclass(value) and issubclass(value, Exception)
    ]
    assert len(errors) == 5
    assert all(issubclass(error, llama.LlamaError) for error in errors)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(llama.BadFileError, match=r"nowhere\.bin: No such file or directory"):
        llama.Llama(tmp_path / "nowhere.bin")


def test_a_file_of_another_kind_is_refused(tmp_path):
    path = tmp_path / "model.bin"
    path.write_bytes(b"GGUF" + bytes(1000))
    with pytest.raises(llama.BadFileError, match="GGUF"):
        llama.Llama(path)


def test_a_path_with_a_nul_is_refused():
    with pytest.raises(llama.UsageError, match="NUL"):
        llama.Llama("model.bin\0.txt")


def test_a_missing_tokenizer_matters_only_to_text(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with llama.Llama(write_model(tmp_path / "alone.bin")) as model:
        assert model.logits([1, 5]).shape == (2, SHAPE["vocab_size"])
        with pytest.raises(llama.BadFileError, match=r"tokenizer\.bin"):
            model.generate("a")


# --- the model


def test_config_is_the_header(model):
    config = dataclasses.asdict(model.config)
    assert {name: config[name] for name in SHAPE} == SHAPE
    assert (config["version"], config["max_seq_len"], config["tied"]) == (0, 64, True)
    assert (config["head_dim"], config["weight_type"], config["group_size"]) == (4, "fp32", 0)
    assert config["rope_theta"] == 10000
    assert config["norm_eps"] == pytest.approx(1e-5)


def test_config_is_frozen(model):
    with pytest.raises(dataclasses.FrozenInstanceError):
        model.config.dim = 1


def test_options_come_back(folder):
    with llama.Llama(folder / "model.bin", threads=2, context=10) as model:
        assert (model.threads, model.context, model.kv) == (2, 10, "fp32")
        assert model.kernels in ("scalar", "avx2", "avx512", "avx512bf16", "neon", "dotprod", "i8mm")
        assert f"context 10, 2 threads, {model.kernels}" in repr(model)


@pytest.mark.parametrize(
    "options", [{"threads": -1}, {"context": 65}, {"context": 2**40}, {"threads": "two"}, {"kv": "int8"}]
)
def test_options_out_of_range_are_refused(folder, options):
    with pytest.raises(llama.UsageError, match=next(iter(options))):
        llama.Llama(folder / "model.bin", **options)


def test_logits_do_not_depend_on_what_came_before(model):
    ids = [1, 260, 270, 280]
    first = model.logits(ids)
    model.logits([1, 5, 6, 7, 8])
    assert first.dtype == np.float32
    assert np.array_equal(model.logits(ids), first)
    assert np.array_equal(model.logits(np.array(ids[:2])), first[:2])
    assert model.logits([]).shape == (0, SHAPE["vocab_size"])


@pytest.mark.parametrize("ids", [[286], [-1], [2**40], ["a"], [1.5], [1] * 65])
def test_logits_of_wrong_ids_are_refused(model, ids):
    with pytest.raises(llama.UsageError):
        model.logits(ids)
    assert model.logits([1]).shape == (1, SHAPE["vocab_size"])


# --- text


def test_tokenizer_may_be_a_path_or_an_object(folder):
    with llama.Tokenizer(folder / "tokenizer.bin") as tokenizer:
        by_object = llama.Llama(folder / "model.bin", tokenizer)
        by_path = llama.Llama(folder / "model.bin", folder / "tokenizer.bin")
        assert by_object.encode("abc") == by_path.encode("abc") == tokenizer.encode("abc")
        by_object.close()
        assert (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id) == (286, 1, 2)


def test_encode_marks_begin_and_end(model):
    assert model.encode("", bos=True, eos=True) == [1, 2]
    assert model.encode("a", bos=False) == model.encode("a", eos=True)[1:-1]


@pytest.mark.parametrize("text", ["", "abc", " a  b ", "naïve ☃ 🙂", "a\0b", "\n\t"])
def test_decode_is_the_inverse_of_encode(model, text):
    assert model.decode(model.encode(text)) == text


def test_what_is_not_utf8_is_replaced(model):
    byte = 3  # byte b is token b + 3
    assert model.decode([1, 0x61 + byte, 0xE2 + byte, 0x98 + byte]) == "a\ufffd\ufffd"
    assert model.decode(model.encode("a\ud800b")) == "a\ufffdb"


def test_decode_of_an_unknown_id_is_refused(model):
    for token in (286, -1, 2**40, "a"):
        with pytest.raises(llama.UsageError):
            model.decode([token])


# --- generation


def test_generate_is_an_iterator_of_new_text(model):
    pieces = model.generate("hello", max_tokens=20, seed=3)
    assert iter(pieces) is pieces
    assert pieces.finish is None
    text = list(pieces)
    assert text
    assert all(isinstance(piece, str) and piece for piece in text)
    assert pieces.finish in ("length", "stop_token")
    assert next(pieces, None) is None


def test_a_seed_repeats_the_text_and_ids_equal_their_text(model):
    def write(prompt, **options):
        return "".join(model.generate(prompt, max_tokens=30, **options))

    assert write("hello", seed=7) == write("hello", seed=7) == write(model.encode("hello"), seed=7)
    assert write("hello", seed=7) != write("hello", seed=8)
    assert write("hello") != write("hello")


def test_max_tokens_counts_what_is_drawn(model):
    only_a = {model.encode("a", bos=False)[-1]: 1e9}
    for n in (0, 1, 2, 20):
        generation = model.generate("b", max_tokens=n, logit_bias=only_a)
        assert ("".join(generation), generation.finish) == ("a" * n, "length")
    # the context has room for 64 tokens, one more is drawn from the last of them
    prompt = model.encode("b")
    assert len("".join(model.generate("b", logit_bias=only_a))) == 65 - len(prompt)
    assert len("".join(model.generate("b", max_tokens=1000, logit_bias=only_a))) == 65 - len(prompt)


def test_stop_ends_the_text(model):
    only_a = {model.encode("a", bos=False)[-1]: 1e9}
    for stop in ("aaa", ["x", "aaa"]):
        generation = model.generate("b", stop=stop, logit_bias=only_a)
        assert ("".join(generation), generation.finish) == ("", "stop_string")


def test_end_of_text_token_ends_the_text(model):
    generation = model.generate("b", logit_bias={2: 1e9})
    assert ("".join(generation), generation.finish) == ("", "stop_token")


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -1},
        {"temperature": math.nan},
        {"temperature": "hot"},
        {"top_p": 1.5},
        {"top_k": -1},
        {"seed": -1},
        {"seed": 2**64},
        {"max_tokens": -1},
        {"stop": [""]},
        {"stop": "a\0b"},
        {"logit_bias": {286: 1.0}},
        {"logit_bias": {1: math.nan}},
        {"prompt": []},
        {"prompt": [2**40]},
        {"prompt": [286]},
        {"prompt": "a" * 65},
    ],
)
def test_wrong_options_are_refused_at_once(model, options):
    with pytest.raises(llama.UsageError):
        model.generate(**{"prompt": "a", **options})


def test_a_second_text_ends_the_first(model):
    first = model.generate("a", max_tokens=30, logit_bias={1: -math.inf, 2: -math.inf})
    next(first)
    second = model.generate("a", max_tokens=5, seed=5)
    with pytest.raises(llama.ClosedError, match="called again"):
        next(first)
    text = "".join(second)
    assert text == "".join(model.generate("a", max_tokens=5, seed=5))


def test_logits_end_a_text(model):
    generation = model.generate("a", max_tokens=30)
    model.logits([1])
    with pytest.raises(llama.ClosedError):
        next(generation)


def test_threads_take_turns(model):
    expected, wrong = model.logits(range(60)), []

    def work():
        for _ in range(20):
            if not np.array_equal(model.logits(range(60)), expected):
                wrong.append(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# --- closing


def test_closed_objects_say_so(folder):
    model = llama.Llama(folder / "model.bin")
    generation = model.generate("a")
    tokenizer = model.tokenizer
    model.close()
    model.close()
    for use in (
        lambda: model.generate("a"),
        lambda: model.logits([1]),
        lambda: model.encode("a"),
        lambda: next(generation),
    ):
        with pytest.raises(llama.ClosedError, match="closed"):
            use()
    assert "closed" in repr(model)
    assert tokenizer.encode("a")
    tokenizer.close()
    with pytest.raises(llama.ClosedError, match="this tokenizer is closed"):
        tokenizer.encode("a")


def test_closing_a_tokenizer_ends_the_texts_that_use_it(folder):
    tokenizer = llama.Tokenizer(folder / "tokenizer.bin")
    model = llama.Llama(folder / "model.bin", tokenizer)
    generation = model.generate("a")
    tokenizer.close()
    with pytest.raises(llama.ClosedError):
        next(generation)


def test_with_closes(folder):
    with llama.Llama(folder / "model.bin") as model, model.tokenizer as tokenizer:
        assert next(model.generate("a", logit_bias={1: -math.inf, 2: -math.inf}))
    for closed in (model, tokenizer):
        with pytest.raises(llama.ClosedError):
            closed.encode("a")


def test_a_generation_keeps_what_it_needs(folder):
    generation = llama.Llama(folder / "model.bin").generate("a", max_tokens=20, seed=1)
    with llama.Llama(folder / "model.bin") as model:
        assert "".join(generation) == "".join(model.generate("a", max_tokens=20, seed=1))


# --- interrupting

INTERRUPTED = """
import sys, llama
model = llama.Llama(sys.argv[1])
try:
    print("ready", flush=True)
    while True:
        "".join(model.generate("a", logit_bias={1: -float("inf"), 2: -float("inf")}))
except KeyboardInterrupt:
    print("".join(model.generate("a", max_tokens=3, logit_bias={260: 1e9})), flush=True)
"""


def interrupt(arguments, folder, ready):
    """Interrupts Python after its first `ready` bytes; returns the code, the rest, stderr and the seconds."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with subprocess.Popen(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        process.stdout.read(ready)
        time.sleep(0.2)
        start = time.monotonic()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        return process.returncode, out, err, time.monotonic() - start


@pytest.fixture(scope="module")
def long_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("long")
    write_tokens(folder / "tokenizer.bin")
    return write_model(folder / "long.bin", max_seq_len=50_000)


FORK = """
import os, sys, llama
model = llama.Llama(sys.argv[1], threads=2)
text = "".join(model.generate("a", max_tokens=9, seed=1))
child = os.fork()
if child == 0:
    os._exit("".join(model.generate("a", max_tokens=9, seed=1)) != text)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_forked_child_writes_the_same_text(folder, tmp_path):
    result = python("-W", "ignore", "-c", FORK, str(folder / "model.bin"), cwd=tmp_path)
    assert (result.stdout, result.stderr) == ("0\n", "")


def test_ctrl_c_stops_a_text_and_the_model_goes_on(long_model):
    code, out, err, seconds = interrupt(
        ["-c", INTERRUPTED, str(long_model)], long_model.parent, len("ready\n")
    )
    assert (code, out, err) == (0, b"aaa\n", b"")
    assert seconds < 5


def test_ctrl_c_stops_the_command_line(long_model):
    arguments = ["-m", "llama.run", str(long_model), "-n", "0", "--samples", "1000000"]
    code, _, err, seconds = interrupt(arguments, long_model.parent, 1)
    assert (code, err) == (130, b"")
    assert seconds < 5


# --- the command line


def test_help_goes_to_standard_output(tmp_path):
    result = python("-m", "llama.run", "--help", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert "--temperature" in result.stdout


def test_the_command_line_reports_errors_in_one_line(tmp_path):
    result = python("-m", "llama.run", "nowhere.bin", cwd=tmp_path)
    expected = (3, "", "error: nowhere.bin: No such file or directory\n")
    assert (result.returncode, result.stdout, result.stderr) == expected


def test_the_command_line_writes_what_generate_does(folder, model):
    arguments = [str(folder / "model.bin"), "-i", "abc", "-n", "30", "-s", "5"]
    result = python("-m", "llama.run", *arguments, "--no-echo", "--samples", "2", cwd=folder)
    assert result.returncode == 0, result.stderr
    first = "".join(model.generate("abc", max_tokens=31 - len(model.encode("abc")), seed=5))
    assert result.stdout.startswith(f"{first}\n---\n")
    assert result.stderr.startswith("prompt: 1 tokens, ")


def test_a_full_disk_is_an_error_without_a_traceback(folder):
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("this system has no /dev/full")
    with full.open("w") as out:
        result = subprocess.run(
            [
                sys.executable,
                "-c",
                "import sys; from llama.run import main; sys.exit(main(sys.argv[1:]))",
                "model.bin",
            ],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            stdout=out,
            stderr=subprocess.PIPE,
            check=False,
        )
    assert (result.returncode, result.stderr) == (4, b"error: standard output: No space left on device\n")


# --- the wheel


@pytest.mark.slow
def test_wheel_from_the_sdist_works_in_a_fresh_environment(folder, tmp_path):
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    result = subprocess.run(build, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.startswith(f"cria-{llama.__version__}-cp310-abi3-")

    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True)
    interpreter = tmp_path / "venv" / "bin" / "python"
    site = Path(
        subprocess.run(
            [interpreter, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    )
    # The dependencies come from the environment of the tests: no network. Its .pth files are not read.
    (site / "dependencies.pth").write_text(f"{Path(pytest.__file__).parent.parent}\n", encoding="utf-8")
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--target",
        site,
        wheel,
    ]
    subprocess.run(install, check=True)

    code = (
        "import llama, sys; print(llama.__file__); print(llama.Llama(sys.argv[1]).config.dim); llama.Llama()"
    )
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    result = subprocess.run(
        [interpreter, "-c", code, str(folder / "model.bin")],
        cwd=tmp_path,
        env=clean,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.stdout.splitlines() == [str(site / "llama" / "__init__.py"), "16"], result.stderr
    assert not list(site.glob("llama/csrc")), "only the package is installed"
