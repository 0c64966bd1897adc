"""Indexes beside a table: built once for a version, opened by mapping files into memory.

Below `TABLE/_index/<version>-<hash of the settings>/` lie three files a part (the facts of one namespace and shard):
the FAISS index (`.faiss`), the keys as stored (`.npy`), and the facts with their continuous prompts (`.arrow`, Arrow
IPC). Their names end in the checksum of their bytes, so two builds in one place cannot mix. `manifest.json` is written
last: where it lies, all is complete.

Shapes: B queries, F facts, K key width, P virtual tokens, D LLM width.
"""

import contextlib
import ctypes
import dataclasses
import hashlib
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Literal, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from recipe_ray.errors import EditorError, OutputError, TableError
from recipe_ray.retrieval import NO_FACT, Retrieval, decide
from recipe_ray.store.files import filesystem, is_s3, join, list_below, localize, write_text
from recipe_ray.store.indexes.ann import PartIndex, visible_rows
from recipe_ray.store.indexes.exact import inner_products, load_faiss
from recipe_ray.store.indexes.manifest import (
    INDEX_FOLDER,
    MANIFEST_FILE,
    FileEntry,
    IndexManifest,
    PartEntry,
    checksum,
    read_manifest,
)
from recipe_ray.store.indexes.tuning import IndexSettings, Sample, Tuned, build_tuned, sample_rows
from recipe_ray.store.pointer import follow
from recipe_ray.store.schema import FACT_COLUMNS, microseconds
from recipe_ray.store.snapshot import Snapshot, read_partition
from recipe_ray.store.table import FactTable

ROWS_PER_BATCH = 8192  # of the Arrow file
_SUFFIXES = ("faiss", "npy", "arrow")
_MADV_POPULATE_READ = 22  # of Linux; Python names it only from 3.13 on
_COPY_BYTES = 8 * 1024 * 1024

EncodeQueries = Callable[[Sequence[str]], npt.NDArray[np.float32]]
OnPart = Callable[[int, int, PartEntry | None], None]
"""Told, after each partition, how many are done, of how many, and what became of it (None for one without facts)."""


def build_index(
    table_uri: str,
    version: int | None = None,
    settings: IndexSettings | None = None,
    *,
    encode_queries: EncodeQueries | None = None,
    on_part: OnPart | None = None,
) -> IndexManifest:
    """Index the live facts of a version; nothing is done where that has been done before (`repeated`).

    Memory holds one partition at a time.

    Args:
        table_uri: local or s3://.
        version: of the table; None for the last.
        settings: kinds and probes; None for the defaults.
        encode_queries: of the table's editor: recall is then measured on the prompts of a sample of facts, of every
            other one with the fact itself left out. Without it, on keys of facts that are left out: these lie nearer to
            other keys than a question does.
        on_part: see `OnPart`.

    Raises:
        TableError: there is no such table or version, or it is damaged.
        OutputError: the place cannot be written.
        ServiceError: FAISS is not installed.
    """
    started = time.monotonic()
    load_faiss()  # before the reading
    settings = settings or IndexSettings()
    table = FactTable.open(table_uri, version)
    measured_on: Literal["prompts", "keys"] = "keys" if encode_queries is None else "prompts"
    uri = index_uri(table, settings, measured_on)
    if (there := read_manifest(uri)) is not None:
        return dataclasses.replace(there, repeated=True)
    at = datetime.now(UTC)
    partitions = table.partitions()
    entries: list[PartEntry] = []
    for done, partition in enumerate(partitions, start=1):
        snapshot = read_partition(table, partition, at=at)
        entry = None
        if len(snapshot.facts):
            sample = _sample(snapshot, settings, encode_queries)
            tuned = build_tuned(snapshot.keys_FK, settings, table.identity.sentinel_K, sample)
            stem = f"part-{len(entries):05d}"
            files = {name: _write(uri, stem, name, snapshot, tuned) for name in _SUFFIXES}
            entry = _entry(partition.namespace, partition.shard, snapshot, tuned, files)
            entries.append(entry)
        if on_part is not None:
            on_part(done, len(partitions), entry)
    manifest = IndexManifest(
        uri=uri,
        table=table.uri,
        version=table.version,
        identity=table.identity,
        dtype=table.dtype.name,
        settings=settings,
        measured_on=measured_on,
        read_at=at,
        seconds=time.monotonic() - started,
        parts=tuple(entries),
    )
    write_text(join(uri, MANIFEST_FILE), manifest.to_json())
    return manifest


