"""How good a model is: by texts as llama.perplexity has it, by tasks as lm-evaluation-harness does."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from checkpoints import Shape, write
from helpers import PIECES, TEXTS, environment, finish, write_ranked

import llama
from llama import evaluate, perplexity

QUESTIONS = [
    {"question": "the cat", "choices": [" sat", " ate the fish", "s"], "answer": 1},
    {"question": "a bad cab", "choices": ["d", " e f", " and a very long answer, after all"], "answer": 0},
    {"question": "Où?", "choices": [" 世界", " la", "!"], "answer": 2},
]
TASKS = {
    "choices": """
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: choices
doc_to_target: answer
metric_list: [{metric: acc}, {metric: acc_norm}]
""",
    "rolling": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{question * 30}}"
metric_list: [{metric: bits_per_byte}, {metric: byte_perplexity}]
""",
    "writing": """
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{question}}"
generation_kwargs: {until: ["zz"], max_gen_toks: 6}
metric_list: [{metric: exact_match}]
""",
}
CHAT = """\
{%- for message in messages -%}
{{ '<|begin|>' + message.role + ': ' + message.content + '<|end|>' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|begin|>assistant:' }}{%- endif -%}
"""
METRICS = {"choices": "acc,none", "rolling": "bits_per_byte,none", "writing": "exact_match,none"}


# --- Texts


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("evaluate")
    write(folder / "model.bin", Shape(vocab_size=len(PIECES)))
    write_ranked(folder / "tokenizer.bin", PIECES)
    return folder / "model.bin"


def test_a_text_has_the_figures_of_perplexity(path, tmp_path, capsys):
    files = [tmp_path / "a.txt", tmp_path / "b.txt"]
    for file, text in zip(files, ("abc", "the bad cab"), strict=True):
        file.write_text(text)
    options = [str(path), "--text", str(files[0]), "--text", str(files[1])]
    evaluate.main([*options, "--json"])
    found = json.loads(capsys.readouterr().out)["texts"]
    with llama.Llama(path) as model:
        expected = perplexity.measure(model, ["the bad cab"])
    assert found[str(files[1])]["loss"] == pytest.approx(-expected.log_probability / expected.tokens)
    assert found[str(files[1])]["bits_per_byte"] == expected.bits_per_byte
    evaluate.main(options)
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(": loss ")[0] for line in lines] == [str(file) for file in files]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "allowed are --text FILE and --tasks NAMES"),
        (["--tasks", ""], "--tasks = '', allowed are names with commas"),
        (["--tasks", " ,"], "--tasks = ' ,', allowed are names with commas"),
        (["--tasks", "a"], "pip install 'lm_eval>=0.4.13'"),
    ],
)
def test_what_is_missing_is_said_before_a_model_is_opened(monkeypatch, options, message):
    monkeypatch.setattr(evaluate, "find_spec", lambda name: None)
    with pytest.raises(llama.UsageError, match=message):
        evaluate.main(["missing.bin", *options])


