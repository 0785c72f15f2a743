"""RoPE's frequencies, and YaRN's magnitude: the one place that computes them, for model.py and GGUF files.

GGUF files hold Llama 3's scaling as what each frequency is divided by; find_scaling is the way back.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from llama.formats.config import Config, RopeScaling


def kept(frequencies: np.ndarray, config: Config, scaling: RopeScaling) -> np.ndarray:
    """How much of each frequency rope_scaling keeps: from 1, all of it, to 0, divided by factor. (d / 2)"""
    if scaling.kind == "linear":
        return np.zeros_like(frequencies)
    if scaling.kind == "yarn":
        low, high = scaling.ramp(config.head_dim, config.rope_theta)
        pairs = np.arange(len(frequencies))
        return 1 - ((pairs - low) / (high - low or 0.001)).clip(0, 1)  # of no width: a step behind low
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    turns = scaling.original_max_seq_len * frequencies / (2 * math.pi)  # over the original context
    return ((turns - low) / (high - low)).clip(0, 1)


def rope_frequencies(config: Config) -> np.ndarray:
    """Angle per position of each pair: theta^(-2 j / d), stretched by rope_scaling. Float64 (d / 2)."""
    exponents = np.arange(0, config.head_dim, 2, dtype=np.float64) / config.head_dim
    frequencies = config.rope_theta**-exponents
    scaling = config.rope_scaling
    if scaling is None:
        return frequencies
    blend = kept(frequencies, config, scaling)
    return (1 - blend) * (frequencies / scaling.factor) + blend * frequencies


def usual_magnitude(factor: float) -> float:
    """What YaRN multiplies queries and keys by where nothing else is said, as its paper has it."""
    return 0.1 * math.log(factor) + 1


def rope_magnitude(config: Config) -> float:
    """What queries and keys are multiplied by as they are turned."""
    scaling = config.rope_scaling
    if scaling is None or scaling.kind != "yarn":
        return 1.0
    return scaling.attention_factor or usual_magnitude(scaling.factor)


def rope_factors(config: Config) -> np.ndarray:
    """What rope_scaling divides the frequencies by: float32 (d / 2)."""
    plain = rope_frequencies(replace(config, rope_scaling=None))
    return (plain / rope_frequencies(config)).astype(np.float32)


# --- The scaling behind given factors

USUAL = (8.0, 32.0)  # factors of Llama 3.1 and 3.2
NEAR = 1e-4  # relative: factors are stored in fp32


def reproduces(scaling: RopeScaling, factors: np.ndarray, config: Config) -> bool:
    return np.allclose(rope_factors(replace(config, rope_scaling=scaling)), factors, rtol=NEAR, atol=0)


def blend_lines(turns: np.ndarray, blend: np.ndarray) -> list[tuple[float, float]]:
    """Where straight lines through what is seen of a blend are 0 and 1, over the turns per position.

    Two values in between show the line. With fewer of them several lines fit, among them one through a pair
    that is stretched in full, or kept: with none, that through both; with one, that through it and either.
    """
    inner = (blend > NEAR) & (blend < 1 - NEAR)
    if inner.sum() > 1:
        begin, level = turns[inner].mean(), blend[inner].mean()
        away = turns[inner] - begin
        slope = away @ blend[inner] / (away @ away) if away.any() else 0.0  # the line of least squares
        return [(begin - level / slope, begin + (1 - level) / slope)] if slope else []
    points = [(turn, value) for turn, value in zip(turns[inner], blend[inner], strict=True)]
    points += [
        (turns[blend <= NEAR].max(initial=0), 0.0),
        (turns[blend >= 1 - NEAR].min(initial=math.inf), 1.0),
    ]
    pairs = [(p, q) for p in points for q in points if p[0] < q[0] < math.inf and p[1] < q[1]]
    steps = [(p, (q[0] - p[0]) / (q[1] - p[1])) for p, q in pairs]
    return [(p[0] - p[1] * step, p[0] + (1 - p[1]) * step) for p, step in steps]


def find_scaling(factors: np.ndarray, config: Config, original: int) -> RopeScaling | None:
    """The llama3 scaling with these factors (d / 2), None for no scaling. config: without it.

    original: the context to which low and high are relative; what they are depends on it. Where the usual
    numbers give the factors, it is those. Raises ValueError if there is none.
    """
    largest = float(f"{factors.max():.6g}")  # as it was meant: fp32 has seven digits
    if np.allclose(factors, 1):
        return None
    guesses = [
        RopeScaling(factor=factor, original_max_seq_len=original)
        for factor in (largest, *USUAL)
        if factor > 0
    ]
    if largest > 1 and np.all(factors > 0):
        turns = rope_frequencies(config) / (2 * math.pi)
        blend = (1 / factors.astype(np.float64) - 1 / largest) / (1 - 1 / largest)
        for low, high in blend_lines(turns, blend):
            for digits in (4, 9):  # as it was meant, if the stored digits say so
                numbers = (float(f"{number * original:.{digits}g}") for number in (low, high))
                low_factor, high_factor = numbers
                if 0 < low_factor < high_factor:
                    guesses.append(RopeScaling("llama3", largest, low_factor, high_factor, original))
    found = next((guess for guess in guesses if reproduces(guess, factors, config)), None)
    if found is None:
        raise ValueError("no llama3 scaling has these factors")
    return found
