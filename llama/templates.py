"""Chat templates in Jinja, run as transformers runs them, in jinja2's sandbox (extra: chat).

A template makes a text of a conversation, and names of special tokens in it are tokens. Those that people
wrote into their messages must not be: a character that no text has is put into each before it is rendered,
and where it comes out again no special token begins.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import datetime
from functools import cache
from importlib.util import find_spec
from typing import Any, NoReturn

from llama._engine import ffi, lib
from llama.errors import BadFileError, UsageError
from llama.formats.chat_templates import BUILT_IN, KINDS, Chat, template_text
from llama.native import (
    c_bytes,
    c_text,
    chat_of,
    encode,
    encode_spans,
    encode_turn,
    is_list,
    special_names,
    token_name,
    wrong,
)

Message = Mapping[str, Any]  # role and content, and what else a template knows
Span = tuple[int, int, int]  # LlamaSpan: begin, end, token or -1

MARKS = [chr(0xFDD0 + i) for i in range(32)]  # characters that Unicode promises to no text
AROUND = ("generation_begins", "generation_ends")  # what stands around {% generation %}, nothing by default
UNSAID = ("unk_token", "pad_token", "cls_token", "sep_token", "mask_token")  # which no file of ours holds
NEEDED = "a chat template in Jinja needs jinja2: pip install jinja2"


def refuse(message: str) -> NoReturn:
    """raise_exception, by which a template says what conversations it does not take."""
    raise UsageError(f"the chat template refuses the conversation: {message}")


def to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: Any = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    """The filter tojson as transformers has it: jinja2's own escapes for HTML."""
    options = {"ensure_ascii": ensure_ascii, "indent": indent, "separators": separators}
    return json.dumps(value, **options, sort_keys=sort_keys)


def today(form: str) -> str:
    """strftime_now."""
    return datetime.now().strftime(form)


@cache
def environment() -> Any:
    """The sandbox. Raises UsageError where jinja2 is not installed."""
    try:
        from jinja2 import StrictUndefined, nodes
        from jinja2.ext import Extension
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError:
        raise UsageError(NEEDED) from None

    class Generation(Extension):
        """{% generation %} marks what an assistant wrote, for training: its content, between AROUND."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            begin, end = (nodes.Output([nodes.Name(name, "load")], lineno=line) for name in AROUND)
            return [begin, *parser.parse_statements(("name:endgeneration",), drop_needle=True), end]

    extensions = [Generation, "jinja2.ext.loopcontrols"]
    made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
    made.filters["tojson"] = to_json
    made.globals |= {"raise_exception": refuse, "strftime_now": today}
    made.globals |= {
        name: StrictUndefined(f"{name} is not known, allowed bos_token and eos_token") for name in UNSAID
    }
    return made


@cache
def compiled(template: str) -> Any:
    """A template, ready to render. Raises BadFileError for what is none, UsageError without jinja2."""
    made = environment()
    try:
        return made.from_string(template)
    except Exception as error:  # besides TemplateSyntaxError whatever a compiler trips over
        raise BadFileError(f"the chat template is no Jinja: {error}") from None


def render(
    template: str, messages: Sequence[Message], add_generation_prompt: bool = True, **names: Any
) -> str:
    """The text of a conversation. names: bos_token, eos_token and what else the template may ask for.

    Raises UsageError where the template refuses the conversation, or does not get along with it.
    """
    given = {"tools": None, "documents": None, "add_generation_prompt": add_generation_prompt} | names
    try:
        return compiled(template).render(messages=list(messages), **given)
    except (UsageError, BadFileError):
        raise
    except Exception as error:  # a template is a program: it may raise whatever a program raises
        raise UsageError(f"the chat template fails: {type(error).__name__}: {error}") from None


# --- What people wrote


def guarded(text: str, names: Collection[str], mark: str) -> str:
    """Text with a mark behind the first character of each name in it, and of what begins one at its end."""
    for name in names:
        text = text.replace(name, name[0] + mark + name[1:])
    ends = (name[:n] for name in names for n in range(len(name) - 1, 0, -1))
    if end := max((end for end in ends if text.endswith(end)), key=len, default=""):
        text = text.removesuffix(end) + end[0] + mark + end[1:]
    return text


def guard(value: Any, names: Collection[str], mark: str) -> Any:
    """A message, or a part of one, with all its texts guarded."""
    if isinstance(value, str):
        return guarded(value, names, mark)
    if isinstance(value, Mapping):
        return {key: guard(item, names, mark) for key, item in value.items()}
    return [guard(item, names, mark) for item in value] if isinstance(value, list | tuple) else value


def plain_spans(text: str, mark: str) -> Iterator[Span]:
    """For each mark, the bytes of the character before it, in the text without marks."""
    at = 0
    for part in text.split(mark)[:-1]:
        at += len(part.encode(errors="replace"))
        if part:
            yield at - len(part[-1].encode(errors="replace")), at, -1


def free_marks(template: str, messages: Sequence[Message], n: int) -> list[str]:
    """Characters that are in neither. Raises UsageError where fewer than n are left."""
    said = json.dumps([template, *messages], ensure_ascii=False, default=str)
    marks = [mark for mark in MARKS if mark not in said]
    if len(marks) < n:
        raise UsageError("messages hold all of U+FDD0 to U+FDEF, which are no characters")
    return marks[:n]


def render_guarded(
    template: str,
    messages: Sequence[Message],
    specials: Collection[str],
    add_generation_prompt: bool,
    **names: Any,
) -> tuple[str, list[Span]]:
    """The text of a conversation, and where in it no special token begins. specials: names of such tokens.

    Raises what render does.
    """
    (mark,) = free_marks(template, messages, 1)
    guarded_messages = [guard(message, specials, mark) for message in messages]
    text = render(template, guarded_messages, add_generation_prompt, **names)
    return text.replace(mark, ""), list(plain_spans(text, mark))


def render_generated(
    template: str, messages: Sequence[Message], specials: Collection[str], **names: Any
) -> tuple[str, list[Span], list[tuple[int, int]]]:
    """As render_guarded, and the characters of what stands in each {% generation %}: begin, end."""
    mark, begin, end = free_marks(template, messages, 3)
    around = dict(zip(AROUND, (begin, end), strict=True))
    guarded_messages = [guard(message, specials, mark) for message in messages]
    text = render(template, guarded_messages, False, **names, **around)
    spans = list(plain_spans(text.replace(begin, "").replace(end, ""), mark))
    before, *parts = text.replace(mark, "").split(begin)
    places, at = [], len(before)
    for said, _, rest in (part.partition(end) for part in parts):
        places.append((at, at + len(said)))
        at += len(said) + len(rest)
    return text.replace(mark, "").replace(begin, "").replace(end, ""), spans, places


# --- Ids


def template_of(chat: Any) -> str:
    """The text of a LlamaChat's template, in Jinja. Raises UsageError where it has none."""
    text = c_text(chat.text, chat.text_length).decode(errors="replace")
    if not (template := template_text(Chat(KINDS[chat.kind], text))):
        raise UsageError(f"the model has no chat template; those built in are {', '.join(BUILT_IN)}")
    return template


