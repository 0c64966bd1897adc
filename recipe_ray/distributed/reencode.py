"""A table encoded anew by another editor, beside the old one, which readers leave when the new one is complete.

The events that stand are exported as a dump and go through the ordinary ingest; then what the old table got meanwhile,
until there is nothing more. Broken off, the same call goes on. What is known of the progress lies in
`NEW/_reencode/state.json`.
"""

import json
import time
from dataclasses import asdict, dataclass
from typing import Any, Literal, cast

import pyarrow as pa
import pyarrow.parquet as pq

from recipe_ray.config import EditorIdentity
from recipe_ray.distributed.ingest import ingest
from recipe_ray.distributed.ingest_args import IngestConfig
from recipe_ray.errors import ConfigError, OutputError, TableError
from recipe_ray.model.editor import read_identity
from recipe_ray.store.delta import open_delta
from recipe_ray.store.files import absolute, filesystem, join, localize_editor, read_text, write_text
from recipe_ray.store.pointer import follow, move_back, read_pointer, write_pointer
from recipe_ray.store.quarantine import read_quarantine
from recipe_ray.store.reading.commits import read_commits
from recipe_ray.store.reading.export import export_facts
from recipe_ray.store.schema import VectorDtype
from recipe_ray.store.stored import missing_files, remove_files
from recipe_ray.store.table import FactTable

_FOLDER = "_reencode"
_STATE = f"{_FOLDER}/state.json"
_UNDOING = ("rollback", "erase")  # after these an event that was exported may not be so any more
_TOMBSTONES_DROPPED = "tombstones_dropped"  # counted by a compaction: deletes that no later export tells of


@dataclass(frozen=True, slots=True, kw_only=True)
class ReencodeConfig:
    """What to encode anew, with what, and with which resources.

    Attributes:
        table: the table of facts, local or s3://.
        editor: the new editor: its directory, local (on every node) or s3://, or the name of a published one.
        output: where the new table comes to lie; None puts it beside the old one, named after the editor.
        device, num_encoders, cpus_per_encoder, gpus_per_encoder: as for an ingest.
    """

    table: str
    editor: str
    output: str | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    num_encoders: int | None = None
    cpus_per_encoder: float | None = None
    gpus_per_encoder: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReencodeReport:
    """What a re-encoding did.

    Attributes:
        table: as it was configured, absolute.
        source: URI of the table that was read.
        source_version: up to which the new table tells the same.
        output: URI of the new table, which whoever opens `table` gets now.
        version: of it.
        num_rounds: dumps that went over in this call; 0 where there was nothing left to do.
        num_encoded: facts encoded in this call.
        seconds: wall time.
    """

    table: str
    source: str
    source_version: int
    output: str
    version: int
    num_rounds: int
    num_encoded: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _State:
    """How far a re-encoding is.

    Attributes:
        source: URI of the table that is read.
        fingerprint: of the new editor.
        done: version whose events are all in the new table; None before the first is.
        under_way: version that is going over; None between two.
    """

    source: str
    fingerprint: str
    done: int | None
    under_way: int | None


def reencode(config: ReencodeConfig) -> ReencodeReport:
    """Encode a table anew and let its readers have the new one, on the connected Ray cluster.

    Writers of the old table may go on until the pointer is written; from then on they find the new table, which refuses
    the old editor. What one of them still commits to the old table goes over when this is called again.

    Raises:
        ConfigError: the output is the table itself.
        EditorError: the editor cannot be read.
        TableError: the table was encoded by this editor, was rolled back or erased from meanwhile, or holds what ingest
            refuses; the output is another table.
        OutputError: a place cannot be read or written.
    """
    started = time.monotonic()
    identity = read_identity(localize_editor(config.editor))
    place, source_uri, output = _places(config, identity)
    state = _begin(source_uri, output, identity)
    num_rounds = num_encoded = 0
    while True:
        source = FactTable.open(source_uri, moved=False)
        version = source.version if state.under_way is None else state.under_way
        if state.done == version:
            if _is_pointed_to(place, output):
                break
            _point(place, source_uri, output, version)
            continue  # a commit may have come before readers and writers were led away
        if state.done is not None:
            _check_not_undone(source, output, since=state.done)
        state = _save(output, _State(**{**asdict(state), "under_way": version}))
        num_encoded += _carry_over(config, source_uri, version, output, identity)
        state = _save(output, _State(**{**asdict(state), "done": version, "under_way": None}))
        num_rounds += 1
    return ReencodeReport(
        table=place,
        source=source_uri,
        source_version=version,
        output=output,
        version=FactTable.open(output, moved=False).version,
        num_rounds=num_rounds,
        num_encoded=num_encoded,
        seconds=time.monotonic() - started,
    )


