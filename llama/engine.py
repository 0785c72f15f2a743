"""The Python face of the C engine (llama/csrc/llama.h): open a checkpoint, generate, logits, text and ids.

    from llama import Llama
    llama = Llama("stories15M.bin")
    print("".join(llama.generate("Once upon a time", max_tokens=50, seed=1)))

A Llama holds one context with one sequence, so it writes one text at a time; open it twice for two (the
weights are mapped, the second costs only its cache). Left out on purpose: many sequences side by side, which
the C interface has; training, which needs torch.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama._engine import ffi, lib
from llama.errors import BadFileError, ClosedError, UsageError
from llama.forks import OPEN
from llama.native import (
    StrPath,
    c_bytes,
    c_path,
    c_strings,
    c_text,
    call,
    chat_of,
    context_init,
    create,
    encode,
    encode_infill,
    encode_prompt,
    encode_turn,
    invoke,
    model_open,
    sampler_init,
    score,
    token_bytes,
    token_name,
    whole_text,
)

if TYPE_CHECKING:
    import numpy as np

FINISH = (
    None,
    "stop_token",
    "stop_string",
    "length",
    "error",
)  # LLAMA_RUNNING, LLAMA_STOP_TOKEN, ... in their order
SHIPPED = Path(__file__).parent / "models" / "stories.bin"  # the model that comes with the package


def alive(handle: Any, name: str) -> Any:
    """The handle, or ClosedError when it was closed."""
    if handle is None:
        raise ClosedError(f"this {name} is closed")
    return handle


def converted(path: StrPath, most: int | None = None) -> Any:
    """The C tokenizer of a file of another kind than C opens, in the indexed form; None for other files.

    most: tokens of its model. Raises BadFileError.
    """
    from llama.formats.tokenizer_kinds import is_foreign

    path = Path(os.fsdecode(path))
    if not is_foreign(path):
        return None
    from llama.formats import tokenizers  # the libraries that read such files

    vocabulary = tokenizers.load(path, most).vocabulary
    n = max(most or 0, len(vocabulary)) if (path.parent / "config.json").exists() else len(vocabulary)
    data = vocabulary.padded(n).indexed
    copy = ffi.new("char[]", data)
    return create("LlamaTokenizer", lib.llama_tokenizer_open_bytes, copy, len(data), c_path(path))


def opened(path: StrPath) -> Any:
    """The C tokenizer of a file of any kind. Raises BadFileError."""
    try:
        return create("LlamaTokenizer", lib.llama_tokenizer_open, c_path(path))
    except BadFileError:
        if handle := converted(path):
            return handle
        raise


def found(path: StrPath | None, model: Any) -> Any:
    """The C tokenizer of a C model (Tokenizer.find). Raises BadFileError."""
    try:
        return create(
            "LlamaTokenizer", lib.llama_tokenizer_find, ffi.NULL if path is None else c_path(path), model
        )
    except BadFileError:
        size = lib.llama_config(model).vocab_size
        handle = None if path is None else converted(path, size)
        if handle is None:
            raise
    if (n := lib.llama_vocab_size(handle)) != size:
        raise BadFileError(f"{os.fsdecode(path)}: has {n} tokens, the model has {size}")
    return handle


class Tokenizer:
    """The tokens of a model. May be shared between models and threads.

    path: a tokenizer.bin, as llama2.c or tokenizer.py writes it, a sentencepiece model, Llama 3's
    tokenizer.model, or a tokenizer.json. Raises BadFileError for another file.
    """

    def __init__(self, path: StrPath) -> None:
        self._handle = opened(path)

    @classmethod
    def from_bytes(cls, data: bytes, name: StrPath = "tokenizer") -> Tokenizer:
        """The tokenizer in the bytes of a file. name: for messages. Raises BadFileError."""
        self, copy = cls.__new__(cls), ffi.new("char[]", data)
        self._handle = create("LlamaTokenizer", lib.llama_tokenizer_open_bytes, copy, len(data), c_path(name))
        return self

    @classmethod
    def find(cls, path: StrPath | None, model: Any) -> Tokenizer:
        """The tokenizer at path, or for None the one in the file of a C model, beside it or in the working
        directory. Raises BadFileError if there is none, or none with as many tokens as the model.
        """
        self = cls.__new__(cls)
        self._handle = found(path, model)
        return self

    @property
    def handle(self) -> Any:
        """The C tokenizer. Raises ClosedError."""
        return alive(self._handle, "tokenizer")

    @property
    def vocab_size(self) -> int:
        """The number of tokens."""
        return lib.llama_vocab_size(self.handle)

    @property
    def bos_id(self) -> int:
        """The token that begins a text, -1 where there is none."""
        return lib.llama_bos(self.handle)

    @property
    def eos_id(self) -> int:
        """The token that ends a text, -1 where there is none."""
        return lib.llama_eos(self.handle)

    def encode(self, text: str, bos: bool = True, eos: bool = False, special: bool = False) -> list[int]:
        """The ids of text, between BOS and EOS where asked for. A lone surrogate counts as U+FFFD.

        special: names such as <|eot_id|> in the text mean the token. Off, they are plain text, so that no
        user of a chat can forge a message.
        """
        return encode(self.handle, c_bytes(text), bos, eos, special)

    def name(self, token: int) -> str:
        """What spells a token: its text with every space, or the name of a special one.

        Raises UsageError for an id outside the vocabulary.
        """
        return token_name(self.handle, token)

    def is_special(self, token: int) -> bool:
        """Whether a token has a name but no text, such as BOS and EOS."""
        return bool(invoke(lib.llama_token_is_special, self.handle, token))

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids, as sentencepiece has it: special tokens are empty, what is not UTF-8 is U+FFFD.

        Raises UsageError for an id outside the vocabulary.
        """
        handle, previous, runs = self.handle, -1, [bytearray()]
        for token in ids:
            piece = token_bytes(handle, previous, token)
            if lib.llama_token_is_special(handle, token):
                runs.append(bytearray())  # no character reaches across
            else:
                runs[-1] += piece
                previous = token
        return "".join(whole_text(bytes(run)) for run in runs)

    def close(self) -> None:
        """Lets go of the tokenizer; a Llama that uses it can't make text any more. May be called twice."""
        self._handle = None

    def __enter__(self) -> Tokenizer:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return "Tokenizer(closed)" if self._handle is None else f"Tokenizer({self.vocab_size} tokens)"


