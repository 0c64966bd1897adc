"""The Delta log, as the tables here use it: opened or not there, created once, changed only from a known version."""

import json
import re
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar
from urllib.parse import unquote

import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, Transaction
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError
from deltalake.transaction import AddAction, RemoveAction
from tenacity import Retrying, retry_if_exception, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from recipe_ray.errors import ConfigError, OutputError, TableError
from recipe_ray.store.files import absolute, delta_options, is_s3, join, list_below, read_text
from recipe_ray.store.parquet import DataFile
from recipe_ray.store.stored import list_stored, missing_files, relative, remove_files

MAX_COMMIT_ATTEMPTS = 20
_MARK = "recipe_commit"
_READ_OTHERWISE = re.compile(r"%[0-9A-Fa-f]{2}|[\x00-\x1f\x7f]")
_MORE_READ_OTHERWISE = {True: re.compile(r"[#?]"), False: re.compile(r"\\")}  # on S3, on this machine
Result = TypeVar("Result")


class CommitConflictError(TableError):
    """Another writer committed first; read the table again and decide again."""


def open_delta(uri: str, version: int | None = None) -> DeltaTable | None:
    """Open a Delta table; None where there is none.

    Raises:
        TableError: it cannot be read, or has no such version.
        ConfigError: no table can lie there.
    """
    place = _place(uri)
    if version is not None and version < 0:
        raise TableError(f"{uri}: version {version} cannot be; versions count from 0")
    try:
        return _patiently(lambda: DeltaTable(place, version=version, storage_options=delta_options(place)))
    except TableNotFoundError:
        if version is not None and open_delta(uri) is not None:
            raise TableError(
                f"{uri}: the log does not reach back to version {version} any more; give a later version"
            ) from None
        return None
    except (DeltaError, OSError, ValueError) as error:
        at = "" if version is None else f" at version {version}"
        raise TableError(
            f"{uri}: cannot be read{at} ({_first_line(error)}); check the path, the version and the credentials"
        ) from error


def _place(uri: str) -> str:
    """Where a table lies, as `deltalake` and we alike read it.

    It takes a place for a URL: a log would be kept in `a b` for `a%20b`, or in `q` for `q?x` and `q?y` alike.

    Raises:
        ConfigError: it would read another place.
    """
    place = absolute(uri)
    if odd := _READ_OTHERWISE.search(place) or _MORE_READ_OTHERWISE[is_s3(place)].search(place):
        raise ConfigError(
            f"{uri}: no table can lie there: {odd.group()!r} in its name means something else to the Delta log; "
            "give a place without it"
        )
    return place


def create_delta(uri: str, schema: pa.Schema, partition_by: list[str], configuration: Mapping[str, str]) -> None:
    """Create an empty Delta table, unless another writer is creating it in the same moment.

    Raises:
        OutputError: the place cannot be written.
    """
    place = _place(uri)
    try:
        _patiently(
            lambda: DeltaTable.create(
                place,
                schema,
                mode="ignore",
                partition_by=partition_by,
                configuration=dict(configuration),
                storage_options=delta_options(place),
                raise_if_key_not_exists=False,
            )
        )
    except (DeltaError, OSError, ValueError) as error:
        raise OutputError(
            f"{uri}: no table can be made there ({_first_line(error)}); give a place you may write to"
        ) from error


def append_files(
    delta: DeltaTable,
    files: Sequence[DataFile],
    schema: pa.Schema,
    partition_by: list[str],
    *,
    dump_hash: str,
    metadata: Mapping[str, Any],
    dump_version: int = 1,
) -> None:
    """Commit written files as the version after the one that `delta` is at, known as coming from a version of a dump.

    Groups of a writer are known likewise: it stands for the dump, the group's number for the version.

    Raises:
        CommitConflictError: that version exists already.
        TableError: the log cannot be written.
    """
    actions = [_add_action(file) for file in files]
    transaction = Transaction(dump_hash, dump_version)
    _commit(delta, actions, "append", schema, partition_by, metadata, transactions=[transaction])


