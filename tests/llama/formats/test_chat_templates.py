"""Which template a model has is told by what it does, not by the words in it.

The templates here are written for the tests, in the ways in which models have them. What the engine makes of
one is compared with transformers in test_chat.py.
"""

from __future__ import annotations

import builtins
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from gguf_files import SMALL, random_source
from test_chat import MADE
from torch_formats import export_folder, open_source

from llama import Llama, UsageError, convert
from llama.formats import chat_templates
from llama.formats import vocabulary as tokens
from llama.formats.chat_templates import TEMPLATES, Chat, missing, recognised
from llama.formats.gguf_file import GgufFile
from llama.formats.tokenizer_json_writer import write_tokenizer
from model import Config

NAMES = {"<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|im_start|>", "<|im_end|>"}


def chat_of(text: str, special: set[str] = NAMES, bos: str = "<s>", eos: str = "</s>") -> Chat:
    return recognised(Chat("other", text), bos, eos, special)


# --- The same deeds


MESSAGE = "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}"
OPEN = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
EACH = f"{{% for m in messages %}}{MESSAGE}{{% endfor %}}{OPEN}"
DEFAULT = (
    "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are Cria.<|im_end|>\n' }}{% endif %}" + EACH.split("%}", 1)[1]
)
HEADER = "{{ '<|start_header_id|>' + %s + '<|end_header_id|>\n\n' }}"
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}"
    + HEADER % "m.role"
    + "{{ m.content | trim }}<|eot_id|>{% endfor %}"
    + HEADER % "'assistant'"
)
DATED = (
    "{% set told = messages[0].content | trim if messages[0].role == 'system' else '' %}"
    "{% if messages[0].role == 'system' %}{% set messages = messages[1:] %}{% endif %}"
    "{{ bos_token }}"
    + HEADER % "'system'"
    + "{{ 'Today: ' + strftime_now('%d %b %Y') + '\n\n' + told + '<|eot_id|>' }}"
    + LLAMA3.split("}}", 1)[1]
)
INSTRUCTED = """\
{%- if messages[0]['role'] == 'system' -%}
  {%- set rest = messages[1:] -%}{%- set told = '<<SYS>>\n' ~ messages[0]['content'] ~ '\n<</SYS>>\n\n' -%}
{%- else -%}
  {%- set rest = messages -%}{%- set told = '' -%}
{%- endif -%}
{%- for m in rest -%}
  {%- if (m['role'] == 'user') != (loop.index0 % 2 == 0) -%}{{ raise_exception('take turns') }}{%- endif -%}
  {%- set content = told ~ m['content'] if loop.index0 == 0 else m['content'] -%}
  {%- if m['role'] == 'user' -%}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}
  {%- else -%}{{ ' ' + content.strip() + ' ' + eos_token }}{%- endif -%}
{%- endfor -%}"""
MISTRAL = INSTRUCTED.replace("'<<SYS>>\n' ~ ", "").replace("'\n<</SYS>>\n\n'", "'\n\n'")
MISTRAL = "{{ bos_token }}" + MISTRAL.replace("bos_token + '[INST] '", "' [INST] '").replace(
    "content.strip()", "content"
)
MISTRAL = MISTRAL.replace("' ' + eos_token", "eos_token")
ZEPHYR = """\
{% for m in messages %}
{% if m['role'] == 'user' %}
{{ '<|user|>\n' + m['content'] + eos_token }}
{% elif m['role'] == 'system' %}
{{ '<|system|>\n' + m['content'] + eos_token }}
{% else %}
{{ '<|assistant|>\n' + m['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}"""

BEFORE = "Tools.<|eot_id|><|start_header_id|>system<|end_header_id|>\n\n"
TOLD = LLAMA3.replace("{% for", HEADER % "'system'" + "Tools.<|eot_id|>{% for", 1)
DATE = "Today: \x02%d %b %Y\x03\n\n"
SAME = {
    "ChatML": (EACH, Chat("chatml")),
    "ChatML with a system text of its own": (DEFAULT, Chat("chatml", system="You are Cria.")),
    "Llama 3": (LLAMA3, Chat("llama3")),
    "Llama 3 with the date in front": (DATED, Chat("llama3", system=DATE, preamble=DATE)),
    "Llama 3 with a message of its own": (TOLD, Chat("llama3", system="Tools.", preamble=BEFORE)),
    "Llama 2": (INSTRUCTED, Chat("llama2")),
    "Mistral": (MISTRAL, Chat("mistral")),
    "Zephyr": (ZEPHYR, Chat("zephyr")),
    **{f"the engine's own {kind}": (text, Chat(kind)) for kind, text in TEMPLATES.items()},
}


