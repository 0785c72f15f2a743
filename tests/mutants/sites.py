"""A place where a source can be changed, and how the text of all of them is put together."""

from __future__ import annotations

from dataclasses import dataclass

FLIPPED = {"<": "<=", "<=": "<", ">": ">=", ">=": ">", "==": "!=", "!=": "=="}


@dataclass(frozen=True)
class Mutant:
    """One change of one place."""

    path: str  # of the source, in the repository
    line: int
    change: str  # for people

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.change}"


@dataclass(frozen=True)
class Site:
    """What stands around text[begin:end], and in the place of a token in it, to choose a mutant when it runs.

    The texts hold %d, the number of the mutant, where they ask for it.
    """

    mutant: Mutant
    begin: int
    end: int
    before: str
    after: str
    token: tuple[int, int] | None = None  # where it begins and ends
    instead: str = ""


def woven(text: str, sites: list[Site], first: int) -> str:
    """The text with all sites in it, beside or within each other, numbered from `first` on."""
    opening: dict[int, list[tuple[int, int, str]]] = {}
    closing: dict[int, list[tuple[int, int, str]]] = {}
    tokens = {}
    for n, site in enumerate(sites):
        numbered = [part.replace("%d", str(first + n)) for part in (site.before, site.after)]
        # the outer one opens first and closes last; of two around the same, the last is the outer one
        opening.setdefault(site.begin, []).append((-site.end, -n, numbered[0]))
        closing.setdefault(site.end, []).append((-site.begin, n, numbered[1]))
        if site.token:
            tokens[site.token[0]] = (site.token[1], site.instead)
    out, at = [], 0
    for place in sorted({*opening, *closing, *tokens}):
        out.append(text[at:place])
        out += [part for *_, part in sorted(closing.get(place, []))]
        out += [part for *_, part in sorted(opening.get(place, []))]
        at, instead = tokens.get(place, (place, ""))
        out.append(instead)
    return "".join([*out, text[at:]])
