"""lm-evaluation-harness scores a task through /v1/completions as it does through transformers."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from helpers import environment
from serving import serving

from llama import Llama, convert

QUESTIONS = [  # the right one first
    ("The capital of France is", ["Paris", "London", "a potato"]),
    ("Two and two make", ["four", "five", "banana"]),
    ("The sun rises in the", ["east", "west", "refrigerator"]),
    ("A dog says woof, and a cat says", ["meow", "moo", "π = 3.14159"]),
    ("Once upon a time there was a little girl who lived in a", ["house by the wood", "sentence", "\n\n"]),
    ("水は", ["冷たい", "火", "x"]),
]
TEXTS = [
    "A fox and a hare lived in a wood by the sea, and every evening they told each other a story.",
    "def add(a, b):\n    return a + b\n",
    "Привіт, світе! 😀 42 日本語",
]
CHOOSE = """
task: questions
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/questions.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_target: 0
doc_to_choice: "{{answers}}"
target_delimiter: " "
metric_list: [{metric: acc}]
"""
READ = """
task: texts
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/texts.jsonl}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: word_perplexity}]
"""


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture(scope="session")
def tasks(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    write_lines(folder / "questions.jsonl", [{"question": q, "answers": answers} for q, answers in QUESTIONS])
    write_lines(folder / "texts.jsonl", [{"text": text} for text in TEXTS])
    for name, text in (("questions", CHOOSE), ("texts", READ)):
        (folder / f"{name}.yaml").write_text(text.replace("FOLDER", str(folder)))
    return folder


def evaluated(tasks: Path, out: Path, *model: str) -> dict[str, list[tuple[float, bool]]]:
    """The log-likelihood of each answer and text of the tasks, and whether it is the greedy one."""
    line = [sys.executable, "-m", "lm_eval", "--tasks", "questions,texts", "--include_path", str(tasks)]
    line += ["--log_samples", "--output_path", str(out), *model]
    kept = {"HF_HOME": str(tasks / "cache"), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    done = subprocess.run(line, env=environment(**kept), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    found = {}
    for name in ("questions", "texts"):
        [path] = out.rglob(f"samples_{name}_*.jsonl")
        rows = [json.loads(row) for row in path.read_text(encoding="utf-8").splitlines()]
        rows.sort(key=lambda row: row["doc_id"])
        found[name] = [scored(answer) for row in rows for answer in row["resps"]]
    return found


def scored(answer: list[Any]) -> tuple[float, bool]:
    """(log-likelihood, greedy) of what a log has for an answer; of a text, which has no second part."""
    while isinstance(answer[0], list):
        [answer] = answer
    return float(answer[0]), len(answer) > 1 and str(answer[1]) == "True"


def assert_equal(tasks: Path, out: Path, folder: Path, model: Path) -> None:
    """The scores of a file through the server are those of a folder through transformers.

    In float64: fp32 itself is off by 1e-4 for ten unlikely tokens.
    """
    theirs = f"pretrained={folder},dtype=float64"
    expected = evaluated(tasks, out / "hf", "--model", "hf", "--device", "cpu", "--model_args", theirs)
    with Llama(model) as llama, serving(llama) as server:
        ours = f"model=any,base_url={server.url}/v1/completions,tokenizer={folder},num_concurrent=4"
        found = evaluated(tasks, out / "served", "--model", "local-completions", "--model_args", ours)
    counts = {name: len(rows) for name, rows in expected.items()}
    assert counts == {"questions": sum(len(answers) for _, answers in QUESTIONS), "texts": len(TEXTS)}
    for name, rows in expected.items():
        worst = max(abs(ours[0] - theirs[0]) for ours, theirs in zip(found[name], rows, strict=True))
        print(f"{model.name}, {name}: log-likelihoods differ by {worst:.1e} at most")
        assert [greedy for _, greedy in found[name]] == [greedy for _, greedy in rows]
        assert worst < 1e-4


def test_smollm2(tasks, folder, tmp_path):
    convert.main([str(folder), str(tmp_path / "model.bin"), "--version", "3"])
    assert_equal(tasks, tmp_path, folder, tmp_path / "model.bin")


def test_a_tiny_model(tasks, folder, tmp_path):
    """Of random weights, with SmolLM2's tokenizer."""
    torch.manual_seed(0)
    config = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    config |= {"vocab_size": 49152, "num_key_value_heads": 2, "initializer_range": 0.1}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(max_position_embeddings=256, **config))
    model.save_pretrained(tmp_path / "folder")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folder / name, tmp_path / "folder")
    convert.main([str(tmp_path / "folder"), str(tmp_path / "model.bin"), "--version", "3"])
    assert_equal(tasks, tmp_path, tmp_path / "folder", tmp_path / "model.bin")