@pytest.mark.parametrize("name", SAME)
def test_a_template_is_the_one_that_renders_alike(name):
    text, expected = SAME[name]
    assert chat_of(text) == replace(expected, text=text)


# --- Other deeds

OTHER = {
    "more after Llama 3's header": LLAMA3 + ">>>",
    "texts as they are, where Llama 3 strips them": LLAMA3.replace(" | trim", ""),
    "one line feed": LLAMA3.replace("\n\n", "\n"),
    "BOS in front of ChatML": "{{ bos_token }}" + EACH,
    "ChatML that strips": EACH.replace("m['content']", "m['content'] | trim"),
    "no answer opened": EACH.replace(OPEN, ""),
    "thoughts taken out of answers": EACH.replace("m['content']", "m['content'].split('</think>')[-1]"),
    "a system text with another behind it": DEFAULT.replace("You are Cria.", "' + messages[-1].content + '"),
    "no system messages": "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}"
    + EACH,
    "a system text that is dropped": "{% set messages = messages[-1:] %}" + EACH,
    "words of Llama 2 alone": "{# [INST] <<SYS>> #}{{ messages[-1].content }}",
    "plain texts": "{% for m in messages %}{{ m.content }}{% endfor %}",
    "nothing": "",
    "no Jinja": "{% for",
    "an error": "{{ messages.nothing.at.all }}",
    "a loop without end": "{% for i in range(10 ** 9) %}x{% endfor %}",
    "what a sandbox forbids": "{{ messages.__class__.__mro__ }}{{ messages.append(1) }}",
}


@pytest.mark.parametrize("name", OTHER)
def test_a_template_that_does_something_else_is_another(name):
    assert chat_of(OTHER[name]) == Chat("other", OTHER[name])


def test_a_template_whose_tokens_the_tokenizer_lacks_is_another():
    """Text then, which Python renders and the engine would take for tokens."""
    assert chat_of(EACH, NAMES - {"<|im_end|>"}).kind == "other"
    assert chat_of(INSTRUCTED, bos="").kind == chat_of(ZEPHYR, eos="").kind == "other"
    assert chat_of(ZEPHYR, set()).kind == "zephyr"  # its names are text in the models that have it


def test_a_chat_whose_kind_is_known_stays_as_it_is(monkeypatch):
    monkeypatch.setitem(sys.modules, "llama.templates", None)
    for chat in (Chat(), Chat("llama2"), Chat("zephyr", "text", "system", "preamble")):
        assert recognised(chat, "<s>", "</s>", NAMES) == chat


# --- Through files


def folder_with(path: Path, text: str, vocabulary: tokens.Vocabulary = MADE) -> Path:
    """A Hugging Face folder of a random model with a chat template, which answers in letters."""
    shape = SMALL | {"vocab_size": len(vocabulary), "tied": False, "max_seq_len": 1024}
    source = random_source(Config(**shape))
    letters = [i for i, piece in enumerate(vocabulary.pieces) if piece in map(bytes, zip(b"abcdefghij"))]
    others = torch.ones(len(vocabulary), dtype=torch.bool)
    others[letters] = False
    source.tensors["output.weight"][others] = 0
    tokenizer = write_tokenizer("made", vocabulary, text)
    export_folder(path, replace(source, bos=vocabulary.bos, stops=(vocabulary.eos,)), tokenizer=tokenizer)
    return path


def run(*arguments: str | Path) -> None:
    assert convert.main([*map(str, arguments)]) == 0


@pytest.mark.parametrize("text", [DEFAULT, OTHER["more after Llama 3's header"]])
def test_every_format_gets_the_template_as_it_was(tmp_path, text):
    folder = folder_with(tmp_path / "folder", text)
    run(folder, tmp_path / "a.gguf")
    assert GgufFile(tmp_path / "a.gguf").get("tokenizer.chat_template") == text
    run(tmp_path / "a.gguf", tmp_path / "b.bin", "--version", "3")
    run(tmp_path / "b.bin", tmp_path / "c.gguf")
    assert GgufFile(tmp_path / "c.gguf").get("tokenizer.chat_template") == text
    run(tmp_path / "b.bin", tmp_path / "d")
    assert (tmp_path / "d" / "chat_template.jinja").read_text() == text
    run(tmp_path / "d", tmp_path / "e.bin", "--version", "3")
    expected = Chat("chatml", text, "You are Cria.") if text == DEFAULT else Chat("other", text)
    assert open_source(tmp_path / "b.bin").chat == open_source(tmp_path / "e.bin").chat == expected


