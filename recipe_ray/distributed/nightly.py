"""The nightly run: a day's dump, staged and encoded, checked before its commit, published by it, and indexed.

Servers follow the newest version of a table, and online puts are versions too. A version is therefore never committed
that has not been checked: the canary is asked of the table and the written files, and the one commit that names them
publishes them. There is no second pointer that could say something else than the log, and a put that comes meanwhile
is served at once and brings nothing along that is unchecked.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from recipe_ray.distributed import workers
from recipe_ray.distributed.canary import ask_canary
from recipe_ray.distributed.ingest import IngestReport, ingest
from recipe_ray.distributed.nightly_args import NightlyConfig
from recipe_ray.distributed.servers import await_version
from recipe_ray.errors import RecipeError
from recipe_ray.eval.canary import CanaryReport, read_canary
from recipe_ray.store.delta import log_versions
from recipe_ray.store.files import localize_editor
from recipe_ray.store.indexes.artefacts import build_index, latest_index
from recipe_ray.store.indexes.manifest import IndexManifest, read_manifest
from recipe_ray.store.parquet import DataFile
from recipe_ray.store.pointer import follow
from recipe_ray.store.reading.commits import commit_of
from recipe_ray.store.table import FactTable

MAX_INDEX_CPUS = 8
Status = Literal["published", "repeated", "refused"]
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexSummary:
    """The index that servers map from now on.

    Attributes:
        uri: where it lies.
        version: of the table, when it was built.
        repeated: it had been built before.
        num_facts, recall, seconds, size_bytes: see `IndexManifest`.
    """

    uri: str
    version: int
    repeated: bool
    num_facts: int
    recall: float
    seconds: float
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NightlyReport:
    """What a nightly run did.

    Attributes:
        status: published; repeated where it had been before; refused where the canary died of it.
        date, source: of the dump.
        table: absolute URI.
        version: that the dump was published with; of a refused one the version that is served on.
        ingest: None where it was refused.
        canary: None where the dump had been published before, and nothing was asked.
        index: None where it was refused.
        servers: what each server told that it serves.
        seconds: wall time, without the start of the cluster.
        facts_per_s: rows read a second of that time.
    """

    status: Status
    date: str
    source: str
    table: str
    version: int
    ingest: IngestReport | None
    canary: CanaryReport | None
    index: IndexSummary | None
    servers: dict[str, int]
    seconds: float
    facts_per_s: float


class CanaryDiedError(RecipeError):
    """The canary's limits are not kept; holds its report, and the version that was to be grown."""

    def __init__(self, report: CanaryReport, version: int) -> None:
        super().__init__("; ".join(report.complaints))
        self.report = report
        self.version = version


class Gate:
    """Lets files into a table once the canary has lived with them; see `BeforeCommit`.

    Where another writer commits between question and commit, the ingest comes again. The canary is then asked again
    only if the files are others: what others put online is theirs to answer for, and must not hold up the night.

    Args:
        ask: the canary of a table and files.
        say: told how it did.

    Attributes:
        report: of the last question; None before the first.
    """

    def __init__(self, ask: Callable[[FactTable, Sequence[DataFile]], CanaryReport], say: Say) -> None:
        self._ask, self._say = ask, say
        self._passed: frozenset[str] | None = None
        self.report: CanaryReport | None = None

    def __call__(self, table: FactTable, files: Sequence[DataFile]) -> None:
        """Ask.

        Raises:
            CanaryDiedError: a limit is not kept.
        """
        paths = frozenset(file.path for file in files)
        if paths == self._passed:
            return
        self._say(f"canary: asking version {table.version} with {sum(file.num_rows for file in files)} more events")
        self.report = self._ask(table, files)
        if not self.report.passed:
            raise CanaryDiedError(self.report, table.version)
        self._passed = paths
        told = ", ".join(f"{self.report.right[sort]} of {num} {sort}" for sort, num in self.report.asked.items())
        self._say(f"canary: right on {told}")


def nightly(config: NightlyConfig, *, say: Say) -> NightlyReport:
    """Publish a day's dump, unless the canary dies of it, on the connected Ray cluster.

    Started again, it does what is missing: a dump that is in the table's log is not taken in, an index of that version
    or a later one is not built, servers are asked again.

    Raises:
        RecipeError: as of `ingest`, `build_index` and `await_version`; where it comes before the commit, the table is
            as it was.
    """
    started = time.monotonic()
    day = config.day()
    questions = read_canary(config.canary, namespace=config.namespace)
    ingesting = config.ingest_config(day)
    gate = Gate(lambda table, files: ask_canary(table, files, questions, config), say)
    say(f"ingest: {ingesting.source}")

    def report(
        status: Status,
        version: int,
        done: IngestReport | None = None,
        index: IndexSummary | None = None,
        servers: dict[str, int] | None = None,
    ) -> NightlyReport:
        seconds = time.monotonic() - started
        return NightlyReport(
            status=status,
            date=day,
            source=ingesting.source,
            table=follow(config.table),
            version=version,
            ingest=done,
            canary=gate.report,
            index=index,
            servers=servers or {},
            seconds=seconds,
            facts_per_s=done.counts.read / seconds if done is not None else 0.0,
        )

    try:
        done = ingest(ingesting, before_commit=gate)
    except CanaryDiedError as died:
        return report("refused", died.version)
    version = _published_with(done)
    say(f"published: version {version}" + (", by an earlier run" if done.repeated else ""))
    index = _index(done, version, config, say)
    served = await_version(config.servers, version) if config.servers else {}
    return report("repeated" if done.repeated else "published", version, done, index, served)


def _published_with(done: IngestReport) -> int:
    """The version that the dump was committed as; where the log does not reach back to it, the table's."""
    if not done.repeated:
        return done.version
    newest_first = reversed(log_versions(done.table))
    told = (version for version in newest_first if commit_of(done.table, version).dump_hash == done.dump_hash)
    return next(told, done.version)


def _index(done: IngestReport, version: int, config: NightlyConfig, say: Say) -> IndexSummary:
    """Index the table, unless an index of the version or a later one is there already."""
    if done.repeated and (uri := latest_index(done.table)) is not None:
        manifest = read_manifest(uri)
        if manifest is not None and manifest.version >= version:
            return _summary(manifest, repeated=True)
    say(f"index: building that of version {done.version}")
    cpus = workers.cpus_of_largest_node(at_most=MAX_INDEX_CPUS)
    manifest = workers.on_worker(
        index_table, num_cpus=cpus, table=done.table, version=done.version, editor=config.editor
    )
    return _summary(manifest, repeated=manifest.repeated)


def index_table(*, table: str, version: int, editor: str) -> IndexManifest:
    """Index a version, its recall measured on the prompts of facts."""
    from recipe_ray.model.editor import load_editor  # seconds, which the driver does not spend

    return build_index(table, version, encode_queries=load_editor(localize_editor(editor), "cpu").encode_queries)


def _summary(manifest: IndexManifest, *, repeated: bool) -> IndexSummary:
    return IndexSummary(
        uri=manifest.uri,
        version=manifest.version,
        repeated=repeated,
        num_facts=manifest.num_facts,
        recall=manifest.recall,
        seconds=manifest.seconds,
        size_bytes=manifest.size_bytes,
    )
