"""Fields that clients of OpenAI and llama.cpp send are honoured, change nothing, or are refused by name."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import checkpoints
import numpy as np
import openai
import pytest
from helpers import write_ranked
from serving import PIECES, SHAPE, serving
from test_chat_templates import DEFAULT, folder_with, run

from llama import Llama

PROMPT = "abc def"
USER = {"role": "user", "content": "abc"}
NATIVE = {"prompt": PROMPT, "n_predict": 8, "seed": 5}
CHAT = {"messages": [USER], "max_tokens": 8, "seed": 5}
PENALTIES = [{"repeat_penalty": 1.5}, {"presence_penalty": 1.0}, {"frequency_penalty": 1.0}]
OFF = {
    "dynatemp_range": 0,
    "dynatemp_exponent": 1.5,
    "typical_p": 1,
    "typ_p": 1.0,
    "tfs_z": 1,
    "top_n_sigma": -1,
    "xtc_probability": 0,
    "xtc_threshold": 0.2,
    "dry_multiplier": 0,
    "dry_base": 2,
    "dry_allowed_length": 3,
    "dry_penalty_last_n": 64,
    "mirostat": 0,
    "mirostat_tau": 4,
    "mirostat_eta": 0.2,
    "min_keep": 0,
    "n_indent": 0,
    "t_max_predict_ms": 0,
    "grammar": "",
    "lora": [],
    "post_sampling_probs": False,
}
HINTS = {
    "id_slot": 3,
    "cache_prompt": False,
    "n_keep": -1,
    "timings_per_token": True,
    "return_progress": True,
    "repeat_last_n": 64,
}
OPENAI = {
    "functions": [],
    "function_call": "none",
    "tools": [],
    "tool_choice": "none",
    "prompt_cache_key": "key",
    "prompt_cache_retention": "24h",
    "prompt_cache_options": {"ttl": "30m"},
    "safety_identifier": "me",
    "user": "me",
    "metadata": {"a": "b"},
    "store": True,
    "service_tier": "flex",
    "prediction": {"type": "content", "content": "abc"},
    "reasoning_effort": "none",
    "verbosity": "medium",
}


def texts(answer) -> list[str]:
    """What an answer of any endpoint says."""
    assert answer.status == 200, answer.body
    told = answer.json
    choices = told.get("choices", [told])
    return [one.get("content") or one.get("text") or one["message"]["content"] for one in choices]


def refused(answer) -> tuple[str, str]:
    """The field and the message of a 400."""
    assert answer.status == 400, answer.body
    return answer.json["error"]["param"], answer.json["error"]["message"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/completion", NATIVE),
        ("/v1/completions", {"prompt": PROMPT, "max_tokens": 8, "seed": 5}),
        ("/v1/chat/completions", CHAT),
        ("/chat/completions", CHAT),
    ],
)
def test_hints_and_what_is_turned_off_change_no_answer(server, path, body):
    expected = texts(server.post(path, body))
    for name, value in (HINTS | OFF).items():
        assert texts(server.post(path, body | {name: value})) == expected, name
    assert texts(server.post(path, body | HINTS | OFF)) == expected


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"id_slot": -2}, "id_slot = -2, allowed -1 and more"),
        ({"dynatemp_range": 0.5}, "dynatemp_range = 0.5, allowed 0"),
        ({"typical_p": 0.9}, "typical_p = 0.9, allowed 1"),
        ({"mirostat": 2}, "mirostat = 2, allowed 0"),
        ({"n_indent": 4}, "n_indent = 4, allowed 0"),
        ({"top_n_sigma": 1}, "top_n_sigma = 1, allowed up to 0"),
        ({"t_max_predict_ms": 500}, "t_max_predict_ms = 500, allowed up to 0"),
        ({"grammar": 'root ::= "a"'}, "grammar = 'root ::= \"a\"', allowed ''"),
        ({"lora": [{"id": 0}]}, "lora = [{'id': 0}], allowed 0 items at most"),
        ({"post_sampling_probs": True}, "post_sampling_probs = True, allowed False"),
        ({"samplers": ["top_k"]}, "samplers = ['top_k']: there is no such field"),
        ({"n_predict": 0}, "n_predict = 0, allowed -1 for no limit, and 1 and more"),
        ({"n_predict": -3}, "n_predict = -3, allowed -2 and more"),
        ({"top_k": -2}, "top_k = -2, allowed -1 and more"),
        (
            {"prompt": [12, True]},
            "prompt = [12, True], allowed are a text, a list of ids and texts, and a li",
        ),
    ],
)
def test_what_would_change_an_answer_is_refused_by_name(server, fields, message):
    name, told = refused(server.post("/completion", NATIVE | fields))
    assert name == next(iter(fields))
    assert told.startswith(message)


@pytest.mark.parametrize("penalty", PENALTIES, ids=str)
def test_penalties_look_at_all_tokens(server, penalty):
    body = NATIVE | penalty
    expected = texts(server.post("/completion", body))
    assert expected != texts(server.post("/completion", NATIVE | {"repeat_penalty": 1.0}))
    for n in (-1, 96, 1000):
        assert texts(server.post("/completion", body | {"repeat_last_n": n})) == expected
    for n in (0, 64, 95):
        told = f"repeat_last_n = {n} with a penalty, allowed -1 for all tokens, and 96, the context, and more"
        assert refused(server.post("/completion", body | {"repeat_last_n": n})) == ("repeat_last_n", told)


def test_no_limit_by_any_spelling(server):
    body = {"temperature": 0}
    chat = {"messages": [USER]} | body
    expected = texts(server.post("/v1/chat/completions", chat))
    for fields in ({"max_tokens": -1}, {"max_completion_tokens": -1}):
        assert texts(server.post("/v1/chat/completions", chat | fields)) == expected
    for name in ("max_tokens", "max_completion_tokens"):
        told = f"{name} = 0, allowed -1 for no limit, and 1 and more"
        assert refused(server.post("/v1/chat/completions", chat | {name: 0})) == (name, told)
    body |= {"prompt": PROMPT, "top_k": 0}
    expected = texts(server.post("/completion", body))
    for fields in ({"n_predict": -1}, {"n_predict": -2}, {"top_k": -1}):
        assert texts(server.post("/completion", body | fields)) == expected
    assert texts(server.post("/v1/completions", body | {"max_tokens": -1})) == expected


def test_a_prompt_may_be_ids_and_texts(server, tiny):
    def plain(text: str) -> list[int]:
        return tiny.encode(text, bos=False, special=True)

    ids = tiny.encode("ab")
    forms = {
        (7, "ab", 9): [7, *plain("ab"), 9],
        ("ab", 7, "cd", ""): [*ids, 7, *plain("cd")],
        (7, "</s>", "ab"): [7, tiny.tokenizer.eos_id, *plain("ab")],
    }
    body = {"n_predict": 5, "temperature": 0, "ignore_eos": True}
    for form, same in forms.items():
        mixed = server.post("/completion", body | {"prompt": list(form)}).json
        expected = server.post("/completion", body | {"prompt": same}).json
        assert mixed["content"] == expected["content"]
        assert mixed["tokens_evaluated"] == len(same)
    several = server.post("/completion", body | {"prompt": [[7, "ab", 9], "ab", [7]]}).json
    assert [one["tokens_evaluated"] for one in several] == [len(plain("ab")) + 2, len(ids), 1]
    for path in ("/v1/completions", "/v1/chat/completions"):
        assert server.post(path, {"prompt": [7, "ab"]}).status == 400
    _, told = refused(server.post("/completion", {"prompt": [5, *["a"] * 100_000]}))
    assert told == "a prompt has 100001 tokens, allowed 1 to 96, the context"


# --- Embeddings


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_embeddings_in_the_shape_of_llamacpp(server, pooling):
    asked = {"input": ["abc", "j"], "pooling": pooling}
    plain = [one["embedding"] for one in server.post("/v1/embeddings", asked).json["data"]]
    for norm, length in {
        -1: lambda x: 1,
        0: lambda x: np.abs(x).max() / 32760,
        1: lambda x: np.linalg.norm(x, 1),
        2: np.linalg.norm,
        3: lambda x: np.linalg.norm(x, 3),
    }.items():
        for name in ("content", "input"):
            body = {name: asked["input"], "pooling": pooling, "embd_normalize": norm}
            answer = server.post("/embedding", body).json
            assert [one["index"] for one in answer] == [0, 1]
            for one, vector in zip(answer, plain, strict=True):
                assert one["embedding"] == [pytest.approx(np.array(vector) / length(vector), rel=1e-5)]
    usual = server.post("/embedding", {"content": "abc", "pooling": pooling}).json
    assert np.linalg.norm(usual[0]["embedding"]) == pytest.approx(1, rel=1e-5)


# --- Infilling


def test_what_is_written_already_of_the_middle_is_gone_on_with(tmp_path: Path):
    pieces = [*PIECES, *(f" <{name}>" for name in ("PRE", "SUF", "MID", "EOT"))]
    checkpoints.write(tmp_path / "model.bin", replace(SHAPE, vocab_size=len(pieces)))
    write_ranked(tmp_path / "tokenizer.bin", pieces)
    body = {"input_prefix": "ab", "input_suffix": "cd", "n_predict": 8, "temperature": 0}
    with Llama(tmp_path / "model.bin", threads=1) as llama, serving(llama) as server:
        expected = texts(server.post("/infill", body | {"input_prefix": "abef"}))
        assert texts(server.post("/infill", body)) != expected
        assert texts(server.post("/infill", body | {"prompt": "ef", "input_extra": []})) == expected
        told = "input_extra = [{'text': 'x'}], allowed 0 items at most"
        assert refused(server.post("/infill", body | {"input_extra": [{"text": "x"}]})) == (
            "input_extra",
            told,
        )


# --- OpenAI's


def test_the_fields_of_openais_package_change_no_answer(chatty):
    asked = {"model": "any", "temperature": 0, "max_tokens": 8}
    with openai.OpenAI(base_url=f"{chatty.url}/v1", api_key="none", max_retries=0) as client:
        expected = client.chat.completions.create(messages=[USER], **asked).choices
        part = {"type": "text", "text": USER["content"], "cache_control": {"type": "ephemeral"}}
        part["prompt_cache_breakpoint"] = {"mode": "explicit"}
        for fields in (*({name: value} for name, value in OPENAI.items()), {"reasoning_effort": "medium"}):
            assert client.chat.completions.create(messages=[USER], **asked, **fields).choices == expected
        told = [{"role": "user", "content": [part]}]
        assert client.chat.completions.create(messages=told, **asked, **OPENAI).choices == expected


@pytest.mark.parametrize(
    ("fields", "status", "message"),
    [
        ({"reasoning_effort": "high"}, 400, "reasoning_effort = 'high', allowed 'none' or 'medium'"),
        ({"verbosity": "low"}, 400, "verbosity = 'low', allowed 'medium'"),
        ({"reasoning_format": "deepseek"}, 400, "reasoning_format = 'deepseek', allowed 'none' or 'auto'"),
        ({"functions": [{"name": "f"}]}, 501, "functions: this server has no such thing"),
        ({"function_call": {"name": "f"}}, 501, "functions: this server has no such thing"),
        (
            {"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "none"},
            501,
            "tools: this server has no such thing",
        ),
        ({"web_search_options": {}}, 400, "web_search_options = {}: there is no such field"),
    ],
    ids=str,
)
def test_what_openai_would_answer_otherwise_is_refused(chatty, fields, status, message):
    answer = chatty.post("/v1/chat/completions", CHAT | fields)
    assert (answer.status, answer.json["error"]["message"]) == (status, message)


@pytest.mark.parametrize("thinks", [False, True])
def test_none_is_no_effort_of_a_model_that_thinks(tmp_path, thinks):
    template = DEFAULT + "{% if enable_thinking %}<think>{% endif %}" * thinks
    chat = CHAT | {"reasoning_effort": "none"}
    run(folder_with(tmp_path / "folder", template), tmp_path / "model.gguf")
    with Llama(tmp_path / "model.gguf", threads=1) as llama, serving(llama) as server:
        answer = server.post("/v1/chat/completions", chat)
        assert server.post("/v1/chat/completions", chat | {"reasoning_effort": "medium"}).status == 200
    if not thinks:
        assert answer.status == 200
        return
    told = "reasoning_effort = 'none' of a model that thinks, allowed 'medium'"
    assert refused(answer) == ("reasoning_effort", told)


def test_an_object_by_a_schema_as_llamacpp_asks_for_it(server):
    schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"]}
    schema["additionalProperties"] = False
    form = {"type": "json_object", "schema": schema}
    same = {"type": "json_schema", "json_schema": {"schema": schema}}
    asked = {"messages": [USER], "temperature": 1.5, "seed": 3, "max_tokens": 60}
    [text] = texts(server.post("/chat/completions", asked | {"response_format": form}))
    assert json.loads(text)["a"] in (1, 2)
    assert [text] == texts(server.post("/v1/chat/completions", asked | {"response_format": same}))
    for kind in ("text", "json_schema"):
        wrong = {"response_format": form | {"type": kind}}
        told = f"response_format: type = {kind!r}, allowed: schema goes with the type json_object"
        assert refused(server.post("/v1/chat/completions", asked | wrong)) == ("response_format", told)