def test_a_folder_that_is_copied_keeps_its_template_and_gets_it_once(tmp_path):
    folder = folder_with(tmp_path / "folder", EACH)
    given = tmp_path / "tokenizer.json"
    given.write_bytes((folder / "tokenizer.json").read_bytes())
    run(folder, tmp_path / "copy")
    run(folder, tmp_path / "given", "--tokenizer", given)
    for name in ("copy", "given"):
        assert (tmp_path / name / "chat_template.jinja").read_text() == EACH


def test_a_template_without_a_word_is_none(tmp_path):
    """As in transformers. A chat says so, before and after a conversion."""
    folder = folder_with(tmp_path / "folder", EACH)
    (folder / "chat_template.jinja").write_bytes(b"")
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    assert not theirs.chat_template
    run(folder, tmp_path / "a.bin", "--version", "3")
    for path in (folder, tmp_path / "a.bin"):
        with Llama(path) as engine, pytest.raises(UsageError, match="the model has no chat template"):
            engine.encode_chat([{"role": "user", "content": "hi"}])


def test_a_template_among_others_is_found_and_goes_along(tmp_path):
    folder = folder_with(tmp_path / "folder", OTHER["plain texts"])
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "default.jinja").write_text(EACH)
    run(folder, tmp_path / "copy")
    for path in (folder, tmp_path / "copy"):
        theirs, question = (
            transformers.AutoTokenizer.from_pretrained(path),
            [{"role": "user", "content": "hi"}],
        )
        ids = theirs.apply_chat_template(question, add_generation_prompt=True, return_dict=False)
        with Llama(path) as engine:
            assert engine.encode_chat(question) == ids


def test_a_template_that_is_chosen_takes_the_place_of_the_models(tmp_path):
    folder = folder_with(tmp_path / "folder", OTHER["plain texts"])
    run(folder, tmp_path / "a.gguf", "--template", "chatml")
    assert GgufFile(tmp_path / "a.gguf").get("tokenizer.chat_template") == TEMPLATES["chatml"]
    run(folder, tmp_path / "a.bin", "--version", "3", "--template", "plain")
    assert open_source(tmp_path / "a.bin").chat == Chat("plain")
    run(folder, tmp_path / "b.bin", "--version", "3", "--template", "none")
    assert open_source(tmp_path / "b.bin").chat == Chat()


def test_a_model_with_a_system_text_of_its_own_chats_with_it(tmp_path):
    run(folder_with(tmp_path / "folder", DEFAULT), tmp_path / "a.bin", "--version", "3")
    with Llama(tmp_path / "a.bin") as engine:
        for system in (None, "be kind"):
            told = [] if system is None else [{"role": "system", "content": system}]
            ids = engine.encode_turn("hi", system)
            assert ids == engine.encode_chat([*told, {"role": "user", "content": "hi"}])
        assert "You are Cria." in engine.decode(engine.encode_turn("hi"))


# --- Without jinja2


def test_without_jinja2_a_template_is_carried_and_said_to_be_unknown(tmp_path, monkeypatch, capsys):
    folder, real = folder_with(tmp_path / "folder", EACH), builtins.__import__

    def refuse(name: str, *rest: object) -> object:
        if name.partition(".")[0] == "jinja2":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", refuse)
    monkeypatch.setattr(chat_templates, "find_spec", lambda name: None)
    from llama import templates

    templates.environment.cache_clear()
    templates.compiled.cache_clear()
    try:
        capsys.readouterr()
        run(folder, tmp_path / "a.bin", "--version", "3")
    finally:
        templates.environment.cache_clear()
    error = "chat template: carried along, but not recognised without jinja2 (pip install jinja2)\n"
    assert capsys.readouterr().err == f"note: {folder}: {error}"
    assert open_source(tmp_path / "a.bin").chat == Chat("other", EACH)
    monkeypatch.undo()
    run(tmp_path / "a.bin", tmp_path / "b.bin", "--version", "3")  # with it, a file finds out
    assert open_source(tmp_path / "b.bin").chat == Chat("chatml", EACH)
    assert capsys.readouterr().err == ""


def test_nothing_is_said_of_a_template_that_is_known(monkeypatch):
    monkeypatch.setattr(chat_templates, "find_spec", lambda name: None)
    assert missing(Chat()) is missing(Chat("llama3", "text")) is None
    assert missing(Chat("other", "text")) is not None
