"""python -m llama.server: an HTTP server for one model.

    python -m llama.server SmolLM2-135M-Instruct.Q4_1.gguf
    python -m llama.server stories15M --port 8081 --parallel 8 --context 256
    python -m llama.server model.bin --host 0.0.0.0 --api-key "$KEY"

It speaks OpenAI's API (/v1/completions, /v1/chat/completions, /v1/embeddings, /v1/models), llama.cpp's
(/completion, /tokenize, /props, /slots, /metrics ...) and allamo's, and has a page at /. docs/server.md has
all of it. Only this machine reaches it unless --host says so. Ctrl-C or SIGTERM ends it once the answers
that are being written are done, but within ten seconds.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from llama import names
from llama.command import Parser, name_type, run_command, started_as
from llama.engine import SHIPPED, Llama
from llama.errors import BadFileError, ResourceError, UsageError
from llama.native import KV, c_bytes

NEEDED = ("fastapi", "uvicorn", "prometheus_client", "jinja2", "llguidance")
BACKLOG = 128  # connections that the system keeps until they are accepted
LEVELS = ("critical", "error", "warning", "info", "debug")
KEY_VARIABLE = "CRIA_API_KEY"  # what is on a command line, everybody on the machine can read


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value}, allowed 1 and more")
    return value


def parser() -> argparse.ArgumentParser:
    made = Parser(prog=started_as("serve"), description=__doc__)
    add = made.add_argument
    add(
        "model",
        nargs="?",
        default=os.fspath(SHIPPED),
        help="a file, a folder or a name (the model that ships)",
    )
    add("-z", "--tokenizer", type=name_type, help="default: found beside the model")
    add("--host", default="127.0.0.1", help="address to listen at (%(default)s)")
    add("--port", type=int, default=8080, help="(%(default)s)")
    add("--parallel", type=positive, default=4, help="texts written side by side (%(default)s)")
    add("--context", type=positive, help="positions of each text (the model's)")
    add("--kv", choices=KV, default=KV[0], help="type of keys and values (%(default)s)")
    add("--threads", type=positive, help="default: chosen by size")
    add(
        "--api-key",
        action="append",
        default=[],
        metavar="KEY",
        help=f"may be given often; or ${KEY_VARIABLE}",
    )
    add("--alias", type=name_type, help="what the model is called (the name of its file)")
    add("--queue", type=positive, default=64, help="texts that may wait (%(default)s)")
    add(
        "--slot-save-path",
        type=name_type,
        metavar="FOLDER",
        help="where /slots saves sequences (nowhere)",
    )
    add(
        "--cors",
        action="append",
        type=name_type,
        default=[],
        metavar="ORIGIN",
        help="a page of another server that may ask",
    )
    add(
        "--allow-host",
        action="append",
        type=name_type,
        default=[],
        metavar="NAME",
        help="a name that this machine is asked by",
    )
    add("--draft", metavar="MODEL", help="a smaller model with the same tokens, or lookup: guesses ahead")
    add("--log-level", choices=LEVELS, default="info", help="(%(default)s)")
    names.add_lora_option(made)
    names.add_model_options(made)
    return made


def keys_of(options: argparse.Namespace) -> list[str]:
    """The keys that requests may have, none: all may ask. Raises UsageError for one that no request can have,
    or that every request has: that of a variable without a value.
    """
    keys = [*options.api_key, *filter(None, [os.environ.get(KEY_VARIABLE)])]
    for key in keys:
        if not (key and key.isascii() and key.isprintable() and " " not in key):
            raise UsageError(f"--api-key, ${KEY_VARIABLE}: allowed are printable ASCII characters, no spaces")
    return keys


def is_host(text: str) -> bool:
    """Whether the system can be asked for the address of such a name."""
    try:
        return bool(text.encode("idna"))
    except UnicodeError:
        return False


def alias_of(options: argparse.Namespace) -> str:
    """What the model is called, as a text that JSON can hold: names of files may be any bytes."""
    return c_bytes(options.alias or Path(options.model).absolute().name).decode()


def check(options: argparse.Namespace) -> None:
    """Raises UsageError, BadFileError for what can't be."""
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        raise UsageError(f"the server needs {', '.join(missing)}: pip install {' '.join(missing)}")
    if not options.host:
        raise UsageError("--host: is empty, allowed is an address; 0.0.0.0 is all of this machine's")
    if not is_host(options.host):
        raise UsageError(f"--host = {options.host!r:.80}, allowed an address, or a name that has one")
    if not 0 <= options.port < 2**16:
        raise UsageError(f"--port = {options.port}, allowed 0 to 65535")
    if options.slot_save_path and not Path(options.slot_save_path).is_dir():
        raise BadFileError(f"{options.slot_save_path}: is no folder")
    keys_of(options)