def index_uri(table: FactTable, settings: IndexSettings, measured_on: Literal["prompts", "keys"]) -> str:
    """Where the index of a version with these settings lies, or would lie."""
    said = json.dumps([table.identity.fingerprint, measured_on, dataclasses.asdict(settings)], sort_keys=True)
    digest = hashlib.blake2b(said.encode(), digest_size=8).hexdigest()
    return join(table.uri, INDEX_FOLDER, f"{table.version}-{digest}")


def latest_index(
    table_uri: str, version: int | None = None, *, at_most: int | None = None, fingerprint: str | None = None
) -> str | None:
    """URI of the newest complete index of a table's highest indexed version, or of this one; None where there is none.

    Args:
        table_uri: of the table.
        version: the one that is wanted.
        at_most: pass over higher versions.
        fingerprint: pass over the indexes of other editors.

    Raises:
        OutputError: the place cannot be read.
        TableError: a manifest is damaged.
    """
    folder = join(follow(table_uri), INDEX_FOLDER)
    uris = [uri.rpartition("/")[0] for uri in list_below(folder) if uri.endswith(f"/{MANIFEST_FILE}")]
    versions = {uri: int(uri.rpartition("/")[2].partition("-")[0]) for uri in uris}
    wanted = set(versions.values()) if version is None else {version}
    for indexed in sorted(wanted, reverse=True):
        if at_most is not None and indexed > at_most:
            continue
        found = [read_manifest(uri) for uri in uris if versions[uri] == indexed]
        manifests = [
            manifest
            for manifest in found
            if manifest is not None  # one may have been removed since
            and fingerprint in (None, manifest.identity.fingerprint)
        ]
        if manifests:
            return max(manifests, key=lambda manifest: manifest.read_at).uri
    return None


def open_index(
    uri: str, *, fingerprint: str | None = None, verify: bool = False, shards: Collection[int] | None = None
) -> "ShardedIndex":
    """Map an index into memory; from S3 it is fetched into the local cache first.

    Args:
        uri: what `build_index` or `latest_index` told.
        fingerprint: of the editor that will ask; None for any.
        verify: whether to read every byte and compare checksums. Sizes are always compared.
        shards: of the table, to open (and fetch) these parts alone; None for all.

    Raises:
        TableError: there is no complete index, another editor encoded it, or a file is missing or damaged.
        OutputError: the place cannot be read.
        ServiceError: FAISS is not installed.
    """
    load_faiss()
    manifest = read_manifest(uri)
    if manifest is None:
        raise TableError(f"{uri}: there is no complete index; run jobs/build_index.py, or check the path")
    if fingerprint not in (None, manifest.identity.fingerprint):
        raise TableError(
            f"{uri}: holds keys of the editor with fingerprint {manifest.identity.fingerprint}, the given one has "
            f"{fingerprint}; use the editor of the table, or index the table that this one encoded"
        )
    entries = [entry for entry in manifest.parts if shards is None or entry.shard in shards]
    if not entries:
        return ShardedIndex(manifest, [])
    try:
        names = {file.name for entry in entries for file in entry.files.values()}
        folder = localize(manifest.uri, only=names if len(entries) < len(manifest.parts) else None)
    except EditorError as error:
        raise TableError(str(error)) from error
    return ShardedIndex(manifest, [_open_part(folder, manifest, entry, verify=verify) for entry in entries])


