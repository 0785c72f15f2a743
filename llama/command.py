"""What the command lines of this package share: errors as one line, and exit codes."""

from __future__ import annotations

import sys
from collections.abc import Callable

from llama.errors import LlamaError


def run_command(main: Callable[[list[str]], None]) -> int:
    """Calls main with the arguments of the command line, and returns the exit code that it came to."""
    try:
        main(sys.argv[1:])
    except LlamaError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.code
    except KeyboardInterrupt:
        return 130
    return 0
