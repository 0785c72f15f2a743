"""Where C can be changed: comparisons, && and ||, whole numbers, conditions and statements of functions.

All mutants of a source are compiled at once, and one is chosen when the program starts: mutant(n) says
whether it is n. Left out on purpose: what stands outside of functions or in static tables, and macros.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise

from sites import FLIPPED, Mutant, Site

TOKEN = re.compile(
    r"""(?P<gap>\s+|//[^\n]*|/\*.*?\*/|^[ \t]*\#(?:\\\n|[^\n])*)
      | (?P<text>"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*')
      | (?P<number>(?:0[xX][0-9a-fA-F.]+(?:[pP][+-]?\d+)?|\d+\.?\d*(?:[eE][+-]?\d+)?|\.\d+)[uUlLfF]*)
      | (?P<name>[A-Za-z_]\w*)
      | (?P<sign><<=|>>=|\.\.\.|->|\+\+|--|<<|>>|[<>=!+\-*/%&|^]=|&&|\|\||.)""",
    re.VERBOSE | re.DOTALL | re.MULTILINE,
)
WHOLE = re.compile(r"(?:0[xX][0-9a-fA-F]+|\d+)[uUlL]*")
ASSIGNMENTS = {"=", "+=", "-=", "*=", "/=", "%=", "&=", "|=", "^=", "<<=", ">>="}
ORDERS, EQUALS = {"<", "<=", ">", ">="}, {"==", "!="}
LEVELS = [{","}, ASSIGNMENTS, {"?", ":"}, {"||"}, {"&&"}, {"|"}, {"^"}, {"&"}, EQUALS, ORDERS]  # looser first
LEVEL = {sign: level for level, signs in enumerate(LEVELS) for sign in signs}
CLOSES = {"(": ")", "[": "]", "{": "}"}
LEAVES = {"return", "goto", "break", "continue"}
TYPE_WORDS = {"const", "enum", "struct", "unsigned"}
LOOPS = {"for", "while", "switch"}


@dataclass(frozen=True)
class Token:
    kind: str
    text: str
    begin: int
    end: int


def tokens_of(source: str) -> list[Token]:
    found = (Token(m.lastgroup or "", m[0], *m.span()) for m in TOKEN.finditer(source))
    return [token for token in found if token.kind != "gap"]


class Scanner:
    """Walks over the functions of a source and notes its sites."""

    def __init__(self, path: str, source: str) -> None:
        self.path, self.source, self.tokens = path, source, tokens_of(source)
        self.pairs = self.matched()
        self.sites: list[Site] = []

    def matched(self) -> dict[int, int]:
        """Where each bracket's other half is."""
        pairs, open_ones = {}, []
        for i, token in enumerate(self.tokens):
            if token.kind != "sign":
                continue
            if token.text in CLOSES:
                open_ones.append(i)
            elif token.text in CLOSES.values():
                begin = open_ones.pop()
                pairs[begin], pairs[i] = i, begin
        return pairs

    def scan(self) -> list[Site]:
        i = 0
        while i < len(self.tokens):
            if self.text(i) == "{":
                if i > 0 and self.text(i - 1) == ")":
                    self.statement(i)
                i = self.pairs[i]
            i += 1
        return self.sites

    def text(self, i: int) -> str:
        """Of a sign or a name; of a constant nothing."""
        return self.tokens[i].text if self.tokens[i].kind in ("sign", "name") else ""

    # --- Statements: each method takes the first token of one and returns the one behind it

    def statement(self, i: int) -> int:
        word = self.text(i)
        if word == "{":
            end, i = self.pairs[i], i + 1
            while i < end:
                i = self.statement(i)
            return end + 1
        if word == "if" or word in LOOPS:
            return self.headed(i)
        if word == "else":
            return self.statement(i + 1)
        if word == "do":
            return self.simple(self.statement(i + 1))
        if word in ("case", "default"):
            while self.text(i) != ":":
                i += 1
            return i + 1
        return self.simple(i)

    def headed(self, i: int) -> int:
        begin, end = i + 2, self.pairs[i + 1]
        self.expression(begin, end)
        if self.text(i) == "if":
            self.negated(begin, end)
        return self.statement(end + 1)

    def simple(self, i: int) -> int:
        """An expression, a declaration, or a statement that leaves."""
        end = i
        while self.text(end) != ";":
            end = self.pairs[end] + 1 if self.text(end) in CLOSES else end + 1
        if self.text(i) == "static":
            return end + 1
        if self.text(i) in ("break", "continue") or not (self.text(i) in LEAVES or self.declares(i)):
            self.dropped(i, end)
        self.expression(i, end)
        return end + 1

    def declares(self, i: int) -> bool:
        """Whether a statement begins with a type; (void)x says that x is not used."""
        if self.text(i) in TYPE_WORDS or self.text(i) == "(":
            return self.text(i) != "(" or self.text(i + 1) == "void"
        behind = i + 1
        while self.text(behind) == "*":
            behind += 1
        return self.tokens[i].kind == "name" and self.tokens[behind].kind == "name"

    # --- Expressions

    def expression(self, begin: int, end: int) -> None:
        for i in range(begin, end):
            token = self.tokens[i]
            if token.kind == "number" and WHOLE.fullmatch(token.text):
                self.add(i, i + 1, f"{token.text} becomes {token.text} + 1", "(", " + mutant(%d))")
            elif token.kind == "sign" and token.text in FLIPPED:
                self.compared(i)
            elif token.kind == "sign" and token.text in ("&&", "||"):
                self.joined(i)
            elif self.text(i) == "?":
                self.negated(self.operand_begin(i), i)

    def compared(self, i: int) -> None:
        begin, end = self.operand_begin(i), self.operand_end(i)
        sign = self.tokens[i].text
        after = f"); mutant(%d) ? left_ {FLIPPED[sign]} right_ : left_ {sign} right_; }})"
        self.add(
            begin, end, f"{sign} becomes {FLIPPED[sign]} in {self.shown(begin, end)}",
            "({ __auto_type left_ = (", after, i, "); __auto_type right_ = (",
        )  # fmt: skip

    def joined(self, i: int) -> None:
        """The first operand decides if it is false with &&, or true with ||."""
        begin, end = self.operand_begin(i), self.operand_end(i)
        sign = self.tokens[i].text
        other, decides = ("||", "mutant(%d)") if sign == "&&" else ("&&", "!mutant(%d)")
        self.add(
            begin, end, f"{sign} becomes {other} in {self.shown(begin, end)}",
            f"({{ _Bool decides_ = {decides}, first_ = (", "); })", i, "); first_ == decides_ ? first_ : !!(",
        )  # fmt: skip

    def negated(self, begin: int, end: int) -> None:
        """But not where the same is done by the flip of == or of !=."""
        signs = [self.tokens[i].text for i in range(begin, end) if self.tokens[i].text in LEVEL]
        if len(signs) == 1 and signs[0] in ("==", "!="):
            return
        self.add(begin, end, f"{self.shown(begin, end)} is negated", "(!!(", ") ^ mutant(%d))")

    def dropped(self, begin: int, end: int) -> None:
        self.add(begin, end + 1, f"{self.shown(begin, end)} is dropped", "{ if (!mutant(%d)) { ", " } }")

    def operand_begin(self, i: int) -> int:
        """Where the operand to the left of a sign begins."""
        level, begin = LEVEL[self.tokens[i].text], i
        while begin > 0:
            before = begin - 1
            if self.text(before) in CLOSES or self.ends(before, level - (self.tokens[i].text != "?")):
                break
            begin = self.pairs[before] if self.text(before) in CLOSES.values() else before
        return begin

    def operand_end(self, i: int) -> int:
        """Where the operand to the right of a sign ends."""
        end = i + 1
        while self.text(end) not in CLOSES.values() and not self.ends(end, LEVEL[self.tokens[i].text]):
            end = self.pairs[end] + 1 if self.text(end) in CLOSES else end + 1
        return end

    def ends(self, i: int, level: int) -> bool:
        """Whether token i is no part of the operand of a sign that binds tighter than `level`."""
        word = self.text(i)
        if word in (";", "return", "case", "else"):
            return True
        unary = word == "&" and (self.tokens[i - 1].kind == "sign" and self.text(i - 1) not in (")", "]"))
        return word in LEVEL and LEVEL[word] <= level and not unary

    def shown(self, begin: int, end: int) -> str:
        text = self.source[self.tokens[begin].begin : self.tokens[end - 1].end]
        text = " ".join(text.split())
        return text if len(text) <= 90 else f"{text[:87]}..."

    def add(self, begin, end, change, before, after, token=None, instead="") -> None:
        """A site around tokens [begin, end), and in the place of one of them."""
        first, last = self.tokens[begin], self.tokens[end - 1]
        at = self.tokens[begin if token is None else token].begin
        mutant = Mutant(self.path, self.source.count("\n", 0, at) + 1, change)
        place = None if token is None else (self.tokens[token].begin, self.tokens[token].end)
        self.sites.append(Site(mutant, first.begin, last.end, before, after, place, instead))


def sites_of(path: str, source: str) -> list[Site]:
    """The sites of a C source."""
    return Scanner(path, source).scan()


def crossing(sites: list[Site]) -> bool:
    """Whether some site ends within another that it does not begin in."""
    ordered = sorted(sites, key=lambda site: (site.begin, -site.end))
    return any(a.end > b.begin and b.end > a.end for a, b in pairwise(ordered))