# --- Tasks


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """A folder of tasks of each kind of question, whose data lies beside them."""
    folder = tmp_path_factory.mktemp("tasks")
    data = folder / "data.jsonl"
    data.write_text("\n".join(map(json.dumps, QUESTIONS)))
    for name, text in TASKS.items():
        source = f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: '{data}'}}}}\ntest_split: test\n"
        (folder / f"{name}.yaml").write_text(f"task: {name}\n{source}{text}")
    return folder


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """The folder of a random model for transformers, with model.bin for the engine in it."""
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    pytest.importorskip("lm_eval")
    import torch

    from llama import convert

    folder = tmp_path_factory.mktemp("pair")
    made = tokenizers.ByteLevelBPETokenizer()
    made.train_from_iterator(TEXTS, 300, special_tokens=["<|begin|>", "<|end|>"], show_progress=False)
    ends = {"bos_token": "<|begin|>", "eos_token": "<|end|>"}
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=made._tokenizer, **ends)
    theirs.chat_template = CHAT
    theirs.save_pretrained(folder)
    torch.manual_seed(3)
    shape = {"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes = {"vocab_size": made.get_vocab_size(), "max_position_embeddings": 64}
    config = transformers.LlamaConfig(**shape, **sizes, initializer_range=0.3, bos_token_id=0, eos_token_id=1)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    assert convert.main([str(folder), str(folder / "model.bin"), "--dtype", "fp32", "--version", "3"]) == 0
    return folder


@pytest.fixture(scope="module", params=[False, True], ids=["text", "chat"])
def chat(request):
    """Whether questions are those of a chat, after an example."""
    return request.param


@pytest.fixture(scope="module")
def results(pair, tasks, chat):
    """What both find, with the answer to each question."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    from llama.harness import Harness

    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    asked = {"tasks": list(TASKS), "task_manager": manager, "bootstrap_iters": 0}
    asked |= {"apply_chat_template": chat, "num_fewshot": int(chat)}
    with llama.Llama(pair / "model.bin") as model:
        both = [HFLM(str(pair), device="cpu", dtype="float32", batch_size=1), Harness(model)]
        return [simple_evaluate(lm, **asked) for lm in both]


@pytest.mark.parametrize("task", TASKS)
def test_a_task_has_the_answers_of_the_library_s_own_model(results, task):
    theirs, ours = (sorted(found["samples"][task], key=lambda one: one["doc_id"]) for found in results)
    assert len(ours) == len(QUESTIONS)
    for expected, found in zip(theirs, ours, strict=True):
        if task == "writing":  # a character cut short is one U+FFFD there, and one a byte in a stream of ours
            assert whole(found["resps"][0][0]) == whole(expected["resps"][0][0])
            continue
        pairs = zip(flat(expected["resps"]), flat(found["resps"]), strict=True)
        assert all(value == pytest.approx(wanted, abs=1e-4) for wanted, value in pairs)
    metric = METRICS[task]
    theirs, ours = (found["results"][task][metric] for found in results)
    assert ours == pytest.approx(theirs, abs=1e-4)


def test_an_answer_that_has_begun_is_gone_on_with(pair):
    from transformers import AutoTokenizer

    from llama.harness import Harness

    said = [{"role": "user", "content": "a bad"}, {"role": "assistant", "content": " a bad cab "}]
    theirs = AutoTokenizer.from_pretrained(pair).apply_chat_template
    expected = theirs(said, tokenize=False, add_generation_prompt=False, continue_final_message=True)
    with llama.Llama(pair / "model.bin") as model:
        assert Harness(model).apply_chat_template(said, add_generation_prompt=False) == expected


def whole(text):
    return re.sub("\ufffd+", "\ufffd", text)


def flat(values):
    """The numbers in lists of lists."""
    if not isinstance(values, list | tuple):
        return [values]
    return [number for value in values for number in flat(value)]


def test_the_program_prints_a_line_for_each_metric(pair, tasks, chat, results, capsys):
    options = [str(pair / "model.bin"), "--tasks", "choices", "--include", str(tasks)]
    evaluate.main([*options, *(["--chat", "--shots", "1"] if chat else [])])
    lines = capsys.readouterr().out.splitlines()
    accuracy = results[0]["results"]["choices"]["acc,none"]
    assert lines[0].split() == ["task", "metric", "value", "stderr"]
    assert lines[1].split()[:3] == ["choices", "acc", f"{accuracy:.4f}"]


def test_a_task_that_nobody_knows_is_refused_by_name(monkeypatch):
    pytest.importorskip("lm_eval")
    from llama import harness

    monkeypatch.setattr(harness, "TaskManager", lambda **options: SimpleNamespace(all_tasks=["choices"]))
    with pytest.raises(llama.UsageError, match="unknown: not known to lm_eval"):
        harness.manager_of(["choices", "unknown"], "tasks")


def test_the_library_is_imported_for_tasks_alone():
    code = "import sys, llama.evaluate; sys.exit('lm_eval' in sys.modules)"
    assert finish([sys.executable, "-c", code], env=environment()).returncode == 0
