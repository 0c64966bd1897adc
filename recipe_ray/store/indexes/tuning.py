"""Which kind of index the facts of a part get, and how many probes it takes to find what an exact search finds.

Measured on a sample of held-out queries while the index is built, and written down with it.

Shapes: Q sample queries, F facts, K key width.
"""

from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from recipe_ray.errors import ConfigError
from recipe_ray.retrieval import NO_FACT, decide
from recipe_ray.store.indexes.ann import (
    BLOCK_ROWS,
    MORE_CANDIDATES,
    Keys,
    Kind,
    PartIndex,
    PartSpec,
    Remedy,
    Storage,
    build,
    exact_nearest,
    visible_rows,
)
from recipe_ray.store.indexes.exact import inner_products
from recipe_ray.store.indexes.reduction import fewest_dimensions

DEFAULT_EXACT_BELOW = 20_000
_UNIT_TOLERANCE = 0.01  # float16 rounds a unit norm by less than 0.001
_FEWEST_PROBES = {"ivf": 8, "sq8": 8, "hnsw": 64}
_MOST_ENTRIES = 1024  # kept while walking a graph; beyond that a scan of lists is faster
_LISTS_PER_ROOT = 4  # times the square root of the number of facts, as FAISS advises


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexSettings:
    """How the facts of each shard are indexed; what is None or auto is chosen by the shard.

    Attributes:
        kind: exact, ivf, hnsw or sq8; auto takes exact below exact_below facts, hnsw from there on (ivf where hnsw does
            not reach min_recall).
        remedy: against keys of unequal norm: none, l2 or spherical; auto takes what measured best for the norms.
        storage: of the vectors in the index, float16 or float32; auto as the table has them.
        num_lists: of ivf; of sq8 likewise, which scans one list of all if not given.
        num_probes: lists that a query visits (ivf, sq8), or entries kept on its way (hnsw), to begin with.
        num_links: of a fact in the graph of hnsw.
        num_dimensions: numbers a key that are indexed; None takes for hnsw as few as cost little recall, if half of a
            key's are enough, and all otherwise.
        exact_below: facts of a shard.
        min_recall: share of sample queries whose best fact must be found; probes are doubled until it is, and where
            that does not help, exact is taken.
        num_queries: in the sample.
    """

    kind: Literal["auto", "exact", "ivf", "hnsw", "sq8"] = "auto"
    remedy: Literal["auto", "none", "l2", "spherical"] = "auto"
    storage: Literal["auto", "float16", "float32"] = "auto"
    num_lists: int | None = None
    num_probes: int | None = None
    num_links: int = 32
    num_dimensions: int | None = None
    exact_below: int = DEFAULT_EXACT_BELOW
    min_recall: float = 0.99
    num_queries: int = 512

    def __post_init__(self) -> None:
        for name, choices in (("kind", Kind), ("remedy", Remedy), ("storage", Storage)):
            allowed = ("auto", *get_args(choices))
            if getattr(self, name) not in allowed:
                raise ConfigError(f"{name} is {getattr(self, name)!r}; give one of {', '.join(allowed)}")
        for name in ("num_lists", "num_probes", "num_links", "num_dimensions", "num_queries"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}; give 1 or more")
        if not 0 <= self.min_recall <= 1:
            raise ConfigError(f"min_recall is {self.min_recall}; give a share from 0 to 1")
        if self.kind == "exact" and self.num_probes is not None:
            raise ConfigError(f"kind is exact and num_probes is {self.num_probes}; exact has no probes, drop one")
        if self.kind in ("exact", "hnsw") and self.num_lists is not None:
            raise ConfigError(f"kind is {self.kind} and num_lists is {self.num_lists}; it has no lists, drop one")
        if self.num_dimensions is not None and (self.kind == "exact" or self.remedy == "l2"):
            raise ConfigError(
                f"num_dimensions is {self.num_dimensions}, but kind is {self.kind} and remedy is {self.remedy}; "
                "exact and l2 index whole keys, drop one"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Queries to measure by.

    Attributes:
        queries_QK: float32.
        left_out_Q: for each query a row that does not count, NO_FACT for none: without its fact a query is one that no
            fact answers.
    """

    queries_QK: npt.NDArray[np.float32]
    left_out_Q: npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuned:
    """A built index.

    Attributes:
        part: the index over the part's facts.
        recall: share of sample queries whose best fact was found; 1 where the search is exact.
        agreement: share of sample queries for which the same fact was applied, or none, as after an exact search.
        reason: why this kind and these probes.
    """

    part: PartIndex
    recall: float
    agreement: float
    reason: str


def sample_rows(num_facts: int, num_queries: int) -> npt.NDArray[np.int64]:
    """Rows for a sample, spread evenly."""
    return np.unique(np.linspace(0, max(0, num_facts - 1), min(num_facts, num_queries)).astype(np.int64))


def build_tuned(keys_FK: Keys, settings: IndexSettings, sentinel_K: npt.NDArray[np.float32], sample: Sample) -> Tuned:
    """Choose, build and measure the index of one part.

    Raises:
        ServiceError: FAISS is not installed.
    """
    spec, reason = choose(keys_FK, settings)
    if not spec.approximate:
        return _exact(keys_FK, spec, reason)
    truth = exact_nearest(keys_FK, sample.queries_QK, left_out_B=sample.left_out_Q)
    whole, spec = spec, _narrowed(keys_FK, spec, settings, sample, truth)
    tuned = _measure(keys_FK, spec, settings, sentinel_K, sample, truth)
    reason = f"{reason}; {tuned.reason}"
    if tuned.recall < settings.min_recall and spec != whole and settings.num_dimensions is None:
        tuned = _measure(keys_FK, whole, settings, sentinel_K, sample, truth)
        reason = f"{reason}, below {settings.min_recall}: whole keys; {tuned.reason}"
    if tuned.recall < settings.min_recall and settings.kind == "auto":
        spec, _ = choose(keys_FK, replace(settings, kind="ivf"))
        tuned = _measure(keys_FK, spec, settings, sentinel_K, sample, truth)
        reason = f"{reason}, below {settings.min_recall}: ivf; {tuned.reason}"
    if tuned.recall < settings.min_recall:
        spec = PartSpec(kind="exact", storage=spec.storage, max_norm=spec.max_norm)
        return _exact(keys_FK, spec, f"{reason}, below {settings.min_recall}: exact")
    return replace(tuned, reason=reason)


def _narrowed(
    keys_FK: Keys,
    spec: PartSpec,
    settings: IndexSettings,
    sample: Sample,
    truth: tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]],
) -> PartSpec:
    """The same index over fewer numbers a key, as asked or where it pays: half of the misses may come of that."""
    num_dimensions = settings.num_dimensions
    if num_dimensions is None:
        if spec.kind != "hnsw" or spec.remedy == "l2":
            return spec
        num_dimensions = fewest_dimensions(
            keys_FK,
            sample.queries_QK,
            truth[0],
            sample.left_out_Q,
            num_candidates=MORE_CANDIDATES,
            min_recall=(1 + settings.min_recall) / 2,
        )
    return replace(spec, num_dimensions=num_dimensions if num_dimensions < keys_FK.shape[1] else 0)


def _measure(
    keys_FK: Keys,
    spec: PartSpec,
    settings: IndexSettings,
    sentinel_K: npt.NDArray[np.float32],
    sample: Sample,
    truth: tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]],
) -> Tuned:
    """Build, and raise the probes as far as it takes or helps."""
    part = PartIndex(build(keys_FK, spec), keys_FK, spec)
    num_probes, most = spec.num_probes, _most_probes(spec)
    while True:
        found = _search(part, sample, num_probes)
        # Equal scores are equally good, whichever of two equal facts comes with them.
        recall = _share(found[1] >= truth[1])
        if recall >= settings.min_recall or num_probes >= most:
            break
        num_probes = min(most, 2 * num_probes)
    thresholds_Q = inner_products(sample.queries_QK, sentinel_K)
    agreement = _share(decide(*found, thresholds_Q).row_B == decide(*truth, thresholds_Q).row_B)
    reason = f"recall {recall:.4f} on {len(found[0])} queries" + (f" with {num_probes} probes" if most else "")
    if spec.num_dimensions:
        reason += f" over {spec.num_dimensions} of {keys_FK.shape[1]} numbers a key"
    part = PartIndex(part.index, keys_FK, replace(spec, num_probes=num_probes))
    return Tuned(part=part, recall=recall, agreement=agreement, reason=reason)


def choose(keys_FK: Keys, settings: IndexSettings) -> tuple[PartSpec, str]:
    """The kind of index for a part's keys, with probes to begin with, and why."""
    num_facts = len(keys_FK)
    kind: Kind
    if settings.kind != "auto":
        kind, reason = settings.kind, f"{settings.kind} as asked"
    else:
        kind = "exact" if num_facts < settings.exact_below else "hnsw"
        reason = f"auto: hnsw from {settings.exact_below} facts on"
    as_stored: Storage = "float32" if keys_FK.dtype.itemsize > 2 else "float16"
    least, largest = norm_range(keys_FK)
    num_lists = 0
    if kind == "ivf" or (kind == "sq8" and settings.num_lists):
        num_lists = settings.num_lists or round(_LISTS_PER_ROOT * num_facts**0.5)
        num_lists = max(1, min(num_lists, num_facts))
    if kind == "ivf" and not num_facts:
        kind, num_lists = "exact", 0
    num_probes = 0
    if num_lists:
        num_probes = min(settings.num_probes or min(_FEWEST_PROBES[kind], _most_lists(num_lists)), num_lists)
    elif kind == "hnsw":
        num_probes = settings.num_probes or _FEWEST_PROBES[kind]
    spec = PartSpec(
        kind=kind,
        remedy=_remedy(settings, unit=largest - least <= _UNIT_TOLERANCE * largest, kind=kind),
        storage=as_stored if settings.storage == "auto" else settings.storage,
        num_lists=num_lists,
        num_probes=num_probes,
        num_links=settings.num_links if kind == "hnsw" else 0,
        max_norm=largest,
    )
    return spec, reason


def norm_range(keys_FK: Keys) -> tuple[float, float]:
    """The smallest and the largest norm of a key; 0 and 0 where there is none."""
    ranges = [(0.0, 0.0)] if not len(keys_FK) else []
    for start in range(0, len(keys_FK), BLOCK_ROWS):
        norms_F = np.sqrt(np.square(keys_FK[start : start + BLOCK_ROWS].astype(np.float32)).sum(axis=1))
        ranges.append((float(norms_F.min()), float(norms_F.max())))
    return min(least for least, _ in ranges), max(largest for _, largest in ranges)


def _remedy(settings: IndexSettings, *, unit: bool, kind: Kind) -> Remedy:
    """What measured best, if by little: on 1,000 questions a difference of 0.01 in lists is noise.

    Lists over 100,000 keys of unit norm find 0.645 of the best facts with 8 of 1,265 lists if centroids are of unit
    norm too, 0.621 if not; with 128 there is no difference. Over 10,000 keys of an editor of the paper's formulas
    (norms 44 to 81) with 64 of 400 lists it is 0.936 without a remedy, 0.927 with l2, 0.915 with spherical, with 128
    again no difference; a graph of 128 entries finds 0.992 without, 0.984 with l2.
    """
    if settings.remedy != "auto":
        return settings.remedy
    return "spherical" if unit and kind in ("ivf", "sq8") else "none"


def _search(part: PartIndex, sample: Sample, num_probes: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Search query by query: each leaves out another row."""
    num_facts = len(part.keys_FK)
    nearest_Q = np.full(len(sample.queries_QK), NO_FACT, np.int64)
    score_Q = np.full(len(sample.queries_QK), -np.inf, np.float32)
    for query, left_out in enumerate(sample.left_out_Q):
        visible = None if left_out == NO_FACT else visible_rows(num_facts, hidden=np.array([left_out]))
        one = slice(query, query + 1)
        nearest_Q[one], score_Q[one] = part.search(sample.queries_QK[one], visible=visible, num_probes=num_probes)
    return nearest_Q, score_Q


def _exact(keys_FK: Keys, spec: PartSpec, reason: str) -> Tuned:
    return Tuned(part=PartIndex(build(keys_FK, spec), keys_FK, spec), recall=1.0, agreement=1.0, reason=reason)


def _most_probes(spec: PartSpec) -> int:
    if spec.num_lists:
        return _most_lists(spec.num_lists)
    return _MOST_ENTRIES if spec.kind == "hnsw" else 0


def _most_lists(num_lists: int) -> int:
    """Beyond half of the lists a scan of everything is as fast, and exact."""
    return max(1, num_lists // 2)


def _share(right: npt.NDArray[np.bool_]) -> float:
    return float(right.mean()) if len(right) else 1.0
