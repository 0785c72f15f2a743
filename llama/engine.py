"""The Python face of the C engine (llama/csrc/llama.h): open a checkpoint, write texts, chat, read texts.

    from llama import Llama
    llama = Llama("stories15M.bin", sequences=4)
    print("".join(llama.generate("Once upon a time", max_tokens=50, seed=1)))
    for text in llama.generate_all(["The wind", "The sea"], samples=2):
        print("".join(text))

Texts are written by a Batch over the sequences of a Llama, so those that begin as an earlier one did do not
run the common beginning again. Left out on purpose: training, which needs torch.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakValueDictionary

from llama._engine import ffi, lib
from llama.batch import Batch, Request
from llama.config import Config, model_config
from llama.errors import ERRORS, ClosedError, LlamaError, UsageError
from llama.forks import OPEN
from llama.generation import Generation
from llama.native import (
    SHIPPED,
    StrPath,
    adapter_open,
    alive,
    c_bytes,
    call,
    chat_of,
    context_init,
    encode_infill,
    encode_prompt,
    encode_turn,
    flag,
    is_list,
    model_open,
    number,
    path_text,
    token_ids,
    within,
    wrong,
)
from llama.reading import Scored, embedding, logprobs, result
from llama.speculation import guesser
from llama.tokenizer import Tokenizer

if TYPE_CHECKING:
    import numpy as np

    from llama.perplexity import Perplexity
    from llama.templates import Message

T = TypeVar("T")


def engine_files(path: str, dtype: str | None) -> tuple[str, str | None]:
    """The .bin of a model, and its tokenizer unless the engine finds it.

    That is the path itself, or the converted file of a model in another format or type. Raises LlamaError.
    """
    if path.endswith(".bin") and dtype is None:
        return path, None
    from llama import cache  # what reads other formats takes longer to import than a story
    from llama.command import explained

    if not cache.is_to_convert(path, dtype):
        return path, None
    try:
        return os.fspath(cache.converted(path, dtype)), cache.tokenizer_beside(path)
    except LlamaError:  # some are errors of the system, too
        raise
    except OSError as error:
        message, code = explained(error)
        raise ERRORS[code](message) from None


def adapter_of(model: Any, path: str, lora: str) -> Any:
    """The C adapter, of any name, for a C model whose .bin is at path."""
    from llama import adapters  # as above

    return adapter_open(*adapters.engine_file(lora, path), model)


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
    dtype: of the weights, "int8", "int4", "bf16" or "fp32": a model that has others is converted
        (llama.cache). None: the file's; of one that has to be converted int8, or bf16 for a small one.
    lora: an adapter that runs beside the model, whose weights stay as they are: a .lora.bin, a folder of
        PEFT or train.py, or its name on the hub (llama.adapters); NAME:0.5 counts half.
    sequences: texts that may be written at once, and that are remembered: a prompt that begins as one of them
        does is run from there. Each takes the memory of its keys and values as it grows.

    The attributes path, config, parameters (the number of weights), context, threads, kv and kernels (the
    instruction set, as LLAMA_ISA names it) say what it came to. Raises
    BadFileError, UsageError, ResourceError. One thread at a time is inside the engine; others wait.
    To read a text, by logits and what comes after it, takes a sequence as a text that is written does.
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
        sequences: int = 1,
        lora: str | None = None,
    ) -> None:
        self.path = path_text(SHIPPED if path is None else path)
        theta = 0.0 if rope_theta is None else number(rope_theta, "rope_theta")
        special = {"kv": kv, "exact": flag(exact, "exact"), "rope_theta": theta}
        adapter = None if lora is None else path_text(lora, "lora")
        file, beside = engine_files(self.path, dtype)
        self._model: Any = model_open(file)
        self._adapter: Any = None if adapter is None else adapter_of(self._model, file, adapter)
        self.config: Config = model_config(self._model)
        self._tokenizer: Tokenizer | None = None
        if (text := beside if tokenizer is None else tokenizer) is not None:
            self._tokenizer = self._checked(text)
        special |= {"adapter": self._adapter}
        self._context: Any = context_init(self._model, context, threads, sequences, **special)
        options = lib.llama_context_options(self._context)
        self.parameters: int = lib.llama_parameters(self._model)
        self.context: int = options.context
        self.threads: int = options.threads
        self.sequences: int = options.sequences
        self.kv = kv
        self.kernels: str = ffi.string(options.kernels).decode()
        self._lock = threading.Lock()
        OPEN.add(self)
        self._writer: Batch | None = None  # made with the first text, as it takes a tokenizer
        self._texts: WeakValueDictionary[Request, Generation] = WeakValueDictionary()  # the oldest first

    def _checked(self, tokenizer: StrPath | Tokenizer) -> Tokenizer:
        size = self.config.vocab_size
        if not isinstance(tokenizer, Tokenizer):
            return Tokenizer.find(path_text(tokenizer, "tokenizer"), self._model)
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
        instructions = None if system is None else c_bytes(system, "system")
        chat = chat_of(self._model, template)
        return encode_turn(chat, self.tokenizer.handle, c_bytes(user, "user"), instructions, first)

    def encode_chat(
        self, messages: Sequence[Message], add_generation_prompt: bool = True, template: str | None = None
    ) -> list[int]:
        """The ids of a conversation by the model's own template, as apply_chat_template of transformers.

        But for a folder whose tokenizer_class is LlamaTokenizer and whose tokenizer.json has the normalizer
        Prepend: text behind a special token has a space in front, as that file says, and transformers 4 and
        Meta's code have it; transformers 5 puts none there.
        messages: {"role": "user", "content": "Hello"} and so on. add_generation_prompt: go on to where an
        answer begins. Names of special tokens in the messages are text. template: one that is built in, as of
        encode_turn. The model's own needs jinja2 (extra: chat) where it is none of those.
        Raises UsageError without a template, or where it refuses the conversation, BadFileError.
        """
        from llama.templates import encode_chat  # most runs do without

        return encode_chat(self._model, self.tokenizer.handle, messages, add_generation_prompt, template)

    def encode_infill(self, prefix: str, suffix: str) -> list[int]:
        """The ids from which Code Llama writes what is between two texts: a prompt for generate.

        Raises UsageError for a tokenizer that lacks its tokens.
        """
        return encode_infill(self.tokenizer.handle, c_bytes(prefix, "prefix"), c_bytes(suffix, "suffix"))

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
        draft: str | Llama | None = None,
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
        draft: who guesses tokens, which saves time where it is often right and changes no text
            (llama.speculation): "lookup", the text so far, or a Llama, smaller and with the same tokens.

        Options are checked here, not at the first piece. Raises UsageError, BadFileError (no tokenizer),
        ResourceError. Where as many texts as there are sequences are not finished, it ends the oldest.
        """
        sampling = {
            "temperature": temperature,
            "top_p": top_p,
            "top_k": top_k,
            "min_p": min_p,
            "repeat_penalty": repeat_penalty,
            "presence_penalty": presence_penalty,
            "frequency_penalty": frequency_penalty,
        }
        with self._lock:
            self._make_room(1)
            return self._begin(prompt, max_tokens, stop, draft, logit_bias=logit_bias, seed=seed, **sampling)

    def generate_all(
        self,
        prompts: Iterable[str | Iterable[int]],
        *,
        samples: int = 1,
        seed: int | None = None,
        max_tokens: int | None = None,
        stop: str | Sequence[str] = (),
        draft: str | Llama | None = None,
        **options: Any,
    ) -> list[Generation]:
        """Continues each of many prompts `samples` times, together: the texts of the first one come first.

        To iterate over one of them writes all; more than there are sequences wait for their turn. seed: of
        the first sample of each, the next one has the next seed. All else is as of generate.
        """
        if not is_list(prompts, Iterable):
            raise wrong("prompts", prompts, "a list of them")
        within(samples, "samples", 1)
        if seed is not None:
            within(seed, "seed", 0, 2**64 - 1)
        each = [prompt for prompt in prompts for _ in range(samples)]
        seeds = [None if seed is None else (seed + i % samples) % 2**64 for i in range(len(each))]
        with self._lock:
            self._make_room(min(len(each), self.sequences))
            begin = self._begin
            return [
                begin(p, max_tokens, stop, draft, seed=s, **options) for p, s in zip(each, seeds, strict=True)
            ]

    def chat(self, messages: Sequence[Message], template: str | None = None, **options: Any) -> Generation:
        """The next message of a conversation: generate, with all its options, from encode_chat.

        What stands before the newest message is not run again, if it is as it was.
        """
        return self.generate(self.encode_chat(messages, template=template), **options)

    # --- Texts being written. With the lock, but for _leave.

    def _begin(
        self,
        prompt: str | Iterable[int],
        max_tokens: int | None,
        stop: str | Sequence[str],
        draft: str | Llama | None,
        **options: Any,
    ) -> Generation:
        """A text that the next step begins with."""
        if max_tokens is not None:
            within(max_tokens, "max_tokens", 0)
        if draft is self:
            raise UsageError("draft = the Llama itself, allowed is another one")  # it would wait for itself
        if self._writer is None:
            self._writer = Batch.over(self._context, self.tokenizer.handle)
        some = None if max_tokens is None else max(1, max_tokens)
        guess = guesser(draft, self.config.vocab_size)
        request = self._writer.join(self._ids(prompt), max_tokens=some, stop=stop, guesser=guess, **options)
        self._texts[request] = text = Generation(self, request)
        if max_tokens == 0:
            text._end("length")
        return text

    def _ids(self, text: str | Iterable[int], name: str = "prompt") -> list[int]:
        if isinstance(text, str):
            return encode_prompt(self._model, self.tokenizer.handle, c_bytes(text))
        return token_ids(text, name, "text or token ids")

    def _make_room(self, n: int) -> None:
        """Ends the oldest texts until n sequences are free. Raises ClosedError."""
        alive(self._context, "Llama")
        unfinished = [text for text in self._texts.values() if text._finish is None]
        for text in unfinished[: max(0, len(unfinished) + n - self.sequences)]:
            text._end("cancelled", ClosedError("this text ended when another one was begun on its Llama"))

    def _leave(self, request: Request) -> None:
        if self._writer is not None:
            self._writer.cancel(request)

    def _settle(self) -> None:
        """Lets go of texts that were cancelled."""
        with self._lock:
            if self._writer is not None:
                self._writer.settle()

    def _step(self, text: Generation) -> None:
        """A step of all texts, unless one of them has been taken by another thread meanwhile."""
        with self._lock:
            alive(self._context, "Llama")
            alive(self.tokenizer.handle, "tokenizer")
            if text._pieces or text._finish is not None:
                return
            for event in self._writer.step():
                if listener := self._texts.get(event.request):
                    listener._take(event)

    # --- Texts being read

    def logits(self, ids: Iterable[int]) -> np.ndarray:
        """The logits after each of T tokens of one text, as float32 of shape (T, vocab_size).

        Raises UsageError if T exceeds the context or an id is outside the vocabulary.
        """
        import numpy as np  # here, because importing it takes longer than opening a model

        tokens = token_ids(ids)
        logits = np.empty((len(tokens), self.config.vocab_size), dtype=np.float32)
        begin = 0
        for part in self.logits_in_parts(tokens):
            logits[begin : begin + len(part)] = part
            begin += len(part)
        return logits

    def logits_in_parts(self, ids: Iterable[int]) -> Iterator[np.ndarray]:
        """The same, of some tokens after another: (n, vocab_size) each, so that a long text takes little
        memory. No other text goes on meanwhile.
        """
        import numpy as np

        tokens = token_ids(ids)
        if len(tokens) > self.context:
            raise UsageError(f"{len(tokens)} tokens do not fit in the context of {self.context} positions")
        with self._reader() as sequence:
            batch = lib.llama_context_options(self._context).batch
            for start in range(0, len(tokens), batch):
                part = tokens[start : start + batch]
                rows = [(token, start + i, sequence, 1) for i, token in enumerate(part)]
                logits = np.empty((len(rows), self.config.vocab_size), dtype=np.float32)
                out = ffi.from_buffer("float[]", logits, require_writable=True)
                call(lib.llama_forward, self._context, rows, len(rows), out)
                yield logits

    def score(self, ids: Sequence[int]) -> list[float]:
        """The log-probability, in nats, of each token but the first after those before it: T - 1 of T tokens.

        Raises UsageError if T - 1 exceeds the context or an id is outside the vocabulary.
        """
        return [scored.logprob for scored in self.logprobs(ids, top=0)[1:]]

    def logprobs(self, ids: Sequence[int], top: int = 5) -> list[Scored]:
        """The same with the `top` most likely tokens in the place of each, and for the first token None.

        top: 0 to 128. Raises what score does.
        """
        with self._reader() as sequence:
            return result(logprobs(self._context, token_ids(ids), top, sequence))

    def perplexity(self, *texts: str) -> Perplexity:
        """How well the model predicts texts, each by itself (llama.perplexity). Raises UsageError, also for
        texts of which no token comes after another one.
        """
        from llama.perplexity import measure  # most runs do without

        found = measure(self, texts)
        if not found.tokens:
            raise UsageError("the texts have no token to predict")
        return found

    def embed(self, text: str | Sequence[int], pooling: str = "mean") -> np.ndarray:
        """What a text is to the model: the mean of its tokens' hidden states, or the "last" one.

        float32 of shape (dim), not normalised to a length: transformers' last_hidden_state, pooled. text: or
        token ids. Raises UsageError.
        """
        ids = self._ids(text, "text")
        with self._reader() as sequence:
            return result(embedding(self._context, ids, pooling, sequence))

    @contextmanager
    def _reader(self) -> Iterator[int]:
        """A sequence for a text that is read. Where each has a text that goes on, the oldest ends."""
        with self._lock:
            self._make_room(1)
            if self._writer is None:
                yield 0
                return
            sequence = self._writer.lend()
            yield sequence
            self._writer.erase(sequence)

    def close(self) -> None:
        """Lets go of the model and its memory; a Tokenizer passed in stays open. May be called twice."""
        with self._lock:
            self._context = self._model = self._adapter = self._tokenizer = self._writer = None

    def __enter__(self) -> Llama:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._context is None else f"{self.threads} threads, {self.kernels}"
        size = f"{self.parameters / 1e6:.1f}M parameters, {self.config.weight_type}, context {self.context}"
        return f"Llama({self.path!r}, {size}, {state})"