def go_back(table: str) -> str:
    """Let readers of a table have it as it was before the last re-encoding; the URI of the table that they leave.

    Raises:
        TableError: it was not re-encoded.
        OutputError: the pointer cannot be changed.
    """
    moved = move_back(table)
    if moved is None:
        raise TableError(f"{table}: lies where it always did; there is nothing to go back to")
    return moved.to


def _places(config: ReencodeConfig, identity: EditorIdentity) -> tuple[str, str, str]:
    """The configured place, the table to read, and the new one."""
    place = absolute(config.table)
    moved = read_pointer(place)
    if moved is not None and FactTable.open(moved.to, moved=False).identity.fingerprint == identity.fingerprint:
        # This editor's table is there already; the one before may have got something since.
        if config.output is not None and absolute(config.output) != moved.to:
            raise ConfigError(f"output is {config.output}, but {place} moved to {moved.to} with this editor already")
        return place, moved.previous[-1] if moved.previous else place, moved.to
    source_uri = follow(place)
    source = FactTable.open(source_uri, moved=False)
    if source.identity.fingerprint == identity.fingerprint:
        raise TableError(f"{source_uri}: was encoded by this editor ({identity.fingerprint}); give another")
    output = absolute(config.output or f"{place}-{identity.fingerprint[:8]}")
    if output in (place, source_uri):
        raise ConfigError(f"output is {output}, the table itself; give another place")
    return place, source_uri, output


def _begin(source_uri: str, output: str, identity: EditorIdentity) -> _State:
    """Find how far an earlier call came."""
    text = read_text(join(output, _STATE))
    if text is not None:
        state = _State(**json.loads(text))
        if (state.source, state.fingerprint) != (source_uri, identity.fingerprint):
            raise TableError(
                f"{output}: is where {state.source} is encoded by the editor with fingerprint {state.fingerprint}; "
                "give another output, or remove it"
            )
        return state
    if open_delta(output) is not None:
        raise TableError(f"{output}: is a table already, and not a re-encoding that broke off; give another output")
    return _save(output, _State(source=source_uri, fingerprint=identity.fingerprint, done=None, under_way=None))


def _save(output: str, state: _State) -> _State:
    write_text(join(output, _STATE), json.dumps(asdict(state)) + "\n")
    return state


def _check_not_undone(source: FactTable, output: str, *, since: int) -> None:
    for commit in read_commits(source.uri, until=source.version):
        loses_deletes = commit.counts.get(_TOMBSTONES_DROPPED, 0) > 0
        if commit.version > since and (commit.operation in _UNDOING or loses_deletes):
            raise TableError(
                f"{source.uri}: version {commit.version} is the work of {commit.operation}, so {output} holds what is "
                "not so any more; remove it, then run reencode again"
            )


def _carry_over(config: ReencodeConfig, source_uri: str, version: int, output: str, identity: EditorIdentity) -> int:
    """Bring the new table to a version of the old one; the number of facts encoded."""
    path = f"{_FOLDER}/{version}.parquet"
    source = FactTable.open(source_uri, version)
    if missing_files(output, [path]):
        export_facts(source, join(output, path), events=True)
    num_encoded = 0
    dtype = cast(VectorDtype, source.dtype.name)
    FactTable.create_or_open(
        output, identity, num_shards=source.num_shards, dtype=dtype, is_canonical=source.is_canonical
    )
    if _num_rows(join(output, path)):
        report = ingest(
            IngestConfig(
                source=join(output, path),
                table=output,
                editor=config.editor,
                form="parquet",
                device=config.device,
                num_encoders=config.num_encoders,
                cpus_per_encoder=config.cpus_per_encoder,
                gpus_per_encoder=config.gpus_per_encoder,
                num_shards=source.num_shards,
                dtype=dtype,
            )
        )
        num_encoded = report.num_encoded
        # Also of an ingest that had ended before the last call broke off.
        if num_bad := len(read_quarantine(output)):
            raise TableError(
                f"{output}: ingest refused {num_bad} events of {source_uri}, see its quarantine; correct or delete "
                f"them in the old table, remove {output}, then run reencode again"
            )
    remove_files(output, [path])
    return num_encoded


def _num_rows(uri: str) -> int:
    filesystem_, path = filesystem(uri)
    try:
        metadata: Any = pq.read_metadata(path, filesystem=filesystem_)
    except (OSError, pa.ArrowException) as error:
        raise OutputError(f"{uri}: cannot be read ({error}); remove it, then run reencode again") from error
    return int(metadata.num_rows)


def _is_pointed_to(place: str, output: str) -> bool:
    moved = read_pointer(place)
    return moved is not None and moved.to == output


def _point(place: str, source_uri: str, output: str, version: int) -> None:
    """Lead readers to the new table: those of the configured place first, then those of where it had moved to."""
    moved = read_pointer(place)
    previous = () if moved is None else (*moved.previous, moved.to)
    write_pointer(place, output, from_version=version, previous=previous)
    if source_uri != place:
        write_pointer(source_uri, output, from_version=version)
