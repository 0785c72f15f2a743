"""Any Llama in, several formats out: from a file or folder of a model to what runs it.

    python export.py out/last model.bin                            # a checkpoint of train.py as fp32, v0
    python export.py Llama-3.1-8B-Instruct model.bin --dtype int8  # Meta's or Hugging Face's folder as v3
    python export.py out/last folder                               # for transformers
    python export.py out/last model.gguf                           # for llama.cpp

formats/ has a module for each kind of file. What is read is read tensor by tensor and never executed; what is
written appears under its name once it is whole and on the disk.
"""

from __future__ import annotations

import sys

from llama.convert import main

if __name__ == "__main__":
    sys.exit(main())