class ShardedIndex:
    """The facts of an index, searched by inner product within a namespace, over all its shards.

    Scores are exact and the same alone and in a batch; of facts with equal scores the one in the lowest row is found. A
    fact that has expired by the time of asking is not.

    Rows are global: they count through the parts in the manifest's order.
    """

    def __init__(self, manifest: IndexManifest, parts: "Sequence[OpenPart]") -> None:
        self.manifest = manifest
        self.num_facts = sum(part.num_facts for part in parts)
        self.key_width = manifest.identity.key_width
        self.parts = tuple(parts)
        self._starts = np.cumsum([0, *(part.num_facts for part in parts)])
        self._of_namespace: dict[str, list[int]] = {}
        for number, part in enumerate(parts):
            self._of_namespace.setdefault(part.namespace, []).append(number)

    def __contains__(self, namespace: object) -> bool:
        return namespace in self._of_namespace

    def search(
        self, queries_BK: npt.NDArray[np.float32], namespaces: Sequence[str], *, at: datetime | None = None
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """Find the best fact of each query within the query's namespace.

        Args:
            queries_BK: float32.
            namespaces: of each query.
            at: the time of asking; None for now.

        Returns:
            nearest_B, int64 global rows, NO_FACT where the namespace holds no facts; score_B, float32, -inf there.
        """
        assert queries_BK.shape == (len(namespaces), self.key_width), (queries_BK.shape, len(namespaces))
        now_us = microseconds(at or datetime.now(UTC))
        nearest_B = np.full(len(namespaces), NO_FACT, dtype=np.int64)
        score_B = np.full(len(namespaces), -np.inf, dtype=np.float32)
        of_query = np.asarray(namespaces, dtype=object)
        for namespace in set(namespaces) & self._of_namespace.keys():
            among = np.flatnonzero(of_query == namespace)
            for number in self._of_namespace[namespace]:
                nearest, score = self.parts[number].search(queries_BK[among], now_us)
                better = score > score_B[among]  # not equal: parts come in the order of their rows
                nearest_B[among[better]] = nearest[better] + self._starts[number]
                score_B[among[better]] = score[better]
        return nearest_B, score_B

    def retrieve(
        self,
        queries_BK: npt.NDArray[np.float32],
        sentinel_K: npt.NDArray[np.float32],
        namespaces: Sequence[str],
        *,
        at: datetime | None = None,
    ) -> Retrieval:
        """Search and let the sentinel decide. A fact whose key equals the sentinel ties with it and is not used."""
        nearest_B, score_B = self.search(queries_BK, namespaces, at=at)
        return decide(nearest_B, score_B, inner_products(queries_BK, sentinel_K))

    def fact(self, row: int) -> dict[str, Any]:
        """The columns of a fact, by global row."""
        part, own = self._locate(row)
        fact: dict[str, Any] = part.facts.select(FACT_COLUMNS).slice(own, 1).to_pylist()[0]
        return fact

    def prompt(self, row: int) -> npt.NDArray[Any]:
        """The continuous prompt of a fact, [P, D], read-only and as stored."""
        part, own = self._locate(row)
        identity = self.manifest.identity
        cell = part.facts.column("prompt_embeddings")[own].as_buffer()
        flat = np.frombuffer(cell, np.dtype(self.manifest.dtype).newbyteorder("<"))
        return flat.reshape(identity.num_virtual_tokens, identity.llm_width)

    def _locate(self, row: int) -> "tuple[OpenPart, int]":
        assert 0 <= row < self.num_facts, row
        number = int(np.searchsorted(self._starts, row, side="right")) - 1
        return self.parts[number], row - int(self._starts[number])


class OpenPart:
    """One part, mapped or in memory: its index, and its facts in the order of its rows, which is that of their ids.

    Attributes:
        namespace, shard: of the table.
        index: over the keys.
        facts: FACT_COLUMNS and `prompt_embeddings`.
        index_bytes: of index and keys.
    """

    def __init__(self, namespace: str, shard: int, index: PartIndex, facts: pa.Table, *, index_bytes: int) -> None:
        self.namespace = namespace
        self.shard = shard
        self.index = index
        self.facts = facts
        self.num_facts = len(facts)
        self.index_bytes = index_bytes
        expires_at = pc.drop_null(facts.column("expires_at")).cast(pa.int64()).to_numpy()
        expiring = np.flatnonzero(facts.column("expires_at").is_valid().to_numpy())
        order = np.argsort(expires_at, kind="stable")
        self._expires_us, self._expiring = expires_at[order], expiring[order]
        self._visible: tuple[int, Any] = (0, None)  # how many have expired, and the selector of the others

    def expired(self, now_us: int) -> npt.NDArray[np.int64]:
        """Rows of the facts that have expired by a time (microseconds since the Unix epoch), in no order."""
        return self._expiring[: np.searchsorted(self._expires_us, now_us, side="right")]

    def search(
        self, queries_BK: npt.NDArray[np.float32], now_us: int
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """See `PartIndex.search`; `now_us` is the time of asking in microseconds since the Unix epoch."""
        expired = self.expired(now_us)
        known, visible = self._visible
        if known != len(expired):
            visible = visible_rows(self.num_facts, hidden=expired) if len(expired) else None
            self._visible = (len(expired), visible)
        return self.index.search(queries_BK, visible=visible)


def _open_part(folder: Path, manifest: IndexManifest, entry: PartEntry, *, verify: bool) -> OpenPart:
    files = {suffix: folder / entry.files[suffix].name for suffix in _SUFFIXES}
    for suffix, file in files.items():
        _check(file, entry.files[suffix], verify=verify)
    faiss = load_faiss()
    file = files["faiss"]
    try:
        index = faiss.read_index(str(file), faiss.IO_FLAG_MMAP_IFC)
        file = files["npy"]
        keys_FK = np.load(file, mmap_mode="r")
        file = files["arrow"]
        with pa.memory_map(str(file)) as source:
            facts = pa.ipc.open_file(source).read_all()
    except (OSError, ValueError, RuntimeError, pa.ArrowInvalid) as error:
        raise _damaged(file, str(error)) from error
    _populate(files["faiss"], files["npy"])
    expected = (entry.num_facts, manifest.identity.key_width)
    if keys_FK.shape != expected or keys_FK.dtype.name != manifest.dtype:
        raise _damaged(files["npy"], f"holds {keys_FK.dtype} {keys_FK.shape}, not {manifest.dtype} {expected}")
    if index.ntotal != entry.num_facts:
        raise _damaged(files["faiss"], f"holds {index.ntotal} facts, not {entry.num_facts}")
    if len(facts) != entry.num_facts:
        raise _damaged(files["arrow"], f"holds {len(facts)} facts, not {entry.num_facts}")
    index_bytes = entry.files["faiss"].size_bytes + entry.files["npy"].size_bytes
    return OpenPart(entry.namespace, entry.shard, PartIndex(index, keys_FK, entry.spec), facts, index_bytes=index_bytes)


def _populate(*files: Path) -> None:
    """Read mapped files and fill the page tables at once, where the system can.

    A graph jumps about: page by page, the first questions to a million facts took a second each. The memory is the page
    cache's still.
    """
    maps = Path("/proc/self/maps")
    if not maps.exists():
        return
    wanted = {str(file.resolve()) for file in files}
    libc = ctypes.CDLL(None, use_errno=True)
    for line in maps.read_text().splitlines():
        span, *_, path = line.split(maxsplit=5)
        if path in wanted:
            start, end = (int(address, 16) for address in span.split("-"))
            # A kernel before 5.14 refuses, and the pages come as they are asked for.
            libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _MADV_POPULATE_READ)


def _check(file: Path, entry: FileEntry, *, verify: bool) -> None:
    try:
        size_bytes = file.stat().st_size
        found = checksum(file) if verify and size_bytes == entry.size_bytes else entry.blake2b
    except FileNotFoundError as error:
        raise TableError(f"{file}: is missing; remove the index and build it anew") from error
    except OSError as error:
        raise _damaged(file, str(error)) from error
    if size_bytes != entry.size_bytes:
        raise _damaged(file, f"has {size_bytes} bytes, not {entry.size_bytes}")
    if found != entry.blake2b:
        raise _damaged(file, f"has the checksum {found}, not {entry.blake2b}")


def _damaged(file: Path, what: str) -> TableError:
    return TableError(f"{file}: is damaged ({what.splitlines()[0][:200]}); remove the index and build it anew")


def _sample(snapshot: Snapshot, settings: IndexSettings, encode_queries: EncodeQueries | None) -> Sample:
    rows = sample_rows(len(snapshot.facts), settings.num_queries)
    if encode_queries is None:
        return Sample(queries_QK=snapshot.keys_FK[rows].astype(np.float32), left_out_Q=rows)
    asked = snapshot.facts.select(["prompt", "statement"]).take(rows).to_pylist()
    queries_QK = encode_queries([fact["prompt"] or fact["statement"] for fact in asked])
    return Sample(queries_QK=queries_QK, left_out_Q=np.where(np.arange(len(rows)) % 2 == 0, rows, NO_FACT))


def _entry(namespace: str, shard: int, snapshot: Snapshot, tuned: Tuned, files: dict[str, FileEntry]) -> PartEntry:
    return PartEntry(
        namespace=namespace,
        shard=shard,
        num_facts=len(snapshot.facts),
        spec=tuned.part.spec,
        recall=tuned.recall,
        agreement=tuned.agreement,
        reason=tuned.reason,
        files=files,
    )


def _write(uri: str, stem: str, suffix: str, snapshot: Snapshot, tuned: Tuned) -> FileEntry:
    """Write one file of a part, under a name that tells its content."""
    with _scratch(uri) as folder:
        file = folder / suffix
        try:
            if suffix == "faiss":
                load_faiss().write_index(tuned.part.index, str(file))
            elif suffix == "npy":
                np.save(file.with_suffix(".npy"), snapshot.keys_FK)
                file = file.with_suffix(".npy")
            else:
                _write_facts(file, snapshot)
            found = checksum(file)
            entry = FileEntry(name=f"{stem}-{found}.{suffix}", size_bytes=file.stat().st_size, blake2b=found)
            _place(file, join(uri, entry.name))
        except (OSError, RuntimeError) as error:  # FAISS knows no other error
            reason = str(error).splitlines()[0][:200]
            raise OutputError(f"{uri}: cannot be written ({reason}); give a place you may write to") from error
        return entry


def _write_facts(file: Path, snapshot: Snapshot) -> None:
    """All columns of the snapshot's facts and `prompt_embeddings`, uncompressed: rows are read where they lie."""
    num_facts = len(snapshot.facts)
    prompt_bytes = snapshot.prompts_FPD[0].nbytes
    schema = snapshot.facts.schema.append(pa.field("prompt_embeddings", pa.binary(prompt_bytes), nullable=False))
    facts = snapshot.facts.combine_chunks()
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for start in range(0, num_facts, ROWS_PER_BATCH):
            texts = facts.slice(start, ROWS_PER_BATCH).combine_chunks().to_batches()[0]
            cells = pa.py_buffer(np.ascontiguousarray(snapshot.prompts_FPD[start : start + ROWS_PER_BATCH]).tobytes())
            prompts = pa.Array.from_buffers(pa.binary(prompt_bytes), len(texts), [None, cells])
            writer.write_batch(pa.record_batch([*texts.columns, prompts], schema=schema))


@contextlib.contextmanager
def _scratch(uri: str) -> Iterator[Path]:
    """A directory of its own for a file on its way: beside its place where that is local, so that it only moves."""
    place = None
    if not is_s3(uri):
        place = Path(uri)
        try:
            place.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"{uri}: cannot be made ({error.strerror}); give a place you may write to") from error
    with tempfile.TemporaryDirectory(dir=place, prefix=".building-") as folder:
        yield Path(folder)


def _place(file: Path, uri: str) -> None:
    if not is_s3(uri):
        file.replace(uri)
        return
    filesystem_, path = filesystem(uri)
    with file.open("rb") as source, filesystem_.open_output_stream(path) as sink:
        shutil.copyfileobj(source, cast(IO[bytes], sink), _COPY_BYTES)
