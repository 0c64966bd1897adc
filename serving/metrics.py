"""The observer that counts with Ray's metrics, which Prometheus reads; dashboard and alerts name what is here.

Labels are few by construction: routes by template, models by the names served, outcomes by a list. None is a
namespace, an id or a text.
"""

from dataclasses import dataclass
from typing import Any, Literal

from ray.serve import metrics as serve_metrics

from serving.observer import EditOutcome

# Buckets, by their upper ends. Ray takes none of 0 or below.
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
_RETRIEVAL_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28)
_MARGIN = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)  # inner products: their scale is the editor's


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One metric.

    Attributes:
        kind: of Prometheus.
        name: before Ray puts `ray_` in front.
        description: for people.
        labels: of ours; Serve adds application, deployment and replica.
        buckets: of a histogram.
    """

    kind: Literal["counter", "histogram", "gauge"]
    name: str
    description: str
    labels: tuple[str, ...] = ("model",)
    buckets: tuple[float, ...] = ()

    @property
    def series(self) -> tuple[str, ...]:
        """Names by which Prometheus knows it."""
        suffixes = ("_bucket", "_count", "_sum") if self.kind == "histogram" else ("",)
        return tuple(f"ray_{self.name}{suffix}" for suffix in suffixes)


REQUESTS = Metric(
    kind="counter",
    name="recipe_requests_total",  # the suffix is Prometheus's; without it Ray would export a second, outdated name
    description="Requests ended; status 499 where the client left.",
    labels=("route", "model", "status"),
)
REQUEST_SECONDS = Metric(
    kind="histogram",
    name="recipe_request_seconds",
    description="Seconds from a request to the end of its answer.",
    labels=("route", "model"),
    buckets=_SECONDS,
)
EDITS = Metric(
    kind="counter",
    name="recipe_edits_total",
    description="Prompts by what came of looking facts up for them.",
    labels=("model", "outcome"),
)
MARGIN = Metric(
    kind="histogram",
    name="recipe_margin",
    description="Distance of the best fact's score and the sentinel's: above it where applied, else below.",
    labels=("model", "outcome"),
    buckets=_MARGIN,
)
RETRIEVAL_SECONDS = Metric(
    kind="histogram",
    name="recipe_retrieval_seconds",
    description="Seconds of looking facts up, for all prompts of a request.",
    buckets=_RETRIEVAL_SECONDS,
)
FIRST_TOKEN_SECONDS = Metric(
    kind="histogram",
    name="recipe_time_to_first_token_seconds",
    description="Seconds from a request to its first token.",
    buckets=_SECONDS,
)
TOKEN_SECONDS = Metric(
    kind="histogram",
    name="recipe_token_seconds",
    description="Seconds of a generation for each of its new tokens.",
    buckets=_TOKEN_SECONDS,
)
TOKENS = Metric(
    kind="counter",
    name="recipe_tokens_total",
    description="Tokens of prompts, and new ones.",
    labels=("model", "kind"),
)
SNAPSHOT_VERSION = Metric(kind="gauge", name="recipe_snapshot_version", description="Version of the table served.")
SNAPSHOT_AGE = Metric(
    kind="gauge", name="recipe_snapshot_age_seconds", description="Seconds since the version served was committed."
)
FACTS = Metric(kind="gauge", name="recipe_facts", description="Live facts served.")
INDEX_BYTES = Metric(kind="gauge", name="recipe_index_bytes", description="Bytes of keys and indexes held.")
BATCH_SIZE = Metric(kind="gauge", name="recipe_batch_size", description="Prompts in work in an engine.")

METRICS = (
    REQUESTS,
    REQUEST_SECONDS,
    EDITS,
    MARGIN,
    RETRIEVAL_SECONDS,
    FIRST_TOKEN_SECONDS,
    TOKEN_SECONDS,
    TOKENS,
    SNAPSHOT_VERSION,
    SNAPSHOT_AGE,
    FACTS,
    INDEX_BYTES,
    BATCH_SIZE,
)


class RayObserver:
    """`serving.observer.Observer` over Ray's metrics; one a process.

    Args:
        library: with the classes Counter, Histogram and Gauge, as `ray.serve.metrics`.
    """

    def __init__(self, library: Any = serve_metrics) -> None:
        self._made = {metric: _make(metric, library) for metric in METRICS}

    def request(self, *, route: str, model: str, status: int, seconds: float) -> None:
        """See Observer."""
        self._made[REQUESTS].inc(1, {"route": route, "model": model, "status": str(status)})
        self._made[REQUEST_SECONDS].observe(seconds, {"route": route, "model": model})

    def edit(self, *, model: str, outcome: EditOutcome, margin: float | None) -> None:
        """See Observer."""
        labels = {"model": model, "outcome": outcome}
        self._made[EDITS].inc(1, labels)
        if margin is not None:
            # Ray has no buckets below 0: the outcome tells on which side of the sentinel the score lies.
            self._made[MARGIN].observe(abs(margin), labels)

    def retrieval(self, *, model: str, seconds: float) -> None:
        """See Observer."""
        self._made[RETRIEVAL_SECONDS].observe(seconds, {"model": model})

    def first_token(self, *, model: str, seconds: float) -> None:
        """See Observer."""
        self._made[FIRST_TOKEN_SECONDS].observe(seconds, {"model": model})

    def tokens(self, *, model: str, num_prompt: int, num_new: int, seconds: float) -> None:
        """See Observer."""
        for kind, number in (("prompt", num_prompt), ("new", num_new)):
            if number:  # Ray refuses to add 0
                self._made[TOKENS].inc(number, {"model": model, "kind": kind})
        if num_new:
            self._made[TOKEN_SECONDS].observe(seconds / num_new, {"model": model})

    def snapshot(self, *, model: str, version: int, age_s: float, num_facts: int, index_bytes: int) -> None:
        """See Observer. Ray forgets a gauge within about 20 s: tell it again every 10."""
        for metric, value in (
            (SNAPSHOT_VERSION, version),
            (SNAPSHOT_AGE, age_s),
            (FACTS, num_facts),
            (INDEX_BYTES, index_bytes),
        ):
            self._made[metric].set(value, {"model": model})

    def batch_size(self, model: str, n: int) -> None:
        """Prompts in work in an engine now, those that wait for its batch included; engines observe nothing else."""
        self._made[BATCH_SIZE].set(n, {"model": model})


def _make(metric: Metric, library: Any) -> Any:
    if metric.kind == "histogram":
        return library.Histogram(
            metric.name, description=metric.description, boundaries=list(metric.buckets), tag_keys=metric.labels
        )
    kind = library.Counter if metric.kind == "counter" else library.Gauge
    return kind(metric.name, description=metric.description, tag_keys=metric.labels)
