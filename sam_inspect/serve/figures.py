"""What Prometheus reads: requests, latency by stage, queue, verdicts, and how far scores drift from the training's."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from sam_inspect.records import Inspection
from sam_inspect.serve.shelf import Loaded

RECENT = 200
FEWEST = 20
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.5, 5.0, 10.0)


class Telemetry:
    """See the module."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "sam_inspect_requests", "Answered requests", ["route", "status"], registry=self.registry
        )
        self._seconds = Histogram(
            "sam_inspect_stage_seconds",
            "Seconds of a stage",
            ["recipe", "stage"],
            registry=self.registry,
            buckets=BUCKETS,
        )
        self._verdicts = Counter("sam_inspect_verdicts", "Inspections", ["recipe", "verdict"], registry=self.registry)
        self._queue = Gauge("sam_inspect_queue_depth", "Images that wait or are worked on", registry=self.registry)
        self._waiting = Gauge("sam_inspect_deliveries_waiting", "Not delivered", ["output"], registry=self.registry)
        self._refused = Gauge("sam_inspect_deliveries_refused", "Set aside", ["output"], registry=self.registry)
        self._drift = Gauge(
            "sam_inspect_score_drift",
            "Kolmogorov-Smirnov distance of the last scores of passed parts from those of good parts in training",
            ["recipe"],
            registry=self.registry,
        )
        self._scores: dict[str, tuple[str, deque[float]]] = {}

    def answered(self, loaded: Loaded, inspection: Inspection, seconds: float) -> None:
        """Counts an inspection."""
        name = loaded.name
        self._verdicts.labels(name, inspection.verdict).inc()
        for stage, ms in inspection.timings_ms.items():
            self._seconds.labels(name, stage).observe(ms / 1000)
        self._seconds.labels(name, "all").observe(seconds)
        if inspection.verdict == "pass" and inspection.threshold is not None and inspection.score is not None:
            self._drifts(loaded, inspection.score)

    def _drifts(self, loaded: Loaded, score: float) -> None:
        """Of the version that judges now: another one's scores are in another unit."""
        name, recipe = loaded.name, loaded.inspector.recipe
        version, scores = self._scores.get(name, ("", deque[float]()))
        if version != loaded.version:
            scores = deque(maxlen=RECENT)
            self._scores[name] = loaded.version, scores
            with suppress(KeyError):
                self._drift.remove(name)
        scores.append(score)
        if recipe is not None and len(scores) >= FEWEST and len(recipe.calibration_scores):
            self._drift.labels(name).set(distance(np.array(scores), recipe.calibration_scores))

    def requested(self, route: str, status: int) -> None:
        """Counts a request."""
        self._requests.labels(route, str(status)).inc()

    def page(self, queue_depth: int, waiting: Mapping[str, int], refused: Mapping[str, int]) -> bytes:
        """In Prometheus's text format; what waits and what was refused by output."""
        self._queue.set(queue_depth)
        for gauge, counts in ((self._waiting, waiting), (self._refused, refused)):
            gauge.clear()
            for output, count in counts.items():
                gauge.labels(output).set(count)
        return generate_latest(self.registry)


def distance(a: NDArray[np.floating], b: NDArray[np.floating]) -> float:
    """Kolmogorov and Smirnov's: the largest difference of two samples' distribution functions, 0 to 1."""
    places = np.concatenate([a, b])
    shares = [np.searchsorted(np.sort(sample), places, side="right") / len(sample) for sample in (a, b)]
    return float(np.abs(shares[0] - shares[1]).max())
