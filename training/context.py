"""Longer contexts: RoPE's base and scaling of a run, said by options or taken from the model it starts from.

    python train.py --init_from=MODEL --max_seq_len=8192 --rope_scaling=yarn
    python train.py --init_from=MODEL --max_seq_len=8192 --rope_theta=1e6

The factor is how much longer max_seq_len is than the original context, unless rope_factor says another.
"""

from __future__ import annotations

from dataclasses import replace

from llama.errors import UsageError
from model import Config, RopeScaling
from training.options import Options


def original_length(known: Config | None) -> int:
    """The context that a model was first trained for, 0 where it does not say so."""
    if known is None or (known.rope_scaling and known.rope_scaling.kind == "linear"):
        return 0
    return known.rope_scaling.original_max_seq_len if known.rope_scaling else known.max_seq_len


def find_factor(options: Options, original: int, before: RopeScaling | None) -> float:
    """How far the frequencies are stretched. before: a scaling of that kind. Raises UsageError."""
    if options.rope_factor:
        return options.rope_factor
    if not original and not before:
        raise UsageError("rope_factor = 0, allowed above 0 where nothing says the original context")
    factor = options.max_seq_len / original if original else before.factor
    if factor <= 1:
        found = f"max_seq_len = {options.max_seq_len}, rope_factor = 0"
        raise UsageError(f"{found}: allowed a context of more than {original}, or a factor")
    return factor


def find_scaling(options: Options, known: Config | None) -> RopeScaling:
    """The scaling that options ask for; of what they leave out, that of a known model of the same kind.

    Raises UsageError.
    """
    kind, before = options.rope_scaling, known.rope_scaling if known else None
    before = before if before and before.kind == kind else None
    original = options.rope_original_len or original_length(known)
    if not original and kind != "linear":
        raise UsageError(f"rope_original_len = 0, allowed 1 or more with rope_scaling = {kind}")
    factor = find_factor(options, original, before)
    lengths = {"original_max_seq_len": original} if original else {}
    return replace(before or RopeScaling(kind, factor), factor=factor, **lengths)


def stretched(options: Options, config: Config, known: Config | None) -> Config:
    """A configuration with the RoPE of a run. known: the model that it starts from, or goes on with.

    Raises UsageError where options don't fit it, or each other.
    """
    theta = options.rope_theta or (known or config).rope_theta
    try:
        scaling = find_scaling(options, known) if options.rope_scaling else known and known.rope_scaling
        return replace(config, rope_theta=theta, rope_scaling=scaling)
    except ValueError as error:
        raise UsageError(str(error)) from None
