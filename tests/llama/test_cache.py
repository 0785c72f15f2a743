"""llama.cache: a model of another format is converted once, anew when it changes, and never left half."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import checkpoints
import numpy as np
import pytest
from helpers import assert_refused, environment, finish
from tiny_models import write_chain

import llama
from llama import cache, convert, names
from llama.files import written_aside
from llama.native import SHIPPED

PROMPT = {"prompt": "Once upon a time", "temperature": 0, "max_tokens": 12}


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch) -> Path:
    """A cache of the test's own."""
    monkeypatch.setenv("CRIA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    """The model that ships as a folder of Hugging Face."""
    path = tmp_path_factory.mktemp("original") / "stories"
    assert convert.main([str(SHIPPED), str(path)]) == 0
    return path


@pytest.fixture
def source(original, tmp_path) -> Path:
    """A copy that a test may change."""
    path = tmp_path / "stories"
    path.mkdir()
    for file in original.iterdir():
        (path / file.name).write_bytes(file.read_bytes())
    return path


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_second_time_nothing_is_converted(source, home):
    said: list[str] = []
    path = cache.converted(source, say=said.append)
    assert path.parent == home
    assert said == [f"converting {source} to bf16, kept as {path}"]
    before = path.stat()
    assert cache.converted(source, say=said.append) == path
    assert len(said) == 1
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    assert files(home) == [path.name, path.with_suffix(".json").name]


def test_another_type_and_a_changed_source_are_other_files(source, home):
    paths = {cache.converted(source), cache.converted(source, "fp32")}
    assert [entry.source for entry in cache.entries()] == [str(source)] * 2
    config = source / "config.json"
    config.write_text(config.read_text() + "\n")
    paths.add(cache.converted(source))
    assert len(paths) == 3
    assert len(cache.entries()) == 1  # those of what the source was are gone
    with pytest.raises(llama.UsageError, match="dtype = int3, allowed int8, int4, bf16, fp32"):
        cache.converted(source, "int3")


def test_a_model_without_a_tokenizer_is_said_to_be_one(source, caplog):
    cache.converted(source)
    assert not caplog.messages
    for file in source.glob("tokenizer*"):
        file.unlink()
    cache.converted(source)
    assert caplog.messages == [f"{source}: has no tokenizer: texts take one of yours (-z)"]


def test_a_folder_tells_the_story_of_its_bin(source):
    with llama.Llama(source, dtype="int8") as converted, llama.Llama() as shipped:
        assert converted.config.weight_type == "int8"
        assert "".join(converted.generate(**PROMPT)) == "".join(shipped.generate(**PROMPT))


def run(source: Path, *options: str) -> subprocess.CompletedProcess:
    """python -m llama.run of a model of another format."""
    command = [sys.executable, "-m", "llama.run", source, "-t", "0", "-n", "12", *options]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=60, check=False)


def test_the_command_line_converts_once(source, home):
    with llama.Llama() as shipped:
        story = "Once" + "".join(shipped.generate("Once", temperature=0, max_tokens=11)) + "\n"
    first, second = run(source, "-i", "Once"), run(source, "-i", "Once")
    assert (first.returncode, first.stdout) == (second.returncode, second.stdout) == (0, story)
    assert first.stderr.startswith(f"converting {source} to bf16, kept as {home}/")
    assert second.stderr.startswith("prompt: ")
    without = "import sys; sys.modules['numpy'] = None; from llama.run import main; exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", without, source, "-n", "1"]  # numpy would take longer than the rest
    assert subprocess.run(command, env=environment(), timeout=60, check=False).returncode == 0


def test_the_command_line_says_which_type_and_whether_to_keep_it(source, home):
    result = run(source, "--dtype", "int4", "--no-cache", "--stats")
    assert result.returncode == 0, result.stderr
    assert result.stderr.startswith(f"converting {source} to int4, for this run\n")
    assert " M parameters, int4, " in result.stderr
    assert not home.exists()


def test_a_bin_of_another_type_is_converted_and_one_of_that_type_is_not(tmp_path, home):
    model = tmp_path / "stories.bin"
    model.write_bytes(SHIPPED.read_bytes())
    result = run(model, "--dtype", "bf16", "--stats")
    assert result.returncode == 0, result.stderr
    assert result.stderr.startswith(f"converting {model} to bf16, kept as {home}/")
    assert " M parameters, bf16, " in result.stderr
    assert "converting" not in run(model, "--dtype", "int8").stderr
    with llama.Llama(model, dtype="int4") as made, llama.Llama(model, dtype="int8") as same:
        assert (made.config.weight_type, same.config.weight_type, same.path) == ("int4", "int8", str(model))


@pytest.mark.parametrize(("version", "dtype"), [(0, "fp32"), (1, "fp32"), (2, "int8")])
def test_rows_are_converted_where_their_own_type_is_asked_for(tmp_path, version, dtype):
    model = tmp_path / "model.bin"
    checkpoints.write(model, checkpoints.Shape(), version)
    assert not cache.is_to_convert(model, None)
    assert cache.is_to_convert(model, dtype)
    path = cache.converted(model, dtype)
    assert not cache.is_to_convert(path, dtype)
    ids, bound = list(range(30)), 1e-4 if dtype == "fp32" else 1e-2  # scales are in half precision
    with llama.Llama(model, exact=True) as rows, llama.Llama(path, exact=True) as tiles:
        np.testing.assert_allclose(tiles.logits(ids), rows.logits(ids), rtol=0, atol=bound)


def test_a_converted_bin_of_llama2c_keeps_its_template_and_its_tokenizer(tmp_path):
    model = write_chain(tmp_path, [" x"], {"<s>": " x"})
    assert cache.tokenizer_beside(model) == str(tmp_path / "tokenizer.bin")
    with names.opened(model, None, "int8") as files:
        assert files.tokenizer == str(tmp_path / "tokenizer.bin")
    for dtype in (None, "int8"):
        with llama.Llama(model, dtype=dtype) as opened:
            assert opened.encode_chat([{"role": "user", "content": "x"}])
            assert "".join(opened.generate("x", temperature=0, max_tokens=3)) == " x x x"
    (tmp_path / "tokenizer.bin").rename(tmp_path / "mine.bin")
    (tmp_path / "tokenizer.json").write_text("{")  # which the engine does not look at
    assert cache.tokenizer_beside(model) is None
    mine = tmp_path / "mine.bin"
    result = run(model, "--dtype", "int8", "-z", str(mine), "-i", "x")
    assert result.returncode == 0, result.stderr
    assert "has no tokenizer" not in result.stderr
    with names.opened(model, str(mine), "int8") as files:
        assert files.tokenizer == str(mine)


def test_the_command_line_takes_the_tokenizer_in_another_model(tmp_path):
    shape = checkpoints.Shape(vocab_size=4096)
    checkpoints.write(tmp_path / "v0.bin", shape)
    result = run(tmp_path / "v0.bin", "-z", str(SHIPPED), "-i", "Once")
    assert (result.returncode, result.stdout[:4]) == (0, "Once"), result.stderr


def test_what_is_served_runs_as_it_is_where_the_cache_can_not_have_it(tmp_path, monkeypatch, home, capsys):
    v2 = tmp_path / "v2.bin"
    checkpoints.write(v2, checkpoints.Shape(), 2)
    monkeypatch.setattr(cache, "LARGE_ROWS", 1)
    with names.opened(v2, cache=False, served=True) as files:
        assert files.model == str(v2)
    assert not capsys.readouterr().err
    home.write_text("a file where the folder of the cache should be")
    with names.opened(v2, served=True) as files:
        assert files.model == str(v2)
    said = capsys.readouterr().err
    assert said.startswith(f"note: {v2}: runs as it is, which takes twice as long: {home}: is a file")
    assert said.count("\n") == 1
    with pytest.raises(llama.BadFileError, match="is a file, allowed is a folder"):
        llama.Llama(v2, dtype="int8")


def test_without_a_home_a_line_says_what_to_set(monkeypatch):
    for name in ("CRIA_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", lambda: Path("~nobody at all").expanduser())
    with pytest.raises(llama.ResourceError, match=r"\$CRIA_CACHE names none, nor is there a home"):
        cache.folder()


def test_a_long_name_is_cut(source):
    path = source.rename(source.with_name("é" * 120))
    assert cache.converted(path).name.startswith("é" * 80 + "-usual-")


def test_an_error_of_the_system_is_one_of_ours_in_python(source, monkeypatch):
    monkeypatch.setenv("CRIA_CACHE", "/dev/null/cache")
    with pytest.raises(llama.LlamaError, match="/dev/null/cache"):
        llama.Llama(source)


def test_what_is_served_is_converted_where_it_is_large_and_int8_in_rows(tmp_path, monkeypatch):
    for version in (0, 2):
        checkpoints.write(tmp_path / f"v{version}.bin", checkpoints.Shape(), version)
    v2, small = tmp_path / "v2.bin", {"v0.bin": False, "v2.bin": False}
    serving = {name: cache.is_slow_to_serve(tmp_path / name) for name in small}
    assert serving == small
    monkeypatch.setattr(cache, "LARGE_ROWS", v2.stat().st_size)
    assert {name: cache.is_slow_to_serve(tmp_path / name) for name in small} == small | {"v2.bin": True}
    assert not cache.is_slow_to_serve(SHIPPED)
    assert not cache.is_slow_to_serve(tmp_path / "nothing.bin")
    with names.opened(v2) as files:
        assert files.model == str(v2)
    with names.opened(v2, served=True) as files:
        assert not cache.is_to_convert(files.model, "int8")
        assert files.model != str(v2)


def test_the_command_line_says_in_a_line_what_it_can_not_convert(source, home):
    (source / "config.json").write_text("{}")
    home.write_text("a file where the folder of the cache should be")
    result = run(source)
    assert result.returncode in (3, 4)
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1


def test_what_is_interrupted_leaves_nothing(source, home, monkeypatch):
    def interrupted(path: Path, *arguments, **options):
        with written_aside(path) as scratch:
            scratch.write_bytes(b"half")
            raise KeyboardInterrupt

    monkeypatch.setattr("llama.formats.export.export_v3", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cache.converted(source)
    monkeypatch.undo()
    os.environ["CRIA_CACHE"] = str(home)  # undone too
    assert files(home) == []
    assert cache.entries() == []
    assert cache.converted(source).exists()


def test_what_a_killed_program_left_is_removed(source, home):
    path = cache.place(source, None, cache.has_jinja())
    home.mkdir()
    left = home / f".{path.name}.999999.tmp"
    left.write_bytes(b"half")
    assert cache.converted(source) == path
    assert not left.exists()


def test_programs_that_start_at_once_convert_once(source, home):
    command = [sys.executable, "-m", "llama.perplexity", str(source), str(source / "text.txt")]
    (source / "text.txt").write_text("Once upon a time")
    programs = [
        subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, env=environment())
        for _ in range(3)
    ]
    told = [program.communicate() for program in programs]
    assert [program.returncode for program in programs] == [0, 0, 0], told
    assert sum(stderr.count(b"converting") for _, stderr in told) == 1
    assert len(cache.entries()) == 1


def test_without_the_cache_nothing_is_kept(source, home):
    command = [sys.executable, "-m", "llama.bench", str(source), "-r", "1", "-n", "4", "--no-cache"]
    command += ["--prefill", "8", "--sequences", "1", "-j", "1"]
    result = subprocess.run(command, capture_output=True, env=environment(), check=False)
    assert result.returncode == 0, result.stderr
    assert result.stderr == f"converting {source} to bf16, for this run\n".encode()
    assert not home.exists()


def test_what_is_kept_is_listed_and_cleared(source, home, capsys):
    cache.converted(source)
    cache.main([])
    listed = capsys.readouterr().out
    assert listed.startswith(f"{home}: 1 model, ")
    assert listed.endswith(f"  {source}\n")
    (source / "config.json").touch()
    cache.main(["list"])
    assert capsys.readouterr().out.endswith(f"  {source} (changed since, or gone)\n")
    with pytest.raises(llama.BadFileError, match=r"^other: no converted model"):
        cache.main(["clear", "other"])
    cache.main(["clear", "stories"])
    assert capsys.readouterr().out == "1 file deleted\n"
    assert cache.entries() == []


@pytest.mark.parametrize(
    ("pattern", "meant"),
    [
        *(("", True), ("owner/smol", True), ("hf:owner/smol@v2", True), ("models--owner", True)),
        *(("owner/smol:q8_0", True), ("hf:owner/smol/sub/a.Q8_0.gguf", True), ("smol", True)),
        ("https://huggingface.co/owner/smol", True),
        *(("owner/smo", False), ("owner/smol:Q4_0", False), ("hf:owner/smol/b.gguf", False)),
        *(("stories15M", False), ("a/b/c", False)),
    ],
)
def test_a_model_of_the_hub_is_meant_by_its_name(pattern, meant):
    source = "/hub/models--owner--smol/snapshots/0123abcd/sub/a.Q8_0.gguf"
    assert cache.is_meant(source, pattern) == meant


def test_a_file_in_the_place_of_the_folder_is_named(source, home):
    home.write_text("a file")
    message = f"{home}: is a file, allowed is a folder for converted models ($CRIA_CACHE)"
    for arguments in ([], ["clear"]):
        with pytest.raises(llama.BadFileError, match=f"^{re.escape(message)}$"):
            cache.main(arguments)
    result = run(source)
    assert (result.returncode, result.stderr) == (3, f"error: {message}\n")


@pytest.mark.skipif(sys.platform == "win32", reason="names of files can't hold control characters")
def test_what_a_terminal_would_obey_is_not_said(source, home):
    path = source.rename(source.with_name("a\x1b[31m\nb"))
    assert run(path).stderr.startswith(f"converting {path.parent}/a?[31m b to bf16, kept as {home}/a?[31m b-")
    (path / "config.json").unlink()
    message = f"error: {path.parent}/a?[31m b: is no folder of a model"
    assert run(path).stderr.startswith(message) or "config" in run(path).stderr


@pytest.mark.parametrize(
    ("system", "variables", "expected"),
    [
        ("linux", {"CRIA_CACHE": "/c"}, "/c"),
        ("linux", {"XDG_CACHE_HOME": "/x"}, "/x/cria"),
        ("linux", {"HOME": "/h"}, "/h/.cache/cria"),
        ("darwin", {"HOME": "/h"}, "/h/Library/Caches/cria"),
        ("win32", {"LOCALAPPDATA": "/local"}, "/local/cria/cache"),
    ],
)
def test_the_folder_is_the_platforms(monkeypatch, system, variables, expected):
    for name in ("CRIA_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "platform", system)
    assert cache.folder() == Path(expected)


@pytest.mark.parametrize(
    ("data", "foreign"),
    [
        (b"GGUF\3\0\0\0", True),
        (b"PK\3\4" + bytes(20), True),
        (b"\x40\0\0\0\0\0\0\0" + b'{"a":{}}', True),
        (b"ak42"[::-1] + bytes(60), False),
        (b"\x20\1\0\0\0\3\0\0\6\0\0\0", False),
        (b"", False),
    ],
)
def test_what_the_engine_opens_is_not_converted(tmp_path, data, foreign):
    path = tmp_path / "model"
    path.write_bytes(data)
    assert cache.is_foreign(path) == foreign
    assert not cache.is_foreign(tmp_path / "missing")


def test_an_empty_pattern_clears_nothing(source, home):
    """In Python neither: it would be in every path."""
    path = cache.converted(source)
    with pytest.raises(llama.UsageError, match="pattern: is empty"):
        cache.clear("")
    assert path.exists()


def test_what_was_left_half_is_cleared(source, home):
    path = cache.converted(source)
    path.with_suffix(".json").unlink()
    (home / f".{path.name}.999999.tmp").write_bytes(b"half")
    cache.clear()
    assert files(home) == []


def test_with_standard_error_closed_the_text_is_the_same(source, home):
    command = [sys.executable, "-m", "llama.run", str(source), "-t", "0", "-n", "5", "-i", "Once"]
    closed = ["sh", "-c", 'exec "$@" 2>&-', "sh", *command]
    result = subprocess.run(closed, capture_output=True, env=environment(), check=False)
    told = subprocess.run(command, capture_output=True, env=environment(), check=False)
    assert (result.returncode, result.stdout) == (0, told.stdout)


@pytest.mark.parametrize("program", ["run", "info", "perplexity"])
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "pytorch_model.bin", "params.json"])
def test_one_file_of_a_folder_asks_for_the_folder(source, program, name):
    if not (source / name).exists():
        (source / name).write_bytes((source / "config.json").read_bytes())
    text = [str(source / "config.json")] if program == "perplexity" else []
    command = [sys.executable, "-m", f"llama.{program}", str(source / name), *text]
    wanted = f"{source / name}: is one file of a model's folder: give the folder, {source}"
    assert_refused(finish(command, env=environment(), capture_output=True), 3, wanted)