def end_names(tokenizer: Any) -> dict[str, str]:
    """bos_token and eos_token of a C tokenizer, as templates ask for them."""
    ends = {"bos_token": lib.llama_bos(tokenizer), "eos_token": lib.llama_eos(tokenizer)}
    return {end: token_name(tokenizer, token) for end, token in ends.items() if token >= 0}


def render_chat(
    model: Any, tokenizer: Any, messages: Sequence[Message], add_generation_prompt: bool = True
) -> str:
    """The text of a conversation by the template of a C model. Raises as encode_chat."""
    template = template_of(chat_of(model))
    return render(template, messages, add_generation_prompt, **end_names(tokenizer))


def content_of(message: Message) -> bytes:
    """What a message says. Raises UsageError where that is no text."""
    return c_bytes(message.get("content"), "content")


def check_messages(messages: Sequence[Message]) -> None:
    """Raises UsageError for what is no list of messages, each with a role and something besides."""
    if not is_list(messages):
        raise wrong("messages", messages, "a list of them")
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str) or len(message) < 2:
            raise wrong(f"messages[{i}]", message, "a dict with role, a text, and content")


def encode_turns(chat: Any, tokenizer: Any, messages: Sequence[Message]) -> list[int]:
    """The ids of a conversation by a LlamaChat that is built in, up to where the next answer begins.

    Raises UsageError where it is not a system's message, if any, and then questions and answers in turn.
    """
    system, rest = None, list(messages)
    if rest and rest[0]["role"] == "system":
        system = content_of(rest.pop(0))
    if len(rest) % 2 == 0 or any(m["role"] != ("user", "assistant")[i % 2] for i, m in enumerate(rest)):
        raise UsageError("the chat template takes questions and answers in turn, a question last")
    ids = encode_turn(chat, tokenizer, content_of(rest[0]), system, True)
    for answer, question in zip(rest[1::2], rest[2::2], strict=True):
        ids += encode(tokenizer, content_of(answer), False, False)
        ids += encode_turn(chat, tokenizer, content_of(question), None, False)
    return ids


def encode_chat(
    model: Any,
    tokenizer: Any,
    messages: Sequence[Message],
    add_generation_prompt: bool = True,
    template: str | None = None,
) -> list[int]:
    """The ids of a conversation by the template of a C model, or one that is built in, and a C tokenizer.

    Without jinja2 those that are built in do as well. Raises UsageError without a template, or where it
    refuses the conversation, BadFileError.
    """
    check_messages(messages)
    chat = chat_of(model, template)
    is_built_in = lib.llama_chat_template(chat.kind).begin != ffi.NULL
    if is_built_in and (template or (add_generation_prompt and not find_spec("jinja2"))):
        return encode_turns(chat, tokenizer, messages)
    specials, names = special_names(tokenizer), end_names(tokenizer)
    text, spans = render_guarded(template_of(chat), messages, specials, add_generation_prompt, **names)
    return encode_spans(tokenizer, c_bytes(text), spans)