def replace_files(
    delta: DeltaTable,
    remove: Sequence[DataFile],
    add: Sequence[DataFile],
    schema: pa.Schema,
    partition_by: list[str],
    *,
    data_change: bool,
    metadata: Mapping[str, Any],
) -> None:
    """Commit the version after the one that `delta` is at, with some of its files gone and others there.

    Args:
        delta: at the version that was looked at.
        remove, add: files of that version, and files that it lacks.
        schema, partition_by: of the table.
        data_change: whether the table tells something else now.
        metadata: for the log.

    Raises:
        CommitConflictError: that version exists already.
        TableError: the log cannot be written.
    """
    now_ms = int(time.time() * 1000)
    actions = [
        RemoveAction(
            path=file.path,
            data_change=data_change,
            deletion_timestamp=now_ms,
            size=file.size_bytes,
            partition_values=dict(file.partition),
        )
        for file in remove
    ]
    _commit(
        delta,
        [*actions, *(_add_action(file, data_change=data_change) for file in add)],
        "append",
        schema,
        partition_by,
        metadata,
    )


def replace_all(
    delta: DeltaTable,
    files: Sequence[DataFile],
    schema: pa.Schema,
    partition_by: list[str],
    *,
    metadata: Mapping[str, Any],
) -> None:
    """Commit a version that consists of these files alone, with another schema where it is another.

    Raises:
        CommitConflictError: that version exists already.
        TableError: the log cannot be written.
    """
    # Only an overwrite brings a schema along.
    _commit(delta, [_add_action(file) for file in files], "overwrite", schema, partition_by, metadata)


def set_properties(delta: DeltaTable, properties: Mapping[str, str], *, metadata: Mapping[str, Any]) -> None:
    """Commit other table properties as the version after the one that `delta` is at.

    Raises:
        CommitConflictError: that version exists already.
        TableError: the log cannot be written.
    """

    def commit(commit_properties: CommitProperties) -> None:
        delta.alter.set_table_properties(
            dict(properties), raise_if_not_exists=False, commit_properties=commit_properties
        )

    _commit_once(delta, commit, metadata)


def files_of(delta: DeltaTable) -> list[DataFile]:
    """The data files of a version as its log tells them, sorted by path."""
    files = [
        DataFile(
            path=unquote(row["path"]),
            size_bytes=row["size_bytes"],
            num_rows=row["num_records"] or 0,
            partition={name: str(value) for name, value in (row.get("partition") or {}).items()},
        )
        for row in pa.table(delta.get_add_actions()).to_pylist()
    ]
    return sorted(files, key=lambda file: file.path)


def retrying(attempt: Callable[[], Result]) -> Result:
    """Do what opens a table, decides and commits, again and again until no other writer came between.

    Raises:
        CommitConflictError: other writers never pause.
    """
    retries = Retrying(
        retry=retry_if_exception_type(CommitConflictError),
        stop=stop_after_attempt(MAX_COMMIT_ATTEMPTS),
        wait=wait_random_exponential(multiplier=0.1, max=5),  # so that two writers do not keep step
        reraise=True,
    )
    return retries(attempt)


def log_versions(uri: str) -> list[int]:
    """Versions whose commits are in a table's log, ascending; the rest were folded into a checkpoint.

    Raises:
        OutputError: the log cannot be read.
    """
    names = [found.rpartition("/")[2] for found in list_below(join(absolute(uri), "_delta_log"))]
    return sorted(int(name[:20]) for name in names if name[20:] == ".json" and name[:20].isdigit())


def newest_version(uri: str, known: int) -> int:
    """The last version of a table, looked for behind one that is known: a question of the store for each new one.

    Where a part of the log was cut off in between, it is the known one: `open_delta` tells then.

    Raises:
        OutputError: the log cannot be read.
    """
    version = known
    while not missing_files(absolute(uri), [f"_delta_log/{version + 1:020}.json"]):
        version += 1
    return version


def read_commit(uri: str, version: int) -> Iterator[dict[str, Any]]:
    """Actions of one commit as the log tells them, each under its name: `add`, `remove`, `txn`, `commitInfo`.

    Raises:
        TableError: it is not in the log, or damaged.
    """
    place = join(absolute(uri), "_delta_log", f"{version:020}.json")
    text = read_text(place)
    if text is None:
        raise TableError(f"{place}: is not there; the log was cut off after that version")
    try:
        yield from (json.loads(line) for line in text.split("\n") if line.strip())
    except ValueError as error:
        raise TableError(f"{place}: is no commit ({error}); restore it") from error


