"""What Prometheus asks a server; https://prometheus.io/docs/practices/naming/."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client import generate_latest as write

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """Counters of a server, in a registry of its own."""

    media_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        own = self._registry
        self._answers = Counter("ptune_answers", "Answers by end.", ["model", "end"], registry=own)
        self._prompt = Counter("ptune_prompt_tokens", "Tokens of prompts.", ["model"], registry=own)
        self._tokens = Counter(
            "ptune_generated_tokens", "Tokens of answers.", ["model"], registry=own
        )
        self._first = Histogram(
            "ptune_time_to_first_token_seconds",
            "From a request to its first token.",
            ["model"],
            buckets=_SECONDS,
            registry=own,
        )
        self._whole = Histogram(
            "ptune_answer_seconds",
            "From a request to its end.",
            ["model"],
            buckets=_SECONDS,
            registry=own,
        )
        self._responses = Counter(
            "ptune_http_responses", "Responses.", ["path", "status"], registry=own
        )

    def watch(self, name: str, what: str, value: Callable[[], float]) -> None:
        """Show a number that is asked for at each scrape."""
        Gauge(name, what, registry=self._registry).set_function(value)

    def responded(self, path: str, status: int) -> None:
        """Count a response; the path must be one of a few."""
        self._responses.labels(path, str(status)).inc()

    def first_token(self, model: str, seconds: float) -> None:
        """Note how long a client waited to see something."""
        self._first.labels(model).observe(seconds)

    def ended(self, model: str, end: str, prompt: int, tokens: int, seconds: float) -> None:
        """Note an answer: why it ended, and how much it was."""
        self._answers.labels(model, end).inc()
        self._prompt.labels(model).inc(prompt)
        self._tokens.labels(model).inc(tokens)
        self._whole.labels(model).observe(seconds)

    def text(self) -> bytes:
        """All of it."""
        return write(self._registry)