def hosts_of(options: argparse.Namespace) -> Sequence[str]:
    """The names that requests may be for: this machine's own where nobody else reaches it; any elsewhere."""
    from llama.server.limits import LOCAL_NAMES, is_local

    if options.allow_host:
        return [*LOCAL_NAMES, options.host, *options.allow_host]
    return [*LOCAL_NAMES, options.host] if is_local(options.host) else ()


def listen(host: str, port: int) -> socket.socket:
    """A socket that is being connected to. Raises ResourceError for an address that can't be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        named = (error.strerror or "").partition(" (while ")[0]  # of a name that is none
        why = os.strerror(error.errno) if (error.errno or 0) > 0 else named
        raise ResourceError(f"--host {host} --port {port}: {why}") from None


@contextmanager
def draft_of(options: argparse.Namespace, llama: Llama) -> Iterator[str | Llama | None]:
    """Who guesses ahead for llama, until the end of the block."""
    from llama.server.engine import sequences

    if options.draft in (None, "lookup"):
        yield options.draft
        return
    with (
        names.opened(options.draft, None, options.dtype, not options.no_cache) as files,
        Llama(
            files.model,
            llama.tokenizer,
            options.threads,
            options.context,
            kv=options.kv,
            sequences=sequences(options.parallel),
        ) as draft,
    ):
        yield draft


def serve(options: argparse.Namespace, llama: Llama, draft: str | Llama | None) -> None:
    """Answers until it is told to end. draft: as of Engine."""
    import uvicorn

    from llama.server import limits
    from llama.server.app import create_app
    from llama.server.engine import Engine
    from llama.server.service import Service

    batch = {"context": options.context, "threads": options.threads, "kv": options.kv}
    keys = keys_of(options)
    engine = Engine(llama, options.parallel, options.queue, batch, draft)
    alias = alias_of(options)
    service = Service(engine, alias, bool(keys), options.slot_save_path)
    if not keys and not limits.is_local(options.host):
        print(f"note: without --api-key everybody who reaches {options.host} may ask", file=sys.stderr)
    app = create_app(service, keys, hosts_of(options), options.cors)
    config = limits.config(app, log_level=options.log_level)
    logging.getLogger("asyncio").setLevel(options.log_level.upper())  # warns of clients that have left
    listener = listen(options.host, options.port)
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, lambda *_: None)  # uvicorn takes them, and raises them again when it has ended
    host, port = listener.getsockname()[:2]
    print(f"{alias}: http://{f'[{host}]' if ':' in host else host}:{port}", file=sys.stderr, flush=True)
    uvicorn.Server(config).run(sockets=[listener])


def main(arguments: list[str]) -> None:
    options = parser().parse_args(arguments)
    check(options)
    with (
        names.opened(
            options.model, options.tokenizer, options.dtype, not options.no_cache, served=True
        ) as files,
        names.opened_adapter(options.lora, files.model, not options.no_cache) as lora,
        Llama(*files, options.threads, options.context, kv=options.kv, lora=lora) as llama,
        draft_of(options, llama) as draft,
    ):
        serve(options, llama, draft)


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv[1:])))
