"""Models made of others, without training: more or fewer layers, weighted sums, other tokens.

    python surgery.py Llama-3.2-1B deeper --layers 0-11,4-15          # depth up-scaling: 24 layers of 16
    python surgery.py Llama-3.2-1B small.bin --drop 10-13 --dtype int8
    python surgery.py out/step-0001000 mean --merge out/step-0002000  # their mean; NAME:0.3 weighs less
    python surgery.py Llama-3.2-1B other --vocabulary data/mine.model

llama/formats/surgery.py says what each does. What is read and written is what export.py reads and writes.
"""

from __future__ import annotations

import sys

from llama.command import run_command
from llama.surgery import main

if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv[1:])))
