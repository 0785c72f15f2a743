"""Chat templates: which one of those that the engine has, and how its own are written in Jinja.

A template is a program, so what it is shows in what it does: it renders a few conversations, and is one that
is built in (llama/csrc/text/chat.h) if it renders all of them alike. A system text of its own, for
conversations without one or in front of any, is found by the way and goes along as text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

from llama.errors import LlamaError

KINDS = ("none", "llama2", "llama3", "other", "chatml", "zephyr", "mistral", "plain")  # LLAMA_CHAT_NONE ...
TEMPLATE_FILES = ("additional_chat_templates/default.jinja", "chat_template.jinja")  # the first counts
BUILT_IN = tuple(kind for kind in KINDS if kind not in ("none", "other"))


@dataclass(frozen=True)
class Chat:
    """How a model chats.

    kind: one of KINDS; "other": text, and none that is built in. text: the model's own template in Jinja.
    system: the system text of a conversation that has none. preamble: what goes in front of one that has. In
    these two \\x02form\\x03 stands for the day's date, in a form of strftime.
    """

    kind: str = "none"
    text: str = ""
    system: str = ""
    preamble: str = ""


# --- The engine's own, in Jinja

LLAMA2 = """\
{%- set system = '' -%}
{%- if messages[0].role == 'system' -%}
{%- set system = '<<SYS>>\\n' + messages[0].content + '\\n<</SYS>>\\n\\n' -%}
{%- set messages = messages[1:] -%}
{%- endif -%}
{%- for message in messages -%}
{%- if message.role == 'user' -%}
{{ bos_token + '[INST] ' + ((system if loop.first else '') + message.content).strip() + ' [/INST]' }}
{%- else -%}
{{ ' ' + message.content.strip() + ' ' + eos_token }}
{%- endif -%}
{%- endfor -%}
"""
LLAMA3 = """\
{{- bos_token -}}
{%- for message in messages -%}
{{ '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' -}}
{{ message.content.strip() + '<|eot_id|>' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif -%}
"""
CHATML = """\
{%- for message in messages -%}
{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '<|im_start|>assistant\\n' }}
{%- endif -%}
"""
ZEPHYR = """\
{%- for message in messages -%}
{{ '<|' + message.role + '|>\\n' + message.content + eos_token + '\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '<|assistant|>\\n' }}
{%- endif -%}
"""
MISTRAL = """\
{{- bos_token -}}
{%- set system = '' -%}
{%- if messages[0].role == 'system' -%}
{%- set system = messages[0].content + '\\n\\n' -%}
{%- set messages = messages[1:] -%}
{%- endif -%}
{%- for message in messages -%}
{%- if message.role == 'user' -%}
{{ ' [INST] ' + (system if loop.first else '') + message.content + ' [/INST]' }}
{%- else -%}
{{ ' ' + message.content + eos_token }}
{%- endif -%}
{%- endfor -%}
"""
TEMPLATES = {"llama2": LLAMA2, "llama3": LLAMA3, "chatml": CHATML, "zephyr": ZEPHYR, "mistral": MISTRAL}

PUBLISHED = {  # by SHA-256: what published templates turned out to be, for where jinja2 is not installed
    "872be49dbb638044ad01b60388f48d469ff2980e5f0dccdc22ec907db54d0788": Chat(  # SmolLM2
        "chatml", system="You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    )
}


def template_text(chat: Chat) -> str:
    """The template in Jinja: the model's own, else that of a kind; "" for none."""
    return chat.text or TEMPLATES.get(chat.kind, "")


# --- What a template does


@dataclass(frozen=True)
class Conversation:
    """texts: of the user and the model in turn, the user's first and last."""

    texts: tuple[str, ...]
    system: str | None = None

    @property
    def messages(self) -> list[dict[str, str]]:
        roles = ("user", "assistant")
        told = [] if self.system is None else [{"role": "system", "content": self.system}]
        return told + [{"role": roles[i % 2], "content": text} for i, text in enumerate(self.texts)]


NAMES = "</s><s>[INST] <|im_end|>\n<|im_start|>system\nx<|eot_id|> [/INST]"
THOUGHT = "<think>\nWhy?\n</think>\n\nFine."  # some templates take it out of what lies behind
CONVERSATIONS = (
    Conversation(("Hello",)),
    Conversation(("Hello",), "Be brief."),
    Conversation(("  two words \r\n\n",)),
    Conversation(("\tq\n ", "Well.", " \nand again  ")),
    Conversation(("\tq\n ", "Well.", " \nand again  "), " \n odd  \n"),
    Conversation((NAMES, "Well.", "100% of %s", "Yes.", "third")),
    Conversation((NAMES, "Well.", "two"), NAMES),
    Conversation(("Hello", THOUGHT, "two")),
)


@dataclass(frozen=True)
class BuiltIn:
    """A template of the engine (LlamaChatTemplate), with the names that a tokenizer has for <s> and </s>."""

    begin: str
    next: str
    system: str
    user: str
    answer: str
    strip: int

    def turn(self, user: str, system: str | None = None) -> str:
        """What the user says, after the system text as it is to be."""
        told = "" if system is None else self.system.replace("%", system)
        if self.strip == 2:  # LLAMA_STRIP_WHOLE
            return self.user.replace("%", (told + user).strip())
        return told + self.user.replace("%", user.strip() if self.strip else user)

    def render(self, talk: Conversation, own: Chat) -> str:
        """The text of a conversation. own: the system texts of the model."""
        told = own.system or None
        if talk.system is not None:
            told = own.preamble + (talk.system.strip() if self.strip == 1 else talk.system)
        text = self.begin + self.turn(talk.texts[0], told)
        for answer, user in zip(talk.texts[1::2], talk.texts[2::2], strict=True):
            text += self.answer.replace("%", answer.strip() if self.strip else answer)
            text += self.next + self.turn(user)
        return text


def built_in(kind: str, bos: str, eos: str, special: Collection[str]) -> BuiltIn | None:
    """A template of the engine, None where the tokenizer lacks a token of it. bos, eos: "" for none."""
    from llama._engine import ffi, lib

    found, fields = lib.llama_chat_template(KINDS.index(kind)), ("begin", "next", "system", "user", "answer")
    parts = {field: ffi.string(getattr(found, field)).decode() for field in fields}
    whole = "".join(parts.values())
    named = [name.split("|>")[0] for name in whole.split("<|")[1:]] if found.needs_names else []
    ends = {"</s>": eos, "<s>": bos}
    lacks = [name for name in named if f"<|{name}|>" not in special]
    if lacks or any(name in whole and not spelt for name, spelt in ends.items()):
        return None
    for name, spelt in ends.items():
        parts = {field: part.replace(name, spelt) for field, part in parts.items()}
    return BuiltIn(**parts, strip=found.strip)


def end_of_turn(kind: str) -> str:
    """The name of the token that ends an answer by a template of the engine, "" where it is EOS, or none.

    >>> end_of_turn("chatml"), end_of_turn("zephyr")
    ('<|im_end|>', '')
    """
    from llama._engine import ffi, lib

    found = lib.llama_chat_template(KINDS.index(kind))
    return ffi.string(found.next).decode().split("|>")[0] + "|>" if found.needs_names else ""


def inner(text: str, ours: BuiltIn, talk: Conversation) -> str | None:
    """What stands for the system text in a rendered conversation, None where the rest is not alike."""
    hole = "\x00"
    begin, end = ours.render(replace(talk, system=hole), Chat()).split(hole)
    fits = len(text) >= len(begin) + len(end) and text.startswith(begin) and text.endswith(end)
    return text[len(begin) : len(text) - len(end)] if fits else None


def own_texts(rendered: list[str], ours: BuiltIn) -> Chat | None:
    """The system texts that a template has of its own, None where it can't be the built-in one.

    rendered: the first two of CONVERSATIONS, the same question without a system text and with one.
    """
    bare, told = CONVERSATIONS[:2]
    default = "" if rendered[0] == ours.render(bare, Chat()) else inner(rendered[0], ours, bare)
    given = inner(rendered[1], ours, told)
    if default is None or given is None or not given.endswith(str(told.system)):
        return None
    return Chat(system=default, preamble=given.removesuffix(str(told.system)))


def kinds_like(rendered: list[str], bos: str, eos: str, special: Collection[str]) -> Iterator[Chat]:
    """The templates of the engine that render all of CONVERSATIONS so."""
    for kind in TEMPLATES:
        ours = built_in(kind, bos, eos, special)
        own = own_texts(rendered, ours) if ours else None
        if (
            ours
            and own
            and all(
                ours.render(talk, own) == text for talk, text in zip(CONVERSATIONS, rendered, strict=True)
            )
        ):
            yield replace(own, kind=kind)


def known(chat: Chat, bos: str, eos: str, special: Collection[str]) -> Chat:
    """What recognised finds of a template that this project wrote, or of a PUBLISHED one; else the chat."""
    written = {text: Chat(kind) for kind, text in TEMPLATES.items()}
    found = written.get(chat.text) or PUBLISHED.get(hashlib.sha256(chat.text.encode()).hexdigest())
    if found is None or built_in(found.kind, bos, eos, special) is None:
        return chat
    return replace(found, text=chat.text)


def recognised(chat: Chat, bos: str, eos: str, special: Collection[str]) -> Chat:
    """A chat of kind "other" with the kind that its template turns out to be; any other as it is.

    bos, eos: names of these tokens, "" for none. special: names of all special tokens. Where jinja2 is not
    installed it stays "other", unless it is known to the letter.
    """
    if chat.kind != "other":
        return chat
    if not find_spec("jinja2"):
        return known(chat, bos, eos, special)
    from llama.templates import render

    names: dict[str, Any] = {name: text for name, text in (("bos_token", bos), ("eos_token", eos)) if text}
    try:
        names |= {"strftime_now": lambda form: f"\x02{form}\x03"}
        rendered = [render(chat.text, talk.messages, **names) for talk in CONVERSATIONS]
    except LlamaError:
        return chat
    return next((replace(own, text=chat.text) for own in kinds_like(rendered, bos, eos, special)), chat)


def missing(chat: Chat) -> str | None:
    """What to say of a template that could not be looked at, None where it could."""
    if chat.kind != "other" or find_spec("jinja2"):
        return None
    return "chat template: carried along, but not recognised without jinja2 (pip install jinja2)"
