"""What the processor and the device do in a few steps of a run.

    python train.py --profile=10-12

Every rank leaves out_dir/profile/rank0.json.gz, a trace that ui.perfetto.dev shows, and rank0.txt: the ten
operations that take longest, and how often the processor waited for the device.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from llama.errors import UsageError
from training.parallel import Ranks

LONGEST = 10
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "aten::item")


def row(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def table(found: profile, n_steps: int, on_gpu: bool) -> str:
    """The operations of n_steps that take longest by themselves, and the waits, each per step."""
    events = found.key_averages()
    ours = [e for e in events if (e.device_type.name == "CUDA") == on_gpu and not e.is_user_annotation]
    cost = {e.key: (e.self_device_time_total if on_gpu else e.self_cpu_time_total) for e in ours}
    total, scale = sum(cost.values()), 1000 * n_steps  # from microseconds of all steps
    lines = [f"{total / scale:,.1f} ms of operations in a step", ""]
    lines += [row("operation", "ms a step", "share", "calls a step"), row(*["---"] * 4)]
    for event in sorted(ours, key=lambda e: -cost[e.key])[:LONGEST]:
        spent, calls = cost[event.key], event.count / n_steps
        lines.append(row(event.key[:90], f"{spent / scale:,.2f}", f"{spent / total:.1%}", f"{calls:g}"))
    lines += ["", row("waits of the processor", "calls a step", "ms a step"), row(*["---"] * 3)]
    by_name = {e.key: (e.count, e.cpu_time_total) for e in events if e.device_type.name == "CPU"}
    for name in WAITS:
        calls, spent = by_name.get(name, (0, 0.0))
        lines.append(row(name, f"{calls / n_steps:g}", f"{spent / scale:,.2f}"))
    return "\n".join(lines) + "\n"


def window_of(text: str) -> tuple[int, int]:
    """The first and the last step of a window such as 10-12, or 10; (0, 0) of none. Raises UsageError."""
    first, _, last = text.partition("-")
    try:
        window = (int(first), int(last or first)) if text else (0, 0)
    except ValueError:
        window = (1, 0)
    if text and not 1 <= window[0] <= window[1]:
        raise UsageError(f"profile = {text!r}, allowed steps such as 10-12")
    return window


class Profiler:
    """Watches the steps of a window, which is one of the options of a run."""

    def __init__(self, window: str, out_dir: Path, ranks: Ranks) -> None:
        self.first, self.last = window_of(window)
        self.folder, self.ranks = out_dir / "profile", ranks
        self.begun, self.running = 0, None

    def before(self, step: int) -> None:
        """Called before each step."""
        if self.first <= step <= self.last and not self.running:
            on_gpu = self.ranks.device.type == "cuda"
            kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
            self.begun, self.running = step, profile(activities=kinds)
            self.running.start()

    def after(self, step: int, done: bool) -> None:
        """Called after each step. done: no other follows. Raises OSError where a file can't be written."""
        if self.running and (done or step == self.last):
            if self.ranks.device.type == "cuda":
                torch.cuda.synchronize()
            found, self.running = self.running, None
            found.stop()
            self._write(found, step)

    def _write(self, found: profile, last: int) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        name = f"rank{self.ranks.rank}"
        found.export_chrome_trace(str(self.folder / f"{name}.json.gz"))
        text = table(found, last - self.begun + 1, self.ranks.device.type == "cuda")
        (self.folder / f"{name}.txt").write_text(text, encoding="utf-8")
        if self.ranks.is_main:
            print(f"profile of steps {self.begun} to {last}: {self.folder}", flush=True)
