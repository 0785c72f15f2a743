"""The C engine (llama/csrc/llama.h) as the rest of the package calls it, without a class.

An error of C is raised, what C makes is freed when nothing refers to it any more, texts, paths and ids are
copied on their way. A C model, context, sampler or tokenizer is cffi's pointer to it; the classes are in
engine.py, tokenizer.py and batch.py.
"""

from __future__ import annotations

import itertools
import operator
import os
import reprlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence, Set
from numbers import Real
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from llama._engine import ffi, lib
from llama.errors import ERRORS, ClosedError, LlamaError, UsageError

StrPath = str | os.PathLike[str]

KV = ("fp32", "bf16", "fp16", "int8")  # LLAMA_KV_FP32, LLAMA_KV_BF16, ... in their order
FREE = {
    "LlamaModel": lib.llama_close,
    "LlamaAdapter": lib.llama_adapter_close,
    "LlamaContext": lib.llama_context_free,
    "LlamaTokenizer": lib.llama_tokenizer_close,
    "LlamaStream": lib.llama_stream_free,
    "LlamaSampler": lib.llama_sampler_free,
    "LlamaGeneration": lib.llama_generation_free,
}
SHIPPED = Path(__file__).parent / "models" / "stories.bin"  # the model that comes with the package
NEW_UNCLEARED = ffi.new_allocator(should_clear_after_alloc=False)

# --- Calls


def invoke(function: Callable[..., Any], *arguments: Any) -> Any:
    """Calls a C function. Raises UsageError for an argument that its C type can't hold."""
    try:
        return function(*arguments)
    except (TypeError, OverflowError) as error:
        raise UsageError(str(error)) from None


def error_of(error: Any) -> LlamaError | None:
    """What a pointer to a C error says, None where it points to none."""
    if error == ffi.NULL:
        return None
    text = os.fsdecode(ffi.string(error.text))  # it may name a file, which may be any bytes
    return ERRORS.get(error.code, LlamaError)(text)


def check(code: int, error: Any) -> None:
    """Raises the LlamaError that a C function reported, if its code says so."""
    if code != lib.LLAMA_OK:
        raise error_of(error) or LlamaError("")


def call(function: Callable[..., int], *arguments: Any) -> None:
    """Calls a C function that takes a LlamaError last, and raises the LlamaError that it reports."""
    error = ffi.new("LlamaError *")
    check(invoke(function, *arguments, error), error)


def create(kind: str, function: Callable[..., int], *arguments: Any, needs: Any = None) -> Any:
    """Calls a C function that makes a `kind`, and returns it; it is freed when nothing refers to it any more.

    The arguments, and what it needs besides, live as long as the object: in C a context must not outlive its
    model, nor a generation its context, tokenizer and sampler. So closing is only letting go, and can't pull
    memory from under a call in another thread.
    """
    out = ffi.new(f"{kind} **")
    call(function, *arguments, out)

    def free(pointer: Any, keep: Any = (arguments, needs), release: Any = FREE[kind]) -> None:
        release(pointer)  # looked up before: at the end of a program FREE may be gone

    return ffi.gc(out[0], free)


def struct(kind: str, /, **fields: Any) -> Any:
    """A new C value, a struct with fields. Raises UsageError for a field of the wrong type or size."""
    value = ffi.new(f"{kind} *")
    for name, field in fields.items():
        try:
            setattr(value, name, field)
        except (TypeError, OverflowError) as error:
            raise UsageError(f"{name} = {field!r}: {error}") from None
    return value


def alive(handle: Any, name: str) -> Any:
    """The handle, or ClosedError when it was closed."""
    if handle is None:
        raise ClosedError(f"this {name} is closed")
    return handle


# --- What arguments may be. Each raises UsageError, with the name, for another type


def wrong(name: str, value: object, allowed: str) -> UsageError:
    """The error of an argument of another type."""
    return UsageError(f"{name} = {reprlib.repr(value):.80}, allowed {allowed}")


def whole(value: Any, name: str) -> int:
    """A whole number, which True and False are not."""
    if not isinstance(value, bool):
        try:
            return operator.index(value)
        except TypeError:
            pass
    raise wrong(name, value, "a whole number")


def within(value: Any, name: str, least: int, most: int | None = None) -> int:
    """A whole number from least to most, None: to any."""
    if (found := whole(value, name)) < least or (most is not None and found > most):
        raise UsageError(f"{name} = {found}, allowed {least} {'and more' if most is None else f'to {most}'}")
    return found