@dataclass(frozen=True)
class Config:
    """The shape of a model, as its file says it (LlamaConfig in llama.h, where each field is explained)."""

    version: int  # of the file format
    dim: int
    hidden_dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    vocab_size: int
    max_seq_len: int
    tied: bool
    weight_type: str  # of the layers: "fp32", "bf16", "int8" or "int4"
    group_size: int  # 0 where no weights share a scale
    norm_eps: float
    rope_theta: float
    add_bos: bool  # texts begin with BOS


def model_config(model: Any) -> Config:
    """The configuration of a C model."""
    config = lib.llama_config(model)
    fields = {name: getattr(config, name) for name in Config.__dataclass_fields__}
    fields |= {name: bool(fields[name]) for name in ("tied", "add_bos")}
    fields["weight_type"] = ffi.string(lib.llama_type_name(config.weight_type)).decode()
    return Config(**fields)


class Generation(Iterator[str]):
    """A text being written: iterate over it for its pieces. Made by Llama.generate.

    finish: None while the text goes on, then "stop_token", "stop_string" or "length".
    """

    def __init__(self, llama: Llama, handle: Any, finish: str | None) -> None:
        self._llama, self._handle, self._turn = llama, handle, llama._turn
        self._piece = ffi.new("LlamaPiece *")
        self.finish = finish

    def __next__(self) -> str:
        """The next piece, never empty. Raises ClosedError once the Llama is closed or writes another text."""
        while self.finish is None:
            if text := self._step():
                return text
        raise StopIteration

    def _step(self) -> str:
        """One call of the engine: a batch of the prompt is read, or a token drawn."""
        llama, piece = self._llama, self._piece
        with llama._lock:
            alive(llama._context, "Llama")
            alive(llama.tokenizer.handle, "tokenizer")
            if self._turn != llama._turn:
                raise ClosedError("this text ended when generate() or logits() was called again on its Llama")
            if self.finish is not None:  # another thread was faster
                return ""
            call(lib.llama_generation_next, self._handle, piece)
            self.finish = FINISH[piece.finish]
            return c_text(piece.text, piece.length).decode()


def engine_file(path: str, dtype: str | None) -> str:
    """The .bin of a model: the path itself, or the converted file of one in another format."""
    if path.endswith(".bin"):
        return path
    from llama import cache  # what reads other formats takes longer to import than a story

    return os.fspath(cache.converted(path, dtype)) if cache.is_foreign(path) else path


