"""What the command lines of this package share: errors as one line, and exit codes."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from llama.errors import LlamaError, ResourceError


def run_command(main: Callable[[list[str]], None]) -> int:
    """Calls main with the arguments of the command line, and returns the exit code that it came to."""
    try:
        main(sys.argv[1:])
        sys.stdout.flush()
    except LlamaError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.code
    except OSError as error:  # of the files that are read none comes here: standard output is closed or full
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is left in its buffer goes there
        print(f"error: standard output: {error.strerror}", file=sys.stderr)
        return ResourceError.code
    except KeyboardInterrupt:
        return 130
    return 0
