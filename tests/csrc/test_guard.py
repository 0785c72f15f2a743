"""A model file that shrinks: zeros to a process that asked for it, SIGBUS to any other."""

from __future__ import annotations

import signal
import subprocess
import sys

import checkpoints
import pytest
from checkpoints import Shape
from helpers import environment

SHAPE = Shape(dim=64, hidden_dim=256, n_layers=4, vocab_size=512)
PROGRAM = """
import shutil, sys
from llama import Llama
from llama._engine import lib
from llama.native import call

path, guarded = sys.argv[1], sys.argv[2] == "guarded"
ids = [1, 5, 9, 3]
for _ in range(20):  # more than can be guarded at once
    with Llama(path) as llama:
        call(lib.llama_guard, llama._model)
llama = Llama(path)
for _ in range(20):
    call(lib.llama_guard, llama._model)
    lib.llama_unguard(llama._model)
before = llama.logits(ids)
if guarded:
    call(lib.llama_guard, llama._model)
else:
    other = Llama(shutil.copy(path, path + ".copy"))
    call(lib.llama_guard, other._model)
with open(path, "r+b") as file:
    file.truncate(4096)
try:
    after = llama.logits(ids)
except ValueError:  # logits that are no numbers
    after = None
print("goes on", after is None or (after != before).any())
"""


@pytest.mark.parametrize("guarded", ["guarded", "unguarded"])
def test_zeros_or_a_signal(tmp_path, guarded):
    checkpoints.write(tmp_path / "model.bin", SHAPE)
    line = [sys.executable, "-c", PROGRAM, tmp_path / "model.bin", guarded]
    result = subprocess.run(line, env=environment(), capture_output=True, text=True, check=False, timeout=120)
    if guarded == "guarded":
        assert (result.returncode, result.stdout) == (0, "goes on True\n"), result.stderr
    else:  # which the address sanitizer reports
        reported = "AddressSanitizer: BUS" in result.stderr
        assert reported or result.returncode == -signal.SIGBUS, (result.stdout, result.stderr)