def number(value: Any, name: str) -> float:
    """A number, which True and False are not."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise wrong(name, value, "a number")
    return value


def flag(value: Any, name: str) -> bool:
    """True or False."""
    if not isinstance(value, bool):
        raise wrong(name, value, "True or False")
    return value


def is_list(value: Any, kind: type = Collection) -> bool:
    """Whether a value holds others in an order, as a list does, a tuple and an array, but no text or dict."""
    return isinstance(value, kind) and not isinstance(value, str | bytes | bytearray | Mapping | Set)


def token_ids(ids: Iterable[int], name: str = "ids", allowed: str = "token ids") -> list[int]:
    """The ids that an argument holds: whole numbers in an order, of a list, an array or the like."""
    if not is_list(ids, Iterable):
        raise wrong(name, ids, allowed)
    try:
        given = list(ids)
        found = [operator.index(i) for i in given]
    except TypeError:
        raise wrong(name, ids, allowed) from None
    if any(isinstance(i, bool) for i in given):
        raise wrong(name, ids, allowed)
    return found


def check_tokens(ids: Sequence[int], size: int) -> None:
    """Raises UsageError for an id outside a vocabulary of some size."""
    if bad := next((token for token in ids if not 0 <= token < size), None):
        raise UsageError(f"token = {bad}, allowed 0 to {size - 1}")


# --- Texts and paths


def c_bytes(text: str, name: str = "text") -> bytes:
    """UTF-8 of text. A lone surrogate, which has none, counts as U+FFFD.

    name: of the argument. Raises UsageError for what is no text.
    """
    if not isinstance(text, str):
        raise wrong(name, text, "a string")
    try:
        return text.encode()
    except UnicodeEncodeError:
        return "".join("\ufffd" if "\ud800" <= c <= "\udfff" else c for c in text).encode()


def c_strings(texts: str | Sequence[str]) -> list[Any]:
    """Stop strings as char[]s. Raises UsageError for other types, and a NUL, which ends a C string."""
    texts = [texts] if isinstance(texts, str) else texts
    if not is_list(texts) or not all(isinstance(text, str) for text in texts):
        raise wrong("stop", texts, "a string, or a list of them")
    if any("\0" in text for text in texts):
        raise UsageError("a stop string can't hold a NUL character")
    return [ffi.new("char[]", c_bytes(text)) for text in texts]


def path_text(path: StrPath, name: str = "path") -> str:
    """A path as a text. name: of the argument. Raises UsageError for what no path can be."""
    text = os.fspath(path) if isinstance(path, str | os.PathLike) else None
    if not isinstance(text, str):
        raise wrong(name, path, "a path")
    if not text:
        raise UsageError(f"{name}: is empty, allowed is a path")
    if "\0" in text:
        raise UsageError(f"{text!r}: a path can't hold a NUL character")
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        raise wrong(name, text, "what the system can call a file") from None
    return text


def c_path(path: StrPath, name: str = "path") -> bytes:
    """A path as the bytes that the system knows it by. Raises UsageError as path_text."""
    return os.fsencode(path_text(path, name))


def c_text(text: Any, length: int) -> bytes:
    """A copy of length bytes at text, which may be NULL if there are none."""
    return ffi.buffer(text, length)[:] if length else b""


# --- Models


def model_open(path: StrPath) -> Any:
    """The C model of a checkpoint. Raises BadFileError, ResourceError."""
    return create("LlamaModel", lib.llama_open, c_path(path))


def adapter_open(path: StrPath, scale: float, model: Any) -> Any:
    """The C adapter of a file, times scale, for a C model. Raises BadFileError, UsageError, ResourceError."""
    return create("LlamaAdapter", lib.llama_adapter_open, c_path(path), scale, model)


def context_init(
    model: Any,
    context: int | None = 0,
    threads: int | None = 0,
    sequences: int = 0,
    kv: str = "fp32",
    adapter: Any = None,
    cache: int | None = 0,
    **options: Any,
) -> Any:
    """A C context, of any options that llama.h has. None, 0: the defaults. adapter: a C one, of the model.

    Raises UsageError, ResourceError.
    """
    if not isinstance(kv, str) or kv not in KV:
        raise UsageError(f"kv = {kv!r}, allowed are {', '.join(KV)}")
    sizes = {"context": context, "threads": threads, "cache": cache}
    sizes = {name: 0 if size is None else whole(size, name) for name, size in sizes.items()}
    given = {"kv": KV.index(kv), "adapter": ffi.NULL if adapter is None else adapter}
    given |= {"sequences": whole(sequences, "sequences")}
    options = struct("LlamaContextOptions", **sizes, **given, **options)
    return create("LlamaContext", lib.llama_context_init, model, options, needs=adapter)


def vocab_size(context: Any) -> int:
    """The tokens of the model of a C context."""
    return lib.llama_config(lib.llama_context_model(context)).vocab_size


SEED_0 = 0x9E3779B97F4A7C15  # the state for seed 0, which the generator has not; far from its neighbours'
LEAST = 2.0**-149  # the smallest float of C that is more than 0


def seed_of(seed: int | None) -> int:
    """A seed as the state of C's generator; None: one from the system. Raises UsageError."""
    if seed is None:
        return int.from_bytes(os.urandom(8), "little") or SEED_0
    return within(seed, "seed", 0, 2**64 - 1) or SEED_0


