"""Tables of measurements: medians with their range, ratios, in markdown."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

OURS = "cria"


def number(x: float) -> str:
    """x with about three digits."""
    return f"{x:,.{0 if abs(x) >= 100 else 1 if abs(x) >= 10 else 2}f}"


def cell(values: Sequence[float]) -> str:
    """Median and range, empty where nothing was measured."""
    if not values:
        return ""
    return f"{number(statistics.median(values))} ({number(min(values))}-{number(max(values))})"


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """Of the medians, empty where one of them was not measured."""
    return f"{statistics.median(ours) / statistics.median(theirs):.2f}" if ours and theirs else ""


def line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def heading(titles: Sequence[str]) -> str:
    return f"{line(titles)}\n{line(['---'] * len(titles))}"


# --- The tables of bench.engine


def machine_table(machine: Mapping[str, Any]) -> str:
    """Bandwidth and arithmetic, a column for each number of threads."""
    teams = list(machine["read"])
    threads = [f"{team} thread{'s' if int(team) > 1 else ''}" for team in teams]
    lines = [f"{machine['processor']}, {machine['processors']} processors", "", heading(["", *threads])]
    for size in machine["read"][teams[0]]:
        cells = (cell(machine["read"][team][size]) for team in teams)
        lines.append(line([f"read {int(size) >> 20} MiB, GB/s", *cells]))
    for kind in machine["peak"][teams[0]]:
        cells = (cell(machine["peak"][team][kind]) for team in teams)
        lines.append(line([f"{kind} products and sums, 1e9/s", *cells]))
    return "\n".join(lines)


def speed_titles(peers: Sequence[str]) -> list[str]:
    columns = [title for peer in peers for title in (peer, "ratio")]
    return ["model", "type", "threads", "tokens/s", OURS, "floor", "of floor", *columns]


def speed_rows(record: Mapping[str, Any], peers: Sequence[str]) -> list[str]:
    """The speeds of a case, and for decoding the peak memory. record: of bench.engine's JSON."""
    speeds = record["speeds"]
    ours, floor = speeds.get(OURS, []), record["floor"]
    names = [record["model"], record["type"], str(record["threads"])]
    share = f"{statistics.median(ours) / floor:.0%}" if ours and floor else ""
    cells = [*names, record["name"], cell(ours), number(floor) if floor else "", share]
    for peer in peers:
        cells += [cell(speeds.get(peer, [])), ratio(ours, speeds.get(peer, []))]
    rows = [line(cells)]
    if record["name"] == "decode" and record["memory"]:
        memory = {name: n / 2**20 for name, n in record["memory"].items()}
        cells = [*names, "peak MiB", number(memory[OURS]) if OURS in memory else "", "", ""]
        for peer in peers:
            mine, theirs = ([memory[name]] if name in memory else [] for name in (OURS, peer))
            cells += [number(theirs[0]) if theirs else "", ratio(mine, theirs)]
        rows.append(line(cells))
    return rows


def startup_table(kind: str, startup: Mapping[str, Sequence[float]]) -> str:
    first, seconds = next(iter(startup.items()), ("", []))
    rows = [line([name, cell(theirs), ratio(theirs, seconds)]) for name, theirs in startup.items()]
    return "\n".join(
        [heading([f"whole process, 15M {kind}, 256 tokens", "seconds", f"times {first}"]), *rows]
    )


def sampling_table(sampling: Sequence[Mapping[str, Any]], peers: Sequence[str]) -> str:
    """Microseconds of a draw; the ratio is how many times faster we are."""
    titles = ["top-p 0.9, microseconds", OURS, *(title for peer in peers for title in (peer, "ratio"))]
    lines = [heading(titles)]
    for record in sampling:
        micros = {name: [1e6 / speed for speed in found] for name, found in record["speeds"].items()}
        cells = [f"{record['vocab_size']:,} logits", cell(micros.get(OURS, []))]
        for peer in peers:
            cells += [cell(micros.get(peer, [])), ratio(micros.get(peer, []), micros.get(OURS, []))]
        lines.append(line(cells))
    return "\n".join(lines)
