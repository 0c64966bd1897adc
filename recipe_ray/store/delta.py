"""The Delta log, as the tables here use it: opened or not there, created once, grown only from a known version."""

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, Transaction
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError
from deltalake.transaction import AddAction

from recipe_ray.errors import OutputError, TableError
from recipe_ray.store.files import absolute, delta_options
from recipe_ray.store.parquet import DataFile


class CommitConflictError(TableError):
    """Another writer committed first; read the table again and decide again."""


def open_delta(uri: str, version: int | None = None) -> DeltaTable | None:
    """Open a Delta table; None where there is none.

    Raises:
        TableError: it cannot be read, or has no such version.
    """
    place = absolute(uri)
    try:
        return DeltaTable(place, version=version, storage_options=delta_options(place))
    except TableNotFoundError:
        return None
    except (DeltaError, OSError, ValueError) as error:
        at = "" if version is None else f" at version {version}"
        raise TableError(
            f"{uri}: cannot be read{at} ({_first_line(error)}); check the path, the version and the credentials"
        ) from error


def create_delta(uri: str, schema: pa.Schema, partition_by: list[str], configuration: Mapping[str, str]) -> None:
    """Create an empty Delta table, unless another writer is creating it in the same moment.

    Raises:
        OutputError: the place cannot be written.
    """
    place = absolute(uri)
    try:
        DeltaTable.create(
            place,
            schema,
            mode="ignore",
            partition_by=partition_by,
            configuration=dict(configuration),
            storage_options=delta_options(place),
            raise_if_key_not_exists=False,
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
) -> None:
    """Commit written files as the version after the one that `delta` is at, known as coming from a dump.

    Raises:
        CommitConflictError: that version exists already.
        TableError: the log cannot be written.
    """
    commit_properties = CommitProperties(
        custom_metadata=dict(metadata),
        max_commit_retries=0,  # a retry would append to a version that nobody has looked at
        app_transactions=[Transaction(dump_hash, 1)],
    )
    try:
        delta.create_write_transaction(
            [_add_action(file) for file in files],
            "append",
            schema,
            partition_by=partition_by,
            commit_properties=commit_properties,
        )
    except CommitFailedError as error:
        raise CommitConflictError(f"{delta.table_uri}: another writer committed first; run it again") from error
    except (DeltaError, OSError) as error:
        raise TableError(f"{delta.table_uri}: the commit failed ({_first_line(error)}); run it again") from error


def _add_action(file: DataFile) -> AddAction:
    """Describe a file to the log. Its only statistic is the number of rows: min and max would be texts of facts."""
    return AddAction(
        path=file.path,
        size=file.size_bytes,
        partition_values=dict(file.partition),
        modification_time=int(time.time() * 1000),
        data_change=True,
        stats=json.dumps({"numRecords": file.num_rows}),
    )


def _first_line(error: Exception) -> str:
    """Shorten what a library's error says to one line."""
    return str(error).splitlines()[0][:300] if str(error) else type(error).__name__
