"""/metrics: what the engine has counted, for Prometheus."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from llama.server.engine import Engine

COUNTERS = {  # of Engine.totals
    "requests": "texts that have ended",
    "cancelled": "texts whose client left",
    "refused": "requests that the queue had no room for",
    "prompt_tokens": "tokens of prompts",
    "reused_tokens": "tokens of prompts that were known and not run again",
    "generated_tokens": "tokens drawn",
    "guessed_tokens": "tokens that the draft gave",
    "accepted_tokens": "tokens of the draft that saved a pass",
    "prompt_ms": "milliseconds until first tokens, over all texts",
    "generate_ms": "milliseconds from first to last tokens, over all texts",
}


class EngineCollector:
    """The figures of an engine, read when they are asked for."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        engine = self._engine
        for name, meaning in COUNTERS.items():
            yield CounterMetricFamily(f"cria_{name}", meaning, value=engine.totals[name])
        gauges = {
            "running": ("texts being written", engine.running),
            "waiting": ("texts that wait", len(engine.waiting)),
            "reading": ("texts that wait to be read", len(engine.chores)),
            "parallel": ("texts written side by side at most", engine.parallel),
        }
        for name, (meaning, value) in gauges.items():
            yield GaugeMetricFamily(f"cria_{name}", meaning, value=value)


def registry(engine: Engine) -> CollectorRegistry:
    """The registry of one server: Prometheus's own is shared by a whole process."""
    made = CollectorRegistry(auto_describe=False)
    made.register(EngineCollector(engine))
    return made
