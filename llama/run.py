"""python -m llama.run: the command line of ./run, with the same options, text, messages and exit codes.

    python -m llama.run stories15M.bin -t 1.0 -p 0.9 -i "Once upon a time"
    python -m llama.run chat.bin -m chat
    python -m llama.run --help

Text goes to standard output as the bytes that the engine gives, speed and errors to standard error. Exit
codes: 0, 2 usage, 3 bad file, 4 resources, 130 interrupted. Left out on purpose: the options and their help,
which are the engine's (llama_run_parse), and numpy, sentencepiece and torch, which would cost more than a
story.
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama._engine import ffi, lib
from llama.engine import SHIPPED, found
from llama.errors import BadFileError, LlamaError, ResourceError
from llama.native import KV, call, create, encode, encode_turn, model_open, score


@dataclass
class Run:
    """What the command line asked for, opened."""

    options: Any  # LlamaRunOptions
    path: bytes  # of the model
    model: Any
    tokenizer: Any
    context: Any
    sampler: Any
    generation: Any
    open_seconds: float


# --- Options, input and output


def parse(arguments: list[bytes]) -> Any:
    """The LlamaRunOptions of a command line, program name first. Raises UsageError."""
    strings = [ffi.new("char[]", argument) for argument in arguments]
    argv = ffi.new("char *[]", [*strings, ffi.NULL])

    def release(options: Any, keep: Any = (strings, argv)) -> None:  # the options point into argv
        lib.llama_run_options_free(options)

    memory = ffi.new("LlamaRunOptions *")
    call(lib.llama_run_parse, len(arguments), argv, memory)
    return ffi.gc(memory, release)


def write(data: bytes) -> None:
    """Writes to standard output at once. Raises ResourceError when it is closed or full."""
    left = memoryview(data)
    try:
        while left:
            left = left[os.write(1, left) :]
    except OSError as error:
        raise ResourceError(f"standard output: {error.strerror}") from None


def note(text: str) -> None:
    """Writes a line to standard error. If that fails there is nobody left to tell."""
    try:
        os.write(2, os.fsencode(text) + b"\n")
    except OSError:
        pass


def read_line(question: bytes) -> bytes | None:
    """Asks, and returns a line of standard input without its newline; None at its end."""
    write(question)
    line = sys.stdin.buffer.readline() if sys.stdin else b""
    return line.removesuffix(b"\n") if line else None


def read_file(path: bytes) -> bytes:
    """The bytes of a file, or of standard input for -, without a newline at the end. Raises BadFileError."""
    standard = path == b"-"
    try:
        with open(0 if standard else path, "rb", closefd=not standard) as file:
            return file.read().removesuffix(b"\n")
    except OSError as error:
        name = "standard input" if standard else os.fsdecode(path)
        raise BadFileError(f"{name}: {error.strerror}") from None


def string(pointer: Any) -> bytes | None:
    """The C string that an option points to, None where it was not given."""
    return None if pointer == ffi.NULL else ffi.string(pointer)


# --- Opening


def files(options: Any) -> tuple[bytes, Any]:
    """The model, downloaded where a name stands for it, and its tokenizer, NULL where it is to be found."""
    path = os.fsencode(SHIPPED) if options.model == ffi.NULL else ffi.string(options.model)
    if Path(os.fsdecode(path)).exists():
        return path, options.tokenizer
    from llama import hub  # most runs do without

    path, tokenizer = hub.find(path, string(options.tokenizer))
    return os.fsencode(path), ffi.NULL if tokenizer is None else os.fsencode(tokenizer)


def context_options(options: Any, model: Any) -> Any:
    """The LlamaContextOptions that a run of the model needs. Raises UsageError."""
    sizes = ffi.new("LlamaContextOptions *")
    call(lib.llama_run_context, options, model, sizes)
    return sizes


def open_run(options: Any) -> Run:
    """Opens what a run needs. Raises BadFileError, UsageError, ResourceError."""
    start = time.perf_counter()
    path, tokenizer_path = files(options)
    model = model_open(path)
    tokenizer = found(string(tokenizer_path), model)
    context = create("LlamaContext", lib.llama_context_init, model, context_options(options, model))
    options.sampling.seed = options.sampling.seed or int(time.time())
    vocab_size = lib.llama_config(model).vocab_size
    sampler = create("LlamaSampler", lib.llama_sampler_init, vocab_size, ffi.addressof(options.sampling))
    new, stops = lib.llama_generation_init, (options.stops, options.n_stops)
    generation = create("LlamaGeneration", new, context, tokenizer, sampler, 0, *stops)
    return Run(options, path, model, tokenizer, context, sampler, generation, time.perf_counter() - start)


# --- Writing texts


def write_pieces(run: Run) -> int:
    """Writes the pieces of a text as they come, then a newline. Returns why it ended (LLAMA_STOP_...)."""
    piece = ffi.new("LlamaPiece *")
    while piece.finish == lib.LLAMA_RUNNING:
        call(lib.llama_generation_next, run.generation, piece)
        if piece.length:
            write(ffi.buffer(piece.text, piece.length)[:])
    write(b"\n")
    return piece.finish


def feed(run: Run, ids: list[int]) -> None:
    """Appends ids to the text, which goes on to the end of the context."""
    call(lib.llama_generation_feed, run.generation, ids, len(ids), 0)


def rewind(run: Run, ids: list[int]) -> None:
    """Goes back to before the last token of the prompt, as if the rest of it had just been read."""
    call(lib.llama_generation_rewind, run.generation, len(ids) - 1)
    lib.llama_sampler_reset(run.sampler)
    for token in ids[:-1]:
        call(lib.llama_sampler_accept, run.sampler, token, 0)


def speed_line(stats: Any, token_bytes: int) -> str:
    """What the last text cost. The bandwidth is that of the weights which each generated token reads."""
    read = stats.prompt_tokens / stats.prompt_seconds if stats.prompt_seconds > 0 else 0.0
    timed = stats.generated_tokens > 1 and stats.generate_seconds > 0
    made = (stats.generated_tokens - 1) / stats.generate_seconds if timed else 0.0
    return (
        f"prompt: {stats.prompt_tokens} tokens, {read:.1f} tokens/s; "
        f"generated: {stats.generated_tokens} tokens, {made:.1f} tokens/s; "
        f"first token: {1e3 * stats.prompt_seconds:.1f} ms; {made * token_bytes / 1e9:.2f} GB/s"
    )


def stats_lines(run: Run) -> str:
    """What ran, for --stats."""
    resolved = lib.llama_context_options(run.context)
    kind = ffi.string(lib.llama_type_name(lib.llama_config(run.model).weight_type)).decode()
    return (
        f"model: {os.fsdecode(run.path)}, {lib.llama_parameters(run.model) / 1e6:.1f} M "
        f"parameters, {kind}, context {resolved.context}, {resolved.threads} threads, "
        f"{os.fsdecode(ffi.string(resolved.kernels))} kernels, "
        f"{lib.llama_context_bytes(run.context) / 2**20:.1f} MiB {KV[resolved.kv]} cache and scratch\n"
        f"opened in {1e3 * run.open_seconds:.1f} ms"
    )


def generate(run: Run) -> None:
    """Writes --samples texts after the prompt, and the speed of the last one."""
    path = string(run.options.prompt_file)  # never together with a prompt
    prompt = read_file(path) if path is not None else string(run.options.prompt) or b""
    ids = encode(run.tokenizer, prompt, bos=True, eos=False)
    for sample in range(run.options.samples):
        if sample > 0:
            write(b"---\n")
            rewind(run, ids)
        feed(run, ids if sample == 0 else ids[-1:])
        if run.options.echo:
            write(prompt)
        write_pieces(run)
    if run.options.stats:
        note(stats_lines(run))
    note(speed_line(lib.llama_generation_stats(run.generation), lib.llama_token_bytes(run.model)))


# --- Instead of a text


def info(options: Any) -> None:
    """Writes what the model is, without a context, which this machine may be too small for."""
    path, tokenizer_path = files(options)
    model = model_open(path)
    sizes, tokenizer, text = context_options(options, model), ffi.NULL, ffi.new("char[4096]")
    try:
        tokenizer = found(string(tokenizer_path), model)
    except BadFileError:
        if tokenizer_path != ffi.NULL or lib.llama_has_tokenizer(model):  # any other may be missing
            raise
    call(lib.llama_info, model, tokenizer, sizes, text, len(text))
    write(ffi.string(text))


def perplexity(run: Run) -> None:
    """Writes how well the model predicts a file, which is one text without the blanks at its ends."""
    from llama.perplexity import BLANKS, Perplexity, judge  # argparse and json are not for a story

    path = string(run.options.perplexity)
    name = "standard input" if path == b"-" else os.fsdecode(path)
    start, text = time.perf_counter(), read_file(path)
    try:
        text = text.decode().strip(BLANKS).encode()
    except UnicodeDecodeError as error:
        raise BadFileError(f"{name}: byte {error.start} is not UTF-8") from None
    result, size = Perplexity(), lib.llama_context_options(run.context).context
    ids = encode(run.tokenizer, text, bos=True, eos=False)
    judge(result, ids, len(text), size, lambda piece: score(run.context, piece))
    if not result.tokens:
        raise BadFileError(f"{name}: holds no text")
    result.seconds = time.perf_counter() - start
    write(f"{result}\n".encode())
    if run.options.stats:
        note(stats_lines(run))


# --- Chat


def read_user() -> bytes | None:
    """The next line that is not empty, None at the end of the input."""
    line: bytes | None = b""
    while line == b"":
        line = read_line(b"User: ")
    return line


def chat(run: Run) -> None:
    """A conversation, until the input ends or the context is full."""
    size = lib.llama_context_options(run.context).context
    system = string(run.options.system)
    system = read_line(b"Enter system prompt (optional): ") if system is None else system
    user = string(run.options.prompt)
    first, finish = True, lib.LLAMA_RUNNING
    while finish != lib.LLAMA_STOP_LENGTH:
        if user is None and system is not None:
            user = read_user()
        if user is None or system is None:  # the end of the input
            write(b"\n")
            return
        ids = encode_turn(run.model, run.tokenizer, user, (first and system) or None, first)
        if not first and lib.llama_generation_position(run.generation) + len(ids) > size:
            break
        feed(run, ids)
        write(b"Assistant: ")
        finish = write_pieces(run)
        user, first = None, False
    note(f"the conversation fills the context of {size} positions")


# --- The program


def start(arguments: list[bytes]) -> None:
    """Does what a command line says. Raises LlamaError, KeyboardInterrupt."""
    options = parse(arguments)
    if options.help:
        write(ffi.string(lib.llama_run_help()))
        return
    if options.info:
        info(options)
        return
    run = open_run(options)
    if options.perplexity != ffi.NULL:
        perplexity(run)
    elif options.chat:
        chat(run)
    else:
        generate(run)


def main(arguments: list[str] | None = None) -> int:
    """Runs a command line without its program name (None: sys.argv) and returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        start([b"python -m llama.run", *map(os.fsencode, arguments)])
    except LlamaError as error:
        note(f"error: {error}")
        return error.code
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