class Llama:
    """A model, ready to write.

    path: a checkpoint (.bin), or a model of another format (.gguf, a folder of Hugging Face or Meta, a
        checkpoint of PyTorch), which is converted once and kept (llama.cache). None: the model that ships
        with the package.
    tokenizer: a path, a Tokenizer, or None for tokenizer.bin or tok<vocab_size>.bin beside the model or in
        the working directory; it is looked for when text is first needed, so logits of ids need none.
    threads: None: chosen from the size of the model and the processors at hand.
    context: positions a text may have, prompt included; at most and by default the model's max_seq_len.
    exact: keep activations in fp32 where int8 or int4 weights would have them as int8: slower.
    rope_theta: base of RoPE's angles; None: the file's. v0, v1 and v2 files can't say it: 1e6 for Code Llama.
    kv: type of the keys and values that are kept: "fp32", or "fp16" or "bf16" for half the memory.
    dtype: of the weights of a model that has to be converted: "int8", "int4", "bf16" or "fp32". None: int8,
        or bf16 for a small one (llama.cache).

    The attributes path, config, parameters (the number of weights), context, threads, kv and kernels (the
    instruction set, as LLAMA_ISA names it) say what it came to. Raises
    BadFileError, UsageError, ResourceError. One thread at a time is inside the engine; others wait.
    """

    def __init__(
        self,
        path: StrPath | None = None,
        tokenizer: StrPath | Tokenizer | None = None,
        threads: int | None = None,
        context: int | None = None,
        exact: bool = False,
        rope_theta: float | None = None,
        kv: str = "fp32",
        dtype: str | None = None,
    ) -> None:
        self.path = os.fspath(SHIPPED if path is None else path)
        self._model: Any = model_open(engine_file(self.path, dtype))
        self.config: Config = model_config(self._model)
        self._tokenizer: Tokenizer | None = None
        if tokenizer is not None:
            self._tokenizer = self._checked(tokenizer)
        special = {"kv": kv, "exact": int(exact), "rope_theta": rope_theta or 0.0}
        self._context: Any = context_init(self._model, context or 0, threads or 0, **special)
        options = lib.llama_context_options(self._context)
        self.parameters: int = lib.llama_parameters(self._model)
        self.context: int = options.context
        self.threads: int = options.threads
        self.kv = kv
        self.kernels: str = ffi.string(options.kernels).decode()
        self._lock = threading.Lock()
        OPEN.add(self)
        self._turn = 0  # counts what used the context: a generation is good while it is the last

    def _checked(self, tokenizer: StrPath | Tokenizer) -> Tokenizer:
        size = self.config.vocab_size
        if not isinstance(tokenizer, Tokenizer):
            return Tokenizer.find(tokenizer, self._model)
        if tokenizer.vocab_size != size:
            raise UsageError(f"the tokenizer has {tokenizer.vocab_size} tokens, the model {size}")
        return tokenizer

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer, looked for at first use. Raises BadFileError if there is none for this model."""
        alive(self._model, "Llama")
        if self._tokenizer is None:
            self._tokenizer = Tokenizer.find(None, self._model)
        return self._tokenizer

    def encode(
        self, text: str, bos: bool | None = None, eos: bool = False, special: bool = False
    ) -> list[int]:
        """The ids of text (Tokenizer.encode). bos: None puts BOS in front if the model's tokenizer does."""
        return self.tokenizer.encode(text, self.config.add_bos if bos is None else bos, eos, special)

    def encode_turn(
        self, user: str, system: str | None = None, first: bool = True, template: str | None = None
    ) -> list[int]:
        """The ids of a turn of a chat, up to where the answer begins: a prompt for generate.

        By the template of the model's file, Llama 2's for v0, v1 and v2, if it is one that is built in.
        system: only for the first turn; None: the template's own, if it has one. first: False closes the
        answer before, whose ids come in front.
        template: another one: "llama2", "llama3", "chatml", "zephyr", "mistral" or "plain".
        Raises UsageError without such a template, BadFileError if the tokenizer lacks a token of it.
        """
        chat, instructions = chat_of(self._model, template), None if system is None else c_bytes(system)
        return encode_turn(chat, self.tokenizer.handle, c_bytes(user), instructions, first)

    def encode_chat(
        self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True
    ) -> list[int]:
        """The ids of a conversation by the model's own template, as apply_chat_template of transformers.

        messages: {"role": "user", "content": "Hello"} and so on. add_generation_prompt: go on to where an
        answer begins. Names of special tokens in the messages are text. Needs jinja2 (extra: chat).
        Raises UsageError without a template, or where it refuses the conversation, BadFileError.
        """
        from llama.chat import encode_chat  # most runs do without

        return encode_chat(self._model, self.tokenizer.handle, messages, add_generation_prompt)

    def encode_infill(self, prefix: str, suffix: str) -> list[int]:
        """The ids from which Code Llama writes what is between two texts: a prompt for generate.

        Raises UsageError for a tokenizer that lacks its tokens.
        """
        return encode_infill(self.tokenizer.handle, c_bytes(prefix), c_bytes(suffix))

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids (Tokenizer.decode)."""
        return self.tokenizer.decode(ids)

    def generate(
        self,
        prompt: str | Iterable[int] = "",
        *,
        max_tokens: int | None = None,
        temperature: float = 1.0,
        top_p: float = 0.9,
        top_k: int = 0,
        min_p: float = 0.0,
        repeat_penalty: float = 1.0,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        logit_bias: Mapping[int, float] | None = None,
        seed: int | None = None,
        stop: str | Sequence[str] = (),
    ) -> Generation:
        """Continues a prompt: an iterator over the new text, piece by piece; the prompt is not repeated.

        prompt: text, before which BOS is put if the model's tokenizer does (and if it is empty, as a text
            goes on from a token), or token ids, taken as they are.
        max_tokens: tokens to draw at most. None: until the model ends the text or the context is full.
        temperature: 0 is greedy. top_p: 0 or 1 is off. top_k, min_p: 0 is off. repeat_penalty: 1 is off.
        presence_penalty, frequency_penalty: 0 is off.
        logit_bias: added to the logits of tokens; -inf forbids a token.
        seed: from 0 to 2**64 - 1, the same one gives the same text. None: a new one every time.
        stop: strings that end the text; they are not part of it.

        Options are checked here, not at the first piece. Raises UsageError, BadFileError (no tokenizer),
        ResourceError. Ends an earlier generation of this Llama that is not finished.
        """
        if max_tokens is not None and max_tokens < 0:
            raise UsageError(f"max_tokens = {max_tokens}: must be 0 or more")
        if isinstance(prompt, str):
            ids = encode_prompt(self._model, self.tokenizer.handle, c_bytes(prompt))
        else:
            ids = list(prompt)
        sampler = sampler_init(
            self.config.vocab_size,
            logit_bias or {},
            seed,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            min_p=min_p,
            repeat_penalty=repeat_penalty,
            presence_penalty=presence_penalty,
            frequency_penalty=frequency_penalty,
        )
        return self._begin(sampler, ids, max_tokens, [stop] if isinstance(stop, str) else stop)

    def _begin(
        self, sampler: Any, ids: list[int], max_tokens: int | None, stops: Sequence[str]
    ) -> Generation:
        """A generation that has been fed the ids of its prompt."""
        # The last token drawn is not run, so it takes no position. 0: the end of the context.
        limit = min(len(ids) + max_tokens - 1, self.context) if max_tokens else 0
        new, tokenizer, strings = lib.llama_generation_init, self.tokenizer.handle, c_strings(stops)
        with self._lock:
            context = alive(self._context, "Llama")
            self._turn += 1
            handle = create("LlamaGeneration", new, context, tokenizer, sampler, 0, strings, len(strings))
            call(lib.llama_generation_feed, handle, ids, len(ids), limit)
            return Generation(self, handle, "length" if max_tokens == 0 else None)

    def logits(self, ids: Iterable[int]) -> np.ndarray:
        """The logits after each of T tokens of one text, as float32 of shape (T, vocab_size).

        Raises UsageError if T exceeds the context or an id is outside the vocabulary. Ends an earlier
        generation of this Llama that is not finished.
        """
        import numpy as np  # here, because importing it takes longer than opening a model

        tokens = list(ids)
        if len(tokens) > self.context:
            raise UsageError(f"{len(tokens)} tokens do not fit in the context of {self.context} positions")
        logits = np.empty((len(tokens), self.config.vocab_size), dtype=np.float32)
        with self._lock:
            alive(self._context, "Llama")
            self._turn += 1
            batch = lib.llama_context_options(self._context).batch
            for start in range(0, len(tokens), batch):
                rows = [(token, start + i, 0, 1) for i, token in enumerate(tokens[start : start + batch])]
                out = ffi.from_buffer("float[]", logits[start : start + len(rows)], require_writable=True)
                call(lib.llama_forward, self._context, rows, len(rows), out)
        return logits

    def score(self, ids: Sequence[int]) -> list[float]:
        """The log-probability, in nats, of each token but the first after those before it: T - 1 of T tokens.

        Raises UsageError if T - 1 exceeds the context or an id is outside the vocabulary. Ends an earlier
        generation of this Llama that is not finished.
        """
        with self._lock:
            alive(self._context, "Llama")
            self._turn += 1
            return score(self._context, ids)

    def close(self) -> None:
        """Lets go of the model and its memory; a Tokenizer passed in stays open. May be called twice."""
        with self._lock:
            self._context = self._model = self._tokenizer = None
            self._turn += 1

    def __enter__(self) -> Llama:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._context is None else f"{self.threads} threads, {self.kernels}"
        size = f"{self.parameters / 1e6:.1f}M parameters, {self.config.weight_type}, context {self.context}"
        return f"Llama({self.path!r}, {size}, {state})"
