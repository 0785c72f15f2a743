"""Stands where the compiled engine does, which Python takes before this file where it is built."""

raise ImportError(
    "the engine is not built in this folder, which hides an installed one: pip install -e . builds it, "
    "in another folder the installed one is found"
)
