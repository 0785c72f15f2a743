"""What bench.engine measured as a picture: the roofline of the machine with our cases under it, and bars.

    python -m bench.plot results.json picture.png

Left: operations per second over operations for each byte of weights. The roof is the slower of what memory
gives (1 GiB; dashed: 1 MiB, in the cache) and of arithmetic. Right: how many times faster than each peer.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # no screen
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from bench.report import OURS

MARKERS = "osD^vP*X"  # of the shapes


def median_of(table: Mapping[str, list[float]]) -> dict[str, float]:
    return {name: statistics.median(values) for name, values in table.items()}


def draw_roof(axes: Axes, machine: Mapping[str, Any], threads: str, intensities: np.ndarray) -> None:
    """The lines that nothing can be above. intensities: operations for each byte."""
    rates, peaks = median_of(machine["read"][threads]), median_of(machine["peak"][threads])
    sizes = sorted(rates, key=int)
    for size, style in ((sizes[-1], "-"), (sizes[0], "--")):
        roof = np.minimum(rates[size] * intensities, max(peaks.values()))
        axes.plot(intensities, roof, f"k{style}", lw=1, label=f"{int(size) >> 20} MiB")
    for kind, peak in peaks.items():
        axes.axhline(peak, color="grey", lw=0.8)
        axes.annotate(kind, (intensities[0], peak), fontsize=7, va="bottom")


def draw_points(axes: Axes, records: list[dict[str, Any]]) -> None:
    shapes, types = (list(dict.fromkeys(record[key] for record in records)) for key in ("model", "type"))
    for record in records:
        rate = statistics.median(record["speeds"][OURS]) * record["token_operations"] / 1e9
        marker = MARKERS[shapes.index(record["model"]) % len(MARKERS)]
        axes.plot(record["intensity"], rate, marker, color=f"C{types.index(record['type'])}", ms=5)
    for shape, marker in zip(shapes, MARKERS, strict=False):
        axes.plot([], [], f"k{marker}", label=shape)
    for i, kind in enumerate(types):
        axes.plot([], [], f"C{i}s", label=kind)


def draw_bars(axes: Axes, records: list[dict[str, Any]]) -> None:
    """For every case the ratio to each peer."""
    peers = [name for name in dict.fromkeys(n for r in records for n in r["speeds"]) if name != OURS]
    for i, peer in enumerate(peers):
        at = [j for j, record in enumerate(records) if peer in record["speeds"]]
        ratios = [
            statistics.median(records[j]["speeds"][OURS]) / statistics.median(records[j]["speeds"][peer])
            for j in at
        ]
        axes.barh(np.array(at) + 0.8 * (i + 0.5) / len(peers) - 0.4, ratios, 0.8 / len(peers), label=peer)
    names = [f"{record['model']} {record['type']} {record['name']}" for record in records]
    axes.set_yticks(range(len(records)), names, fontsize=6)
    axes.invert_yaxis()
    axes.axvline(1, color="black", lw=0.8)
    axes.set_xlabel("times faster than")
    if peers:
        axes.legend(fontsize=7)


def plot(results: Mapping[str, Any], path: Path) -> None:
    """Draws the cases with the most threads. Raises OSError."""
    ours = [record for record in results["speeds"] if record["speeds"].get(OURS)]
    threads = max((record["threads"] for record in ours), default=1)
    records = [record for record in ours if record["threads"] == threads]
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, max(5, 0.16 * len(records) + 1)))
    if results.get("machine"):
        draw_roof(left, results["machine"], str(threads), np.geomspace(0.25, 1000, 50))
    draw_points(left, records)
    left.set(xscale="log", yscale="log", xlabel="operations / byte of weights", ylabel="1e9 operations/s")
    left.legend(fontsize=7, loc="lower right")
    draw_bars(right, records)
    figure.suptitle(f"{threads} thread{'s' if threads > 1 else ''}")
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main() -> None:
    results, picture = map(Path, sys.argv[1:])
    plot(json.loads(results.read_text(encoding="utf-8")), picture)


if __name__ == "__main__":
    main()
