"""The README's commands do what it says, with small texts and few steps."""

import json
import random
import re
import shlex
from pathlib import Path

import checkpoints
import forked
import pytest
from helpers import ROOT, finish, write_ranked
from test_chat_templates import folder_with

from training.options import from_arguments

README = (ROOT / "README.md").read_text(encoding="utf-8")
SKIPPED = ("pip install", "python tinystories.py download")  # they need the network
QUICK = "--max_steps=2 --batch_size=2 --max_seq_len=64 --eval_windows=2 --sample_tokens=5 --eval_interval=2"


def commands(heading: str) -> list[str]:
    """The lines of the code blocks without a language of a section, without their comments."""
    section = README.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    lines = "\n".join(block for language, block in blocks if not language).splitlines()
    return [line.split("  #")[0].strip() for line in lines if line]


def words(seed: int, n: int) -> str:
    """Text with enough different words for a vocabulary of thousands of tokens."""
    rng = random.Random(seed)
    return " ".join("".join(rng.choices("abcdefghijklmnoprstu", k=rng.randint(3, 8))) for _ in range(n))


@pytest.fixture
def checkout(tmp_path):
    """The scripts, beside a few stories and texts."""
    for path in ROOT.glob("*.py"):
        (tmp_path / path.name).symlink_to(path)
    for name in ("configs", "training", "llama", "bench"):
        (tmp_path / name).symlink_to(ROOT / name)
    stories = tmp_path / "data" / "TinyStories_all_data"
    stories.mkdir(parents=True)
    for file in range(3):
        texts = [{"story": words(100 * file + i, 200)} for i in range(40)]
        (stories / f"data{file:02}.json").write_text(json.dumps(texts))
    (tmp_path / "my_texts").mkdir()
    for i in range(3):
        (tmp_path / "my_texts" / f"{i}.txt").write_text(words(1000 + i, 3000))
    return tmp_path


def run(command: str, cwd: Path) -> str:
    """What a command of the README prints to standard output."""
    program, *arguments = shlex.split(command)
    if arguments[:1] == ["train.py"]:
        arguments += QUICK.split()
    if arguments[:2] == ["dataset.py", "reverse"]:
        arguments += ["--count=200", "--val_count=20"]
    if program == "python":
        result = forked.finish(arguments, cwd=cwd)
    else:
        result = finish([ROOT / program, *arguments], cwd=cwd, capture_output=True, text=True)
    assert result.returncode == 0, (command, result.stderr[-2000:])
    return result.stdout


@pytest.mark.slow
def test_models_and_text_as_the_readme_says(tmp_path):
    pieces = ["<unk>", "\n<s>\n", "\n</s>\n", *(f"<0x{byte:02X}>" for byte in range(256)), *"abcdefghijklm"]
    write_ranked(tmp_path / "tokenizer.bin", pieces)
    for name in ("stories260K.bin", "stories15M.bin"):
        checkpoints.write(tmp_path / name, checkpoints.Shape(vocab_size=len(pieces), max_seq_len=256))
    (tmp_path / "data00.json").write_text(json.dumps([{"story": words(0, 20)}]))
    named = ("python -m llama.run stories15M ", "python -m llama.run hf:")  # test_hub.py has them
    found = [f"{line} " for line in (*commands("Run a Llama"), *commands("From Python"))]
    lines = [line for line in found if line.startswith(("./run", "python")) and not line.startswith(named)]
    assert len(lines) == 6
    for line in lines:
        assert run(line, tmp_path), line


@pytest.mark.slow
def test_training_as_the_readme_says(checkout):
    folder_with(checkout / "model", "{{ messages }}")  # another one's tokens, to learn from
    lines = [line for line in commands("Train one") if not line.startswith(SKIPPED)]
    assert len(lines) > 8
    for line in lines:
        line = line.replace("HuggingFaceTB/SmolLM2-135M-Instruct", "model")
        assert run(line, checkout) or line.startswith("python dataset.py"), line
    for model in (".", "larger", "mine"):
        assert (checkout / "out" / model / "loss.png").stat().st_size > 1000


@pytest.mark.slow
def test_tuning_as_the_readme_says(checkout):
    chatml = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    chatml += "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    folder_with(checkout / "model", chatml)
    asked, good, bad = ([{"role": role, "content": "Hi"}] for role in ("user", "assistant", "assistant"))
    chat = json.dumps({"messages": asked + good})
    pair = json.dumps({"prompt": asked, "chosen": good, "rejected": [bad[0] | {"content": "No"}]})
    (checkout / "chats.jsonl").write_text(f"{chat}\n" * 120)
    (checkout / "pairs.jsonl").write_text(f"{pair}\n" * 120)
    lines = commands("Fine-tune")
    assert len(lines) == 7
    for line in lines:
        assert run(line.replace("HuggingFaceTB/SmolLM2-135M-Instruct", "model"), checkout), line


@pytest.mark.slow
def test_the_toy_as_its_recipe_says(checkout):
    recipe = (ROOT / "configs" / "reverse.toml").read_text(encoding="utf-8")
    lines = re.findall(r"^#     (python .*)$", recipe, re.MULTILINE)
    assert len(lines) == 2
    for line in lines:
        run(line, checkout)
    assert "strings reversed" in run("python -m bench.reverse out/reverse/model.bin", checkout)


def test_each_recipe_is_whole_and_the_readme_names_none_that_is_not_there():
    recipes = {path.name: path for path in (ROOT / "configs").iterdir()}
    for path in recipes.values():
        assert path.read_text(encoding="utf-8").startswith("# ")
        from_arguments([str(path)])[0].model_config(vocab_size=512)
    assert set(re.findall(r"configs/(\w+\.toml)", README)) <= set(recipes)
