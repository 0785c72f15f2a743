"""mutant(n) of Python sources: whether mutant n is the one that MUTANT names. mutant_switch.h does the same.

With MUTANTS_REACHED, a file of a byte for each of them, it notes that its place was reached.
"""

import mmap
import os

CHOSEN = int(os.environ.get("MUTANT", "-1"))
REACHED = None
if path := os.environ.get("MUTANTS_REACHED"):
    file = os.open(path, os.O_RDWR)
    REACHED = mmap.mmap(file, 0)
    os.close(file)


def mutant(number: int) -> bool:
    if REACHED is not None:
        REACHED[number] = 1
    return number == CHOSEN
