"""Conversations as training data: what their files may look like, their ids, and the weight of each target.

    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello", "weight": 1}]}
    {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]}
    {"prompt": "2 + 2 =", "completion": " 4"}                   both may be lists of messages
    {"prompt": "Hi", "chosen": "Hello", "rejected": "What?"}    a pair; lists of messages may hold the prompt

Beside lists of messages, "system" is the first message and "tools" go to the template; what else would change
what is learnt is refused, and all other fields (id, source, score ...) are not looked at.

A model learns what its assistant says and where that ends. Between prompt and completion that are text stands
no template, and the tokenizer's EOS behind them.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llama import Tokenizer
from llama.errors import BadFileError, LlamaError
from llama.formats.chat_templates import TEMPLATES, Chat, template_text
from llama.formats.source import Source
from llama.native import c_bytes, encode_spans, special_names
from llama.templates import render, render_generated, render_guarded
from training.named import open_text

ROLES = ("system", "developer", "user", "assistant", "tool", "ipython", "function")
SHAREGPT = {"human": "user", "gpt": "assistant", "bing": "assistant", "chatgpt": "assistant"}
LEAST, MOST = 2**-14, 65504  # of a weight that is not 0, as float16 has it (training/pretokenize.py)
KINDS = (("chosen", "rejected"), ("prompt", "completion"), ("messages",), ("conversations",))
ALLOWED = "messages, conversations, prompt and completion, or chosen and rejected"
SKIPPED = ("train", "loss")  # where others say false of a message that is not learnt
UNKNOWN = ("functions", "chat_template_kwargs")  # others' fields that change what is learnt
OPENED = ("llama3", "chatml", "zephyr")  # templates that are built in and open an answer when asked to
MARKED = re.compile(r"\{%-?\s*generation\b")  # a template that says itself what an assistant wrote

Message = Mapping[str, Any]


@dataclass(frozen=True)
class Sample:
    """A conversation, or a text whose end is to be learnt.

    weights: of the messages, as targets. text: prompt and completion instead of messages. given: what else
    the template gets, such as tools.
    """

    messages: tuple[Message, ...] = ()
    weights: tuple[float, ...] = ()
    text: tuple[str, str] | None = None
    given: Mapping[str, Any] = field(default_factory=dict)


# --- Files of conversations


def message_of(value: Any, where: str) -> Message:
    """A message, whichever of the two spellings it has. Raises BadFileError."""
    name = "from" if isinstance(value, dict) and "from" in value else "role"
    if not isinstance(value, dict) or name not in value:
        raise BadFileError(f"{where}: message = {value!r:.80}, allowed an object with role and content")
    known = dict.fromkeys(ROLES) | (SHAREGPT if name == "from" else {})
    if not isinstance(role := value[name], str) or role not in known:
        raise BadFileError(f"{where}: {name} = {role!r:.80}, allowed {', '.join(known)}")
    if skipped := next((flag for flag in SKIPPED if value.get(flag) is False), None):
        raise BadFileError(f"{where}: {skipped} = False of a message, allowed weight = 0 instead")
    if name == "role":
        return value
    return {"role": known[role] or role, "content": value.get("value"), "weight": value.get("weight")}


def weight_of(message: Message, where: str) -> float:
    """What a message counts as a target: 1 for an assistant's, 0 for others'. Raises BadFileError."""
    usual = float(message["role"] == "assistant")
    weight = usual if message.get("weight") is None else message["weight"]  # Parquet has null for none
    is_number = isinstance(weight, int | float) and not isinstance(weight, bool)
    if not is_number or not (weight == 0 or (usual and LEAST <= weight <= MOST)):
        allowed = f"0, or a number from {LEAST} to {MOST}," if usual else "none but"
        found = f"weight = {weight!r:.80} of {message['role']!r}"
        raise BadFileError(f"{where}: {found}, allowed {allowed} for an assistant")
    return float(weight)


def opened(messages: Sequence[Message], system: str, where: str) -> list[Message]:
    """Messages behind the system message that a field of the record says, unless they begin with it.

    Raises BadFileError for another one.
    """
    first = {"role": "system", "content": system}
    if not system or first.items() <= messages[0].items():
        return list(messages)
    if other := next((m for m in messages if m["role"] in ("system", "developer")), None):
        found = f"system = {system!r:.80} beside a {other['role']} message = {other.get('content')!r:.80}"
        raise BadFileError(f"{where}: {found}, allowed one of the two")
    return [first, *messages]


def sample_of(messages: Any, where: str, before: int = 0, system: str = "", **given: Any) -> Sample:
    """The sample of a list of messages. before: that many of them are no targets. Raises BadFileError."""
    if not isinstance(messages, list) or not messages:
        raise BadFileError(f"{where}: messages = {messages!r:.80}, allowed a list of them")
    told = [message_of(message, where) for message in messages]
    found = opened(told, system, where)
    before += len(found) - len(told)
    weights = tuple(weight_of(m, where) if i >= before else 0.0 for i, m in enumerate(found))
    bare = tuple({key: value for key, value in m.items() if key != "weight"} for m in found)
    return Sample(bare, weights, given=given)


def continued(prompt: Any, answer: Any, where: str, **given: Any) -> Sample:
    """The sample of a prompt and what follows it, both text or both messages. Raises BadFileError."""
    if isinstance(prompt, str) and isinstance(answer, str):
        if given:
            found = f"{next(iter(given))} beside a prompt that is a text, and so has no template"
            raise BadFileError(f"{where}: {found}, allowed beside lists of messages")
        return Sample(text=(prompt, answer))
    if isinstance(prompt, list) and isinstance(answer, list):
        return sample_of([*prompt, *answer], where, before=len(prompt), **given)
    found = f"{type(prompt).__name__} and {type(answer).__name__}"
    raise BadFileError(f"{where}: a prompt and what follows it are {found}, allowed two texts or two lists")


def kind_of(item: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """The fields that a record is learnt from. Raises BadFileError for none, and for those of two kinds."""
    kinds = [kind for kind in KINDS if all(item.get(name) is not None for name in kind)]
    if kinds[:1] == [KINDS[0]] and item.get("messages") == item["chosen"]:
        kinds.remove(("messages",))  # told again, as UltraFeedback has it
    if len(kinds) > 1:
        both = " beside ".join(" and ".join(kind) for kind in kinds)
        raise BadFileError(f"{where}: fields = {both}, allowed one of {ALLOWED}")
    if not kinds:
        raise BadFileError(f"{where}: fields = {', '.join(item) or 'none'}, allowed {ALLOWED}")
    return kinds[0]


def given_of(item: Mapping[str, Any], where: str) -> dict[str, Any]:
    """What a record says beside its messages, if anything: system and tools.

    Raises BadFileError for what is neither and would change what is learnt.
    """
    if item.get("label") in (False,):  # 0 as well
        found = f"label = {item['label']}, an answer that is not to be learnt"
        raise BadFileError(f"{where}: {found}, allowed true")
    if other := next((name for name in UNKNOWN if item.get(name)), None):
        raise BadFileError(f"{where}: {other} = {item[other]!r:.80}, allowed none")
    system, tools = (item.get(name) for name in ("system", "tools"))
    if not isinstance(system, str | None):
        raise BadFileError(f"{where}: system = {system!r:.80}, allowed a text")
    if tools and not (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)):
        raise BadFileError(f"{where}: tools = {tools!r:.80}, allowed a list of objects")
    return {name: value for name, value in (("system", system), ("tools", tools)) if value}


def samples_of(item: Any, where: str) -> list[Sample]:
    """What is to be learnt from a record: one sample, or the chosen and the rejected one of a pair.

    Raises BadFileError.
    """
    if not isinstance(item, dict):
        raise BadFileError(f"{where}: is a {type(item).__name__}, allowed an object with {ALLOWED}")
    kind, given = kind_of(item, where), given_of(item, where)
    if kind == ("prompt", "completion"):
        return [continued(item["prompt"], item["completion"], where, **given)]
    if kind != ("chosen", "rejected"):
        return [sample_of(item[kind[0]], where, **given)]
    pair = [item["chosen"], item["rejected"]]
    told_again = isinstance(item.get("prompt"), str) and all(isinstance(part, list) for part in pair)
    if item.get("prompt") is not None and not told_again:  # a text that both conversations begin with
        return [continued(item["prompt"], answer, where, **given) for answer in pair]
    both = zip(*pair, strict=False) if all(isinstance(part, list) for part in pair) else ()
    alike = sum(1 for _ in itertools.takewhile(lambda two: two[0] == two[1], both))
    return [sample_of(part, where, before=alike, **given) for part in pair]


# --- Ids


def shared(first: Sequence[int], second: Sequence[int]) -> int:
    """How many ids two texts begin with alike."""
    return sum(1 for _ in itertools.takewhile(lambda two: two[0] == two[1], zip(first, second, strict=False)))


@dataclass(frozen=True)
class Span:
    """Characters of a text that count as targets."""

    begin: int
    end: int
    weight: float


def template_of(chat: Chat) -> str:
    """The template to train with, "" for none.

    One that opens an answer behind every conversation does not say where an answer ends: instead of it stands
    the one that is built in and like it.
    """
    text = template_text(chat)
    if chat.kind not in OPENED or chat.system or chat.preamble or MARKED.search(text):
        return text
    question, names = [{"role": "user", "content": "x"}], {"bos_token": "", "eos_token": ""}
    asked, told = (render(text, question, ask, **names) for ask in (True, False))
    return TEMPLATES[chat.kind] if asked == told else text


class Encoder:
    """Ids of samples, by the template and the tokenizer of a model. Raises BadFileError if it lacks one."""

    def __init__(self, source: Source, tokenizer: Tokenizer) -> None:
        self.name, self.tokenizer, self.add_bos = source.name, tokenizer, source.add_bos is not False
        self.template = template_of(source.chat or Chat())
        self.specials = special_names(tokenizer.handle)
        ends = {"bos_token": tokenizer.bos_id, "eos_token": tokenizer.eos_id}
        self.names = {end: tokenizer.name(token) for end, token in ends.items() if token >= 0}

    def _render(self, sample: Sample, n: int, ask: bool) -> tuple[str, list[tuple[int, int, int]]]:
        return render_guarded(
            self.template, sample.messages[:n], self.specials, ask, **self.names, **sample.given
        )

    def _spans(self, sample: Sample, text: str) -> Iterator[Span]:
        """What the assistant says in the text of a conversation, by the texts of its beginnings."""
        for n, weight in enumerate(sample.weights):
            if not weight:
                continue
            before, _ = self._render(sample, n, True)
            after, _ = self._render(sample, n + 1, False)
            if not (text.startswith(after) and after.startswith(before)):
                raise BadFileError(
                    f"message {n} is written otherwise where others follow, so what to learn is not clear: "
                    "use a template with {% generation %}"
                )
            yield Span(len(before), len(after), weight)

    def _ids(self, text: str, plain: Sequence[tuple[int, int, int]]) -> list[int]:
        data = c_bytes(text)
        return encode_spans(self.tokenizer.handle, data, [span for span in plain if span[1] <= len(data)])

    def _weighed(
        self, text: str, plain: Sequence[tuple[int, int, int]], spans: Sequence[Span], cut: bool
    ) -> tuple[list[int], list[float]]:
        """Ids, and the weight of each. cut: a span ends with the last special token in it, if one is."""
        ids = self._ids(text, plain)
        weights = [0.0] * len(ids)
        for span in spans:
            begin = shared(ids, self._ids(text[: span.begin], plain))
            before = self._ids(text[: span.end], plain)
            end = shared(ids, before)
            end += end < len(before)  # the token that the end lies in
            last = (
                at + 1
                for at in range(end - 1, begin - 1, -1)
                if self.tokenizer.name(ids[at]) in self.specials
            )
            end = next(last, end) if cut else end
            weights[begin:end] = [span.weight] * (end - begin)
        return ids, weights

    def _conversation(self, sample: Sample) -> tuple[list[int], list[float]]:
        if not self.template:
            raise BadFileError(f"{self.name}: has no chat template: name one with --template")
        if MARKED.search(self.template):
            said = [
                weight
                for m, weight in zip(sample.messages, sample.weights, strict=True)
                if m["role"] == "assistant"
            ]
            text, plain, places = render_generated(
                self.template, sample.messages, self.specials, **self.names, **sample.given
            )
            if len(places) != len(said):
                raise BadFileError(f"{self.name}: its template marks {len(places)} of {len(said)} answers")
            spans = [Span(*place, weight) for place, weight in zip(places, said, strict=True) if weight]
            return self._weighed(text, plain, spans, cut=False)
        text, plain = self._render(sample, len(sample.messages), False)
        return self._weighed(text, plain, list(self._spans(sample, text)), cut=True)

    def encode(self, sample: Sample) -> tuple[list[int], list[float]]:
        """The ids of a sample, and the weight of each as a target. Raises LlamaError."""
        if sample.text is None:
            return self._conversation(sample)
        prompt, whole = sample.text[0], "".join(sample.text)
        bos = self.add_bos and self.tokenizer.bos_id >= 0
        ids = self.tokenizer.encode(whole, bos=bos, eos=self.tokenizer.eos_id >= 0)
        begin = shared(ids, self.tokenizer.encode(prompt, bos=bos))
        return ids, [0.0] * begin + [1.0] * (len(ids) - begin)

    def encode_record(self, text: str, where: str) -> list[tuple[list[int], list[float]]]:
        """The ids and weights of each sample of a record, JSON. where: names it. Raises BadFileError."""
        try:
            return [self.encode(sample) for sample in samples_of(json.loads(text), where)]
        except LlamaError as error:
            said = str(error)
            raise BadFileError(said if said.startswith(where) else f"{where}: {said}") from None


def coloured(tokenizer: Tokenizer, ids: Iterable[int], weights: Iterable[float]) -> str:
    """What spells the tokens of a document, those that count as targets in green."""
    green, plain, text, on = "\x1b[32m", "\x1b[0m", "", False
    for token, weight in zip(ids, weights, strict=True):
        if (weight > 0) != on:
            on = weight > 0
            text += green if on else plain
        text += tokenizer.name(int(token))
    return text + (plain if on else "")


def open_encoder(name: str | Path, template: str | None = None) -> Encoder:
    """The encoder of a model in any format. Raises BadFileError."""
    source, vocabulary = open_text(str(name), template)
    return Encoder(source, Tokenizer.from_bytes(vocabulary.indexed, source.name))