def log_before(uri: str, version: int) -> list[str]:
    """Paths below a table of the log's files that only tell of versions before this one.

    Raises:
        OutputError: the log cannot be read.
    """
    paths = [relative(found.uri, uri) for found in list_stored(join(absolute(uri), "_delta_log"))]
    return [path for path in paths if (name := path.rpartition("/")[2])[:20].isdigit() and int(name[:20]) < version]


def trim_log(uri: str, version: int) -> None:
    """Make the log begin with a version: those before it cannot be opened any more.

    Raises:
        TableError: there is no such version, or no checkpoint can be written.
        OutputError: the log cannot be read, or a file of it not be removed.
    """
    for checkpointed in (version, None):  # the last one in the end: it is where readers begin
        delta = open_delta(uri, checkpointed)
        if delta is None:
            raise TableError(f"{uri}: there is no table; check the path")
        try:
            delta.create_checkpoint()
        except (DeltaError, OSError) as error:
            raise TableError(f"{uri}: no checkpoint can be written ({_first_line(error)}); run it again") from error
    remove_files(uri, log_before(uri, version))


def _commit(
    delta: DeltaTable,
    actions: list[Any],
    mode: str,
    schema: pa.Schema,
    partition_by: list[str],
    metadata: Mapping[str, Any],
    *,
    transactions: Sequence[Transaction] = (),
) -> None:
    def commit(properties: CommitProperties) -> None:
        delta.create_write_transaction(actions, mode, schema, partition_by=partition_by, commit_properties=properties)

    _commit_once(delta, commit, metadata, transactions=transactions)


def _commit_once(
    delta: DeltaTable,
    commit: Callable[[CommitProperties], None],
    metadata: Mapping[str, Any],
    *,
    transactions: Sequence[Transaction] = (),
) -> None:
    """Commit the version after the one that `delta` is at, or find out that nobody did.

    Storage may fail behind a commit that it took, or answer a request that it got twice with a refusal; so each commit
    carries a mark of its own, by which it is known again.
    """
    mark = uuid.uuid4().hex
    properties = CommitProperties(
        custom_metadata={**metadata, _MARK: mark},
        max_commit_retries=0,  # a retry would append to a version that nobody has looked at
        app_transactions=list(transactions),
    )
    next_version = delta.version() + 1
    try:
        commit(properties)
    except (DeltaError, OSError) as error:
        if _has_mark(unquote(delta.table_uri), next_version, mark):
            return
        if isinstance(error, CommitFailedError):
            raise _conflict(delta) from error
        raise TableError(f"{delta.table_uri}: the commit failed ({_first_line(error)}); run it again") from error


def _has_mark(uri: str, version: int, mark: str) -> bool:
    if version not in log_versions(uri):
        return False
    return any(action.get("commitInfo", {}).get(_MARK) == mark for action in read_commit(uri, version))


def _patiently(action: Callable[[], Result]) -> Result:
    """Do what reads the log, or writes what may be written twice; again where an answer was cut short or never came.

    After every other failure of storage delta-rs tries a request again itself.
    """
    retries = Retrying(
        retry=retry_if_exception(lambda error: isinstance(error, (DeltaError, OSError)) and _passes(error)),
        stop=stop_after_attempt(12),  # a table is opened by several requests, each of which may fail
        wait=wait_random_exponential(multiplier=0.1, max=2),
        reraise=True,
    )
    return retries(action)


def _passes(error: BaseException) -> bool:
    return bool(re.search(r"response body|reading a body|end of file before|timed out", str(error), re.IGNORECASE))


def _conflict(delta: DeltaTable) -> CommitConflictError:
    return CommitConflictError(f"{delta.table_uri}: another writer committed first; run it again")


def _add_action(file: DataFile, *, data_change: bool = True) -> AddAction:
    """Describe a file to the log. Its only statistic is the number of rows: min and max would be texts of facts."""
    return AddAction(
        path=file.path,
        size=file.size_bytes,
        partition_values=dict(file.partition),
        modification_time=int(time.time() * 1000),
        data_change=data_change,
        stats=json.dumps({"numRecords": file.num_rows}),
    )


def _first_line(error: Exception) -> str:
    """Shorten what a library's error says to one line."""
    return str(error).splitlines()[0][:300] if str(error) else type(error).__name__
