"""The errors of this package. Each is a builtin error too, and has the exit code of the command line."""


class LlamaError(Exception):
    """What every error of this package is: a line. `code` is the exit code of the command line."""

    code = 1

    def __str__(self) -> str:
        return one_line(super().__str__())


class UsageError(LlamaError, ValueError):
    """An argument that can't be: out of range, of the wrong kind, too long for the context."""

    code = 2  # LLAMA_ERROR_USAGE


class ClosedError(UsageError):
    """The object was closed, or another text was begun on the same Llama."""


class BadFileError(LlamaError, OSError, ValueError):
    """A file that is missing, can't be read or is not what it should be."""

    code = 3  # LLAMA_ERROR_FILE


class ResourceError(LlamaError, MemoryError):
    """Not enough memory, or another resource that the system refused."""

    code = 4  # LLAMA_ERROR_RESOURCE


class CancelledError(LlamaError, InterruptedError):
    """The flag that llama_context_watch was given said to stop."""

    code = 5  # LLAMA_ERROR_CANCELLED


class ClosedOutputError(LlamaError, BrokenPipeError):
    """Who reads the output has had enough, as head has: the command line ends without a word."""

    code = 141  # LLAMA_ERROR_CLOSED: as of what SIGPIPE ends


LONGEST = 2000  # characters of a line


def one_line(message: object) -> str:
    """A message fit for a terminal: ? for what does not print, such as an escape sequence that is a name in a
    file, and of a very long one its beginning and its end, where the reason is.
    """
    text = str(message)
    if len(text) > LONGEST:
        text = f"{text[: LONGEST // 2]}...{text[-LONGEST // 2 :]}"
    text = text.replace("\n", " ")
    # a lone surrogate is a byte of a path that is no UTF-8, which is written as it is
    return "".join(c if c.isprintable() or "\ud800" <= c <= "\udfff" else "?" for c in text)


KINDS = (UsageError, BadFileError, ResourceError, CancelledError, ClosedOutputError)
ERRORS = {error.code: error for error in KINDS}
