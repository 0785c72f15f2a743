"""Floats to the tiles of a v3 file: the Python face of llama_pack (llama/csrc/llama.h).

Left out on purpose: files, which export.py writes.
"""

from __future__ import annotations

from typing import Any

from llama._engine import ffi, lib
from llama.errors import UsageError
from llama.native import call, invoke, struct

TYPES = {"fp32": lib.LLAMA_FP32, "bf16": lib.LLAMA_BF16, "int8": lib.LLAMA_INT8, "int4": lib.LLAMA_INT4}
FORMATS = {  # of buffers: bf16 has no letter
    "f": lib.LLAMA_FP32,
    "e": lib.LLAMA_FP16,
    "h": lib.LLAMA_BF16,
    "H": lib.LLAMA_BF16,
}


def type_number(dtype: str) -> int:
    """What C calls a type. Raises UsageError."""
    if dtype not in TYPES:
        raise UsageError(f"dtype = {dtype!r}, allowed {', '.join(TYPES)}")
    return TYPES[dtype]


def packed_bytes(dtype: str, rows: int, cols: int) -> int:
    """Bytes of a matrix in tiles of "fp32", "bf16", "int8" or "int4". Raises UsageError."""
    return invoke(lib.llama_packed_bytes, type_number(dtype), rows, cols)


def pack(
    out: Any, values: Any, dtype: str, *, first_row: int = 0, scale_cols: int = 0, threads: int | None = None
) -> tuple[float, float]:
    """Packs a strip of rows of a matrix; all but its last strip have a multiple of 16 rows.

    out: a writable buffer of packed_bytes. values: a contiguous buffer of shape (rows, cols), of float32, of
    float16, or of 16-bit integers that are the bits of bfloat16. first_row: the number that messages give the
    first row. scale_cols: neighbouring columns, a multiple of 32, that had one scale and get one in int8.
    threads: None: the processors at hand. The result depends neither on them nor on the CPU.

    Returns the sum of the squares of values, and that of what packing changed in them. Raises UsageError, and
    BadFileError for a value that is not finite or too large.
    """
    view = memoryview(values)
    if view.format not in FORMATS or view.ndim != 2 or not view.c_contiguous:
        found = f"values of format {view.format} and shape {view.shape}"
        raise UsageError(f"{found}, allowed are contiguous rows of f, e, h or H")
    rows, cols = view.shape
    if memoryview(out).nbytes != packed_bytes(dtype, rows, cols):
        raise UsageError(f"out has {memoryview(out).nbytes} bytes, allowed {packed_bytes(dtype, rows, cols)}")
    data, target = ffi.from_buffer(view), ffi.from_buffer("uint8_t[]", out, require_writable=True)
    shape = {"rows": rows, "cols": cols, "first_row": first_row, "scale_cols": scale_cols}
    strip = struct("LlamaStrip", values=data, values_type=FORMATS[view.format], **shape)
    packed = ffi.new("LlamaPacked *")
    call(lib.llama_pack, strip, type_number(dtype), threads or 0, target, packed)
    return packed.squares, packed.error_squares