def biases(bias: Mapping[int, float]) -> list[tuple[int, float]]:
    """The tokens of a logit_bias with what is added to their logits. Raises UsageError for other types."""
    try:
        return [(whole(token, "token"), number(value, "bias")) for token, value in bias.items()]
    except (AttributeError, UsageError):
        raise wrong("logit_bias", bias, "numbers by token id") from None


def sampler_init(
    vocab_size: int, bias: Mapping[int, float] | None, seed: int | None, **sampling: float
) -> Any:
    """A C sampler. seed None: one from the system. Raises UsageError for an option out of range."""
    chosen = {name: (whole if name == "top_k" else number)(value, name) for name, value in sampling.items()}
    if chosen.get("top_p", 0) > 0:  # which C could round to 0, and 0 is off
        chosen["top_p"] = max(chosen["top_p"], LEAST)
    options = struct("LlamaSampling", seed=seed_of(seed), **chosen)
    sampler = create("LlamaSampler", lib.llama_sampler_init, vocab_size, options)
    for token, value in biases({} if bias is None else bias):
        call(lib.llama_sampler_bias, sampler, token, value)
    return sampler


# --- Sequences


def sequence_save(context: Any, sequence: int, ids: Sequence[int]) -> bytes:
    """What a C context holds of a sequence, and its tokens, as bytes. Raises UsageError."""
    if len(ids) != (n := lib.llama_sequence_length(context, sequence)):
        raise UsageError(f"{len(ids)} ids, sequence {sequence} holds {n} positions")
    data = NEW_UNCLEARED("char[]", lib.llama_sequence_bytes(context, sequence))
    call(lib.llama_sequence_save, context, sequence, ids, data)
    return ffi.buffer(data)[:]


def sequence_restore(context: Any, sequence: int, data: bytes) -> list[int]:
    """Puts saved bytes in the place of a sequence, whose tokens it returns.

    Raises BadFileError for what was not saved so, ResourceError.
    """
    ids = NEW_UNCLEARED("int32_t[]", lib.llama_context_options(context).context)
    n = ffi.new("int32_t *")
    call(lib.llama_sequence_restore, context, sequence, ffi.from_buffer(data), len(data), ids, n)
    return ffi.unpack(ids, n[0])


# --- Tokenizers


def encode(tokenizer: Any, text: bytes, bos: bool, eos: bool, special: bool = False) -> list[int]:
    """The ids of UTF-8 text by a C tokenizer."""
    ids = NEW_UNCLEARED("int32_t[]", lib.llama_encode_bound(len(text)))
    n = ffi.new("size_t *")
    call(lib.llama_encode_special, tokenizer, text, len(text), bos, eos, special, ids, n)
    return ffi.unpack(ids, n[0])


def encode_prompt(model: Any, tokenizer: Any, text: bytes) -> list[int]:
    """The ids of UTF-8 text as the tokenizer of a C model begins one; of none BOS in any case."""
    ids, n = NEW_UNCLEARED("int32_t[]", lib.llama_encode_bound(len(text))), ffi.new("size_t *")
    call(lib.llama_encode_prompt, model, tokenizer, text, len(text), ids, n)
    return ffi.unpack(ids, n[0])


def encode_spans(tokenizer: Any, text: bytes, spans: Sequence[tuple[int, int, int]]) -> list[int]:
    """The ids of UTF-8 text with special tokens, but for those in spans (LlamaSpan)."""
    ids, n = NEW_UNCLEARED("int32_t[]", lib.llama_encode_bound(len(text))), ffi.new("size_t *")
    call(
        lib.llama_encode_spans, tokenizer, text, len(text), ffi.new("LlamaSpan[]", spans), len(spans), ids, n
    )
    return ffi.unpack(ids, n[0])


