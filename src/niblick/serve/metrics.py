"""What `/metrics` tells, in Prometheus' text format."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from niblick.serve.batcher import Batcher

_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)


class Metrics:
    """Counters of one server; `batcher` tells the rest when it is asked."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self, batcher: Batcher) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_Engine(batcher))
        ProcessCollector(registry=self._registry)
        self.responses = Counter(
            "niblick_responses", "Responses of the interface.", ["code"], registry=self._registry
        )
        self.prompt_tokens = Counter(
            "niblick_prompt_tokens", "Tokens of prompts accepted.", registry=self._registry
        )
        self.generated_tokens = Counter(
            "niblick_generated_tokens", "Tokens written for clients.", registry=self._registry
        )
        self.hung_up = Counter(
            "niblick_hung_up", "Requests whose client hung up first.", registry=self._registry
        )
        self.first_token = Histogram(
            "niblick_first_token_seconds",
            "From the request to its first token.",
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.request = Histogram(
            "niblick_request_seconds",
            "From the request to its end.",
            buckets=_SECONDS,
            registry=self._registry,
        )

    def text(self) -> bytes:
        """All of them, as Prometheus reads them."""
        found: bytes = generate_latest(self._registry)
        return found


class _Engine(Collector):
    """What the batcher knows."""

    def __init__(self, batcher: Batcher) -> None:
        self._batcher = batcher

    def collect(self) -> list[GaugeMetricFamily | CounterMetricFamily]:
        """See prometheus_client."""
        batcher = self._batcher
        return [
            GaugeMetricFamily("niblick_slots", "Texts that can run at once.", batcher.engine.slots),
            GaugeMetricFamily("niblick_running", "Texts that have a slot.", batcher.running),
            GaugeMetricFamily("niblick_waiting", "Texts that wait for one.", batcher.waiting),
            CounterMetricFamily(
                "niblick_engine_seconds", "Time that the engine worked.", batcher.busy_seconds
            ),
        ]
