"""What the server counts, for Prometheus: the only file that knows prometheus_client."""

from __future__ import annotations

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest


class Measures:
    """Counters of one server."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "mmsearch_requests_total", "Requests by route and status", ("route", "status"), registry=self._registry
        )
        self._request_s = Histogram(
            "mmsearch_request_seconds", "Seconds to answer a request", ("route",), registry=self._registry
        )
        self._searches = Counter(
            "mmsearch_searches_total", "Searches by kind and outcome", ("kind", "outcome"), registry=self._registry
        )
        self._search_s = Histogram(
            "mmsearch_search_seconds", "Seconds of a tool's search", ("kind",), registry=self._registry
        )

    def answered(self, route: str, status: int, seconds: float) -> None:
        """A request was answered."""
        self._requests.labels(route, str(status)).inc()
        self._request_s.labels(route).observe(seconds)

    def searched(self, kind: str, outcome: str, seconds: float) -> None:
        """A tool was asked; ``outcome`` is ``ok``, ``empty`` or an error's code."""
        self._searches.labels(kind, outcome).inc()
        self._search_s.labels(kind).observe(seconds)

    def exposition(self) -> bytes:
        """Everything counted, as Prometheus reads it."""
        return bytes(generate_latest(self._registry))