NAMES: WeakKeyDictionary[Any, frozenset[str]] = WeakKeyDictionary()  # special_names by C tokenizer


def special_names(tokenizer: Any) -> frozenset[str]:
    """Names of tokens that no text of a chat is to mean: special ones, and those that some files only call
    user-defined, <|im_end|> and its like. They are kept: to look at 128,000 tokens takes a fifth of a second.
    """
    if tokenizer not in NAMES:
        length, ids = ffi.new("size_t *"), range(lib.llama_vocab_size(tokenizer))
        names = (c_text(lib.llama_token_name(tokenizer, i, length), length[0]) for i in ids)
        special = (lib.llama_token_is_special(tokenizer, i) for i in ids)
        found = zip(names, special, strict=True)
        NAMES[tokenizer] = frozenset(
            name.decode(errors="replace")
            for name, control in found
            if name[:2] == b"<|" or (control and name)
        )
    return NAMES[tokenizer]


# --- Chats


def chat_named(name: str) -> Any:
    """The LlamaChat of a template that is built in. Raises UsageError."""
    kinds = {}
    for kind in itertools.takewhile(lib.llama_chat_template, itertools.count()):
        if lib.llama_chat_template(kind).begin != ffi.NULL:
            kinds[ffi.string(lib.llama_chat_template(kind).name).decode()] = kind
    if not isinstance(name, str) or name not in kinds:
        raise UsageError(f"template = {name!r}, allowed {', '.join(kinds)}")
    return struct("LlamaChat", kind=kinds[name])


def chat_of(model: Any, template: str | None = None) -> Any:
    """The LlamaChat of a C model, whose texts belong to it, or of a template that is built in."""
    if template is None:
        return ffi.new("LlamaChat *", lib.llama_chat_of(model))
    chat = chat_named(template)
    chat.bos = lib.llama_config(model).add_bos
    return chat


def encode_turn(chat: Any, tokenizer: Any, user: bytes, system: bytes | None, first: bool) -> list[int]:
    """The ids of a turn by a LlamaChat and a C tokenizer, of UTF-8 texts."""
    size = len(system or b"")
    ids = NEW_UNCLEARED("int32_t[]", lib.llama_chat_bound(chat, size, len(user)))
    n, instructions = ffi.new("size_t *"), ffi.NULL if system is None else system
    call(lib.llama_chat_turn, tokenizer, chat, instructions, size, user, len(user), first, ids, n)
    return ffi.unpack(ids, n[0])


def encode_infill(tokenizer: Any, prefix: bytes, suffix: bytes) -> list[int]:
    """The ids from which Code Llama writes what is between two UTF-8 texts."""
    ids = NEW_UNCLEARED("int32_t[]", lib.llama_infill_bound(len(prefix), len(suffix)))
    n = ffi.new("size_t *")
    call(lib.llama_encode_infill, tokenizer, prefix, len(prefix), suffix, len(suffix), ids, n)
    return ffi.unpack(ids, n[0])


def known(tokenizer: Any, token: int, text: Any, length: Any) -> bytes:
    """A copy of what C said of a token. Raises UsageError for NULL: the id is not in the vocabulary."""
    if text == ffi.NULL:
        raise UsageError(
            f"token id {token} is not in the vocabulary of {lib.llama_vocab_size(tokenizer)} tokens"
        )
    return c_text(text, length[0])


def token_bytes(tokenizer: Any, previous: int, token: int) -> bytes:
    """The bytes of a token after `previous` (-1: none). Raises UsageError for an id not in the vocabulary."""
    length = ffi.new("size_t *")
    return known(
        tokenizer, token, invoke(lib.llama_token_bytes_of, tokenizer, previous, token, length), length
    )


def token_name(tokenizer: Any, token: int) -> str:
    """What spells a token. Raises UsageError for an id not in the vocabulary."""
    length = ffi.new("size_t *")
    name = invoke(lib.llama_token_name, tokenizer, token, length)
    return known(tokenizer, token, name, length).decode(errors="replace")


def whole_text(data: bytes) -> str:
    """Bytes as text by the rules of the engine's streams: what is not UTF-8 is U+FFFD."""
    stream = create("LlamaStream", lib.llama_stream_init, ffi.NULL, 0)
    text, length, stopped = ffi.new("const char **"), ffi.new("size_t *"), ffi.new("int *")
    call(lib.llama_stream_push, stream, data, len(data), text, length, stopped)
    begin = c_text(text[0], length[0])
    call(lib.llama_stream_flush, stream, text, length)
    return (begin + c_text(text[0], length[0])).decode()
