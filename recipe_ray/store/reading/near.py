"""Facts whose keys lie so near that a question meant for one may get the other.

A question q gets the fact j with the largest q · k_j, if that exceeds q · s, s the sentinel (arXiv 2405.03279,
section 4). A question meant for fact i may get j, then, where

    q · k_j > share * (q · k_i)   j scores at least nearly as well as i, and
    q · k_j > q · s               the sentinel does not hold j back.

With the table's editor, q is the query of i's own prompt, and the share leaves room for other words. Without it, k_i
stands for q. This is coarse: keys hold the targets too, so rivals lie farther apart than their questions, and the share
has to be low; the sentinel, which is near no key, then decides nothing.

Measured on two editors (cosine; the paper's inner product) and 1,063 CounterFact edits, each given a rival in other
words: in 1,057 cases with another target, of which 0.58 and 0.59 score higher for a question of the edit than the edit
does. The shares that are taken if none is given were chosen on these edits:

    found among rivals / flagged among unrelated edits   cosine            inner product
    prompts, share 0.9                                   0.837 / 0.000     0.834 / 0.011
    prompts, share 0.8                                   0.933 / 0.004     0.936 / 0.044
    keys, share 0.6                                      0.718 / 0.013     0.406 / 0.037
    keys, share 0.98                                     0.000 / 0.000     0.000 / 0.000

The relation has a direction: a fact with a long key takes the questions of others and keeps its own. Facts with the
same target answer the same, and are no matter.

F facts of a partition, B queries of a batch, C candidates of a query, K key width.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt

from recipe_ray.errors import ConfigError, TableError
from recipe_ray.store.indexes.ann import Keys, Kind, PartIndex, rescored, space_queries
from recipe_ray.store.indexes.artefacts import EncodeQueries
from recipe_ray.store.indexes.exact import inner_products, load_faiss
from recipe_ray.store.indexes.tuning import DEFAULT_EXACT_BELOW, IndexSettings, Sample, build_tuned, sample_rows
from recipe_ray.store.order import vector_rows
from recipe_ray.store.reading.contradictions import SAID_COLUMNS, Said, said_of, target_hashes
from recipe_ray.store.reading.standing import PartitionFiles, Rows, partitions_of, read_ids
from recipe_ray.store.schema import cells_to_vectors, microseconds
from recipe_ray.store.stored import Progress, silent
from recipe_ray.store.table import FactTable, Partition

PROMPT_SHARE = 0.9
KEY_SHARE = 0.6
_QUERIES = 1024
_CANDIDATES = 16  # nearest facts of a key that are looked at, in each shard


@dataclass(frozen=True, slots=True, kw_only=True)
class NearPair:
    """A question meant for `asked` may get `got`.

    Attributes:
        namespace: of both.
        asked, got: what they say.
        score: q · k_got.
        own_score: q · k_asked.
        sentinel: q · s.
    """

    namespace: str
    asked: Said
    got: Said
    score: float
    own_score: float
    sentinel: float


@dataclass(frozen=True, slots=True, kw_only=True)
class NearReport:
    """What was found.

    Attributes:
        num_facts: live facts compared.
        num_asked: those of them whose question may get another fact.
        pairs: the nearest, by score / own_score; of two facts in both directions the worse one.
    """

    num_facts: int
    num_asked: int
    pairs: tuple[NearPair, ...]


def find_near(
    table: FactTable,
    *,
    limit: int,
    encode_queries: EncodeQueries | None = None,
    share: float | None = None,
    namespace: str | None = None,
    at: datetime | None = None,
    progress: Progress = silent,
) -> NearReport:
    """Compare every live fact with the nearest others of its namespace.

    Exact in shards below the size at which an index becomes approximate; above, about 1 in 100 is missed. Memory holds
    the keys of two partitions and an index of one; queries lie in a local temporary directory meanwhile.

    Args:
        table: at the version to read.
        limit: pairs returned; all facts are counted.
        encode_queries: of the table's editor: each fact is then asked for by its prompt (or statement, where it has
            none), else by its key.
        share: see the module; PROMPT_SHARE or KEY_SHARE if not given.
        namespace: None for all.
        at: facts that have expired by then are left out; now if not given.
        progress: shows the steps.

    Raises:
        ConfigError: share is not above 0.
        TableError: a file is missing or damaged.
        ServiceError: FAISS is not installed.
    """
    if share is None:
        share = KEY_SHARE if encode_queries is None else PROMPT_SHARE
    if not share > 0:
        raise ConfigError(f"share is {share}; give a number above 0, such as {PROMPT_SHARE}")
    at_us = microseconds(at or datetime.now(UTC))
    partitions_by = groupby(partitions_of(table, namespace), key=lambda partition: partition.namespace)
    by_namespace = [list(partitions) for _, partitions in partitions_by]
    num_steps = sum(len(partitions) ** 2 for partitions in by_namespace)
    with (
        TemporaryDirectory(prefix="queries-") as folder,
        progress("comparing keys", num_steps, unit="pairs of shards") as advance,
    ):
        queries = _Queries(encode_queries, Path(folder))
        search = _Search(table=table, queries=queries, share=share, limit=limit, at_us=at_us)
        for partitions in by_namespace:
            for among in partitions:
                search.compare(partitions, among, advance)
        return search.report()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Keys:
    """The F live facts of a partition: their rows, keys as stored, and hashes of what they say."""

    files: PartitionFiles
    rows: Rows
    keys_FK: Keys
    target_F: npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Hit:
    """One found pair; a fact is known by partition and row."""

    ratio: float
    asked: tuple[Partition, int]
    got: tuple[Partition, int]
    score: float
    own_score: float
    sentinel: float


class _Search:
    """What has been found so far."""

    def __init__(self, *, table: FactTable, queries: "_Queries", share: float, limit: int, at_us: int) -> None:
        self._table, self._queries, self._share, self._limit, self._at_us = table, queries, share, limit, at_us
        self._files: dict[Partition, PartitionFiles] = {}
        self._is_asked_F: dict[Partition, npt.NDArray[np.bool_]] = {}
        self._hits: list[_Hit] = []

    def compare(self, partitions: list[Partition], among: Partition, advance: Callable[[int], None]) -> None:
        """Look for the facts of all partitions of a namespace among those of one."""
        there = _read_keys(self._table, among, self._at_us)
        index = _index(there.keys_FK, self._table.identity.sentinel_K) if len(there.rows) else None
        for partition in partitions:
            asked = there if partition == among else _read_keys(self._table, partition, self._at_us)
            self._files[partition] = asked.files
            self._is_asked_F.setdefault(partition, np.zeros(len(asked.rows), np.bool_))
            if index is not None:
                queries_FK = self._queries.of(asked)
                for start in range(0, len(asked.rows), _QUERIES):
                    self._compare_batch(asked, queries_FK, slice(start, start + _QUERIES), there, index)
            advance(1)

    def report(self) -> NearReport:
        """Tell the nearest pairs with what they say."""
        hits = self._nearest()
        said = self._said({place for hit in hits for place in (hit.asked, hit.got)})
        return NearReport(
            num_facts=sum(len(is_asked_F) for is_asked_F in self._is_asked_F.values()),
            num_asked=sum(int(is_asked_F.sum()) for is_asked_F in self._is_asked_F.values()),
            pairs=tuple(
                NearPair(
                    namespace=hit.asked[0].namespace,
                    asked=said[hit.asked],
                    got=said[hit.got],
                    score=hit.score,
                    own_score=hit.own_score,
                    sentinel=hit.sentinel,
                )
                for hit in hits
            ),
        )

    def _compare_batch(self, asked: _Keys, queries_FK: Keys, batch: slice, there: _Keys, index: PartIndex) -> None:
        queries_BK = queries_FK[batch].astype(np.float32)
        own_B = inner_products(queries_BK, asked.keys_FK[batch].astype(np.float32))
        sentinel_B = inner_products(queries_BK, self._table.identity.sentinel_K)
        candidates_BC, scores_BC = rescored(there.keys_FK, queries_BK, _candidates(index, queries_BK))
        is_near_BC = scores_BC > np.maximum(np.float32(self._share) * own_B, sentinel_B)[:, None]
        # A fact says the same as itself, so this leaves it out too.
        is_near_BC &= there.target_F[np.maximum(candidates_BC, 0)] != asked.target_F[batch, None]
        self._is_asked_F[asked.files.partition][batch] |= is_near_BC.any(axis=1)
        found_B, found_C = np.nonzero(is_near_BC)
        score, own_score = scores_BC[found_B, found_C], own_B[found_B]
        # A question that lies away from its own fact is the worst.
        ratios = np.divide(score, own_score, out=np.full_like(score, np.inf), where=own_score > 0)
        nearest = np.argsort(-ratios, kind="stable")[: 2 * self._limit]  # each pair may come from both sides
        for number, query, place in zip(nearest, found_B[nearest], found_C[nearest], strict=True):
            self._hits.append(
                _Hit(
                    ratio=float(ratios[number]),
                    asked=(asked.files.partition, int(asked.rows[batch][query])),
                    got=(there.files.partition, int(there.rows[candidates_BC[query, place]])),
                    score=float(scores_BC[query, place]),
                    own_score=float(own_B[query]),
                    sentinel=float(sentinel_B[query]),
                )
            )
        self._hits = self._nearest()

    def _nearest(self) -> list[_Hit]:
        pairs: dict[frozenset[tuple[Partition, int]], _Hit] = {}
        for hit in sorted(self._hits, key=lambda hit: (-hit.ratio, -hit.score)):
            pairs.setdefault(frozenset((hit.asked, hit.got)), hit)
        return list(pairs.values())[: self._limit]

    def _said(self, places: Collection[tuple[Partition, int]]) -> dict[tuple[Partition, int], Said]:
        said: dict[tuple[Partition, int], Said] = {}
        for partition in {partition for partition, _ in places}:
            rows = sorted(row for of, row in places if of == partition)
            found = self._files[partition].read(np.array(rows, np.int64), SAID_COLUMNS).to_pylist()
            said |= {(partition, row): said_of(texts) for row, texts in zip(rows, found, strict=True)}
        return said


class _Queries:
    """Queries of the facts of partitions, each encoded once and kept in a folder; without an encoder, their keys."""

    def __init__(self, encode: EncodeQueries | None, folder: Path) -> None:
        self._encode, self._folder = encode, folder
        self._paths: dict[Partition, Path] = {}

    def of(self, asked: _Keys) -> Keys:
        """Queries [F, K], in memory or mapped."""
        if self._encode is None or not len(asked.rows):
            return asked.keys_FK
        partition = asked.files.partition
        if partition not in self._paths:
            path = self._folder / f"{len(self._paths)}.npy"
            queries_FK = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=asked.keys_FK.shape)
            texts = asked.files.read(asked.rows, ("prompt", "statement"))
            for start in range(0, len(texts), _QUERIES):
                rows = texts.slice(start, _QUERIES).to_pylist()
                queries_FK[start : start + len(rows)] = self._encode(
                    [row["prompt"] or row["statement"] for row in rows]
                )
            queries_FK.flush()
            self._paths[partition] = path
        return np.load(self._paths[partition], mmap_mode="r")


def _index(keys_FK: Keys, sentinel_K: npt.NDArray[np.float32]) -> PartIndex:
    kind: Kind = "exact" if len(keys_FK) < DEFAULT_EXACT_BELOW else "ivf"  # a graph takes longer to build than it saves
    settings = IndexSettings(kind=kind)
    rows = sample_rows(len(keys_FK), settings.num_queries)
    sample = Sample(queries_QK=keys_FK[rows].astype(np.float32), left_out_Q=rows)
    return build_tuned(keys_FK, settings, sentinel_K, sample).part


def _candidates(index: PartIndex, queries_BK: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    spec = index.spec
    params = load_faiss().SearchParametersIVF(nprobe=spec.num_probes) if spec.num_lists else None
    num_candidates = min(_CANDIDATES, len(index.keys_FK))
    candidates_BC: npt.NDArray[np.int64]
    _, candidates_BC = index.index.search(space_queries(queries_BK, spec), num_candidates, params=params)
    return candidates_BC


def _read_keys(table: FactTable, partition: Partition, at_us: int) -> _Keys:
    ids = read_ids(table, partition)
    rows = ids.live(at_us)
    vectors = vector_rows(ids.events, rows)
    rows, vectors = rows[vectors >= 0], vectors[vectors >= 0]
    keys_FK = np.empty((len(rows), table.identity.key_width), table.dtype)
    place_N = np.full(len(ids.events), -1, np.int64)
    place_N[vectors] = np.arange(len(rows))
    for places, batch in ids.files.batches(vectors, ("key",)):
        try:
            keys_FK[place_N[places]] = cells_to_vectors(batch.column("key"), keys_FK.shape[1], table.dtype)
        except ValueError as error:
            raise TableError(
                f"{table.uri}/{ids.files.path_of(int(places[0]))}: column 'key': {error}; restore the file"
            ) from error
    target_F = np.empty(len(rows), np.int64)
    place_N[:] = -1
    place_N[rows] = np.arange(len(rows))
    for places, batch in ids.files.batches(rows, ("target", "statement")):
        target_F[place_N[places]] = target_hashes(batch)
    return _Keys(files=ids.files, rows=rows, keys_FK=keys_FK, target_F=target_F)
