"""The model that ships: small, whole, found without being named, and a teller of stories."""

import struct

import pytest
from helpers import PROGRAMS, ROOT, run

import llama
from llama import perplexity

MODEL = ROOT / "llama" / "models" / "stories.bin"
STORY = """Once upon a time, there was a little dog named Max. Max loved to play in the park with his ball.
One day, the ball rolled under a big bush. Max was sad because he could not find it. A little girl saw
Max and said, "Do not worry, I can help you." She looked under the bush and found the ball. Max was
so happy. He wagged his tail and they played together all day."""


def test_it_is_one_file_of_at_most_2_mib_with_a_card():
    assert {path.name for path in MODEL.parent.iterdir()} == {"stories.bin", "README.md"}
    assert MODEL.stat().st_size <= 2 << 20
    assert struct.unpack_from("<Ii", MODEL.read_bytes()) == (0x616B3432, 3)
    card = (MODEL.parent / "README.md").read_text(encoding="utf-8")
    for word in ("data00", "licence", "steps", "bits per byte", "configs/", "TinyStories"):
        assert word in card


@pytest.mark.parametrize("program", ["native", "python"])
def test_programs_run_it_when_no_model_is_named(tmp_path, program):
    """The working directory is another one; ./run finds it beside itself, Python in the package."""
    cwd = tmp_path if program == "python" else ROOT
    result = run(program, "-s", "1", "-t", "0", "-n", "60", cwd=cwd)
    assert result.returncode == 0, result.stderr
    assert result.stdout.decode().split()[:3] == ["Once", "upon", "a"]


def test_both_programs_tell_the_same_story():
    """One is compiled for this machine, the other for any: no compiler's flag may change a rounding."""
    texts = {run(program, "-t", "0", "-n", "300", cwd=ROOT).stdout for program in PROGRAMS}
    assert len(texts) == 1


def test_python_opens_it_when_no_path_is_given():
    with llama.Llama() as model:
        assert model.path == str(MODEL)
        text = "".join(model.generate("Lily and Tom", max_tokens=100, temperature=0))
        assert len(text.split()) > 40


def test_it_predicts_a_story_it_never_saw():
    with llama.Llama() as model:
        assert perplexity.measure(model, iter([STORY])).bits_per_byte < 1.0
