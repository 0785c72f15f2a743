r"""How byte-level tokenizers split text into words: the steps that a tokenizer.json lists, and their number
in an indexed file (docs/format.md), by which the engine knows them (llama/csrc/text/split.h).

A step is a regular expression. Its matches are pieces, and so is what lies between two of them; the next step
splits each piece for itself. ByteLevel that uses its own expression is a step with that one. Digits is one
for each character of `\p{N}`, or for runs of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llama.formats import vocabulary as tokens

Step = Mapping[str, Any]

LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2_PATTERN = LLAMA3_PATTERN.replace(r"\p{N}{1,3}", r"\p{N}")
GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
TEKKEN_PATTERN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*|\p{{N}}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
NEWLINE = "[\r\n]"
DIGIT, DIGITS = r"\p{N}", r"\p{N}+"
# Letters that have case, in a version of Unicode that DeepSeek had, from their files: not all of any other.
DEEPSEEK_LETTERS = (
    "[A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-"
    "\u0373\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-"
    "\u0481\u048a-\u052f\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf"
    "\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-"
    "\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc"
    "\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115"
    "\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f\u2145-\u2149\u214e"
    "\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b\ua722-"
    "\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a"
    "\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-"
    "\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943]"
)
DEEPSEEK_SIGNS = "[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]"
DEEPSEEK_CJK = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"

STEPS: dict[int, tuple[str, ...]] = {
    tokens.NO_PATTERN: (),
    tokens.LLAMA3: (LLAMA3_PATTERN,),
    tokens.GPT2: (GPT2_PATTERN,),
    tokens.GPT2_DIGITS: (DIGIT, GPT2_PATTERN),
    tokens.GPT2_NUMBERS: (DIGITS, GPT2_PATTERN),
    tokens.QWEN2: (QWEN2_PATTERN,),
    tokens.TEKKEN: (TEKKEN_PATTERN,),
    tokens.DEEPSEEK_LLM: (
        *(NEWLINE, rf"\s?{DEEPSEEK_LETTERS}+", rf"\s?{DEEPSEEK_SIGNS}+", r"\s+$", DEEPSEEK_CJK, DIGIT),
    ),
    tokens.DEEPSEEK_CODER: (NEWLINE, r"\s?\p{L}+", r"\s?\p{P}+", DEEPSEEK_CJK, DIGIT),
}


WHOLE = (tokens.LLAMA3, tokens.GPT2, tokens.QWEN2, tokens.TEKKEN)  # one expression, which matches any text


def spelt_out(expression: str) -> str:
    """The expression with line ends as themselves: files have them so or escaped."""
    return expression.replace(r"\r", "\r").replace(r"\n", "\n")


NUMBERS = {tuple(map(spelt_out, steps)): number for number, steps in STEPS.items()}
KNOWN = "the patterns of Llama 3, GPT-2, SmolLM, Qwen2, Tekken and DeepSeek, and ByteLevel after Digits"
ISOLATED = {"behavior": "Isolated", "invert": False}
KEPT = {"behavior": "Removed", "invert": True}  # what is between matches is left out
MATCH_ANY = {spelt_out(STEPS[pattern][0]) for pattern in WHOLE}


def expression_of(step: Step) -> str | None:
    """The expression of a step of a tokenizer.json, "" where it splits nothing; None for no step of these."""
    if step["type"] == "Split" and "Regex" in step["pattern"]:
        expression = spelt_out(step["pattern"]["Regex"])
        kept = step.items() >= KEPT.items() and expression in MATCH_ANY
        return expression if kept or step.items() >= ISOLATED.items() else None
    if step["type"] == "Digits":
        return DIGIT if step.get("individual_digits") else DIGITS
    if step["type"] == "ByteLevel":
        return spelt_out(GPT2_PATTERN) if step.get("use_regex", True) else ""
    return None


def pattern_of(steps: list[Step]) -> int | None:
    """The number of the steps of a pre_tokenizer, None for what the engine has not."""
    expressions = [expression_of(step) for step in steps]
    return None if None in expressions else NUMBERS.get(tuple(filter(None, expressions)))


def step_of(expression: str) -> Step:
    """A step with this expression."""
    if expression in (DIGIT, DIGITS):
        return {"type": "Digits", "individual_digits": expression == DIGIT}
    return {"type": "Split", "pattern": {"Regex": expression}, **ISOLATED}


def steps_of(pattern: int, add_prefix_space: bool) -> list[Step]:
    """The steps of a pre_tokenizer with a number; the last is ByteLevel."""
    *before, last = STEPS[pattern] or ("",)
    uses_regex = last == GPT2_PATTERN
    expressions = before if uses_regex or not last else [*before, last]
    ends = {"type": "ByteLevel", "add_prefix_space": add_prefix_space, "trim_offsets": True}
    return [*map(step_of, expressions), ends | {"use_regex": uses_regex}]
