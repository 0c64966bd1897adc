"""Taking rows out of the quarantine by what they hold, for good."""

import time
from typing import Any

import numpy as np
import pyarrow as pa

from recipe_ray.store.delta import files_of, open_delta, replace_files, retrying, trim_log
from recipe_ray.store.parquet import DataFile, read_batches, write_parquet
from recipe_ray.store.quarantine import QUARANTINE_SCHEMA, quarantine_uri
from recipe_ray.store.stored import list_stored, relative, remove_files
from recipe_ray.store.upkeep.traces import Traces


def count_quarantined(place: str, traces: Traces) -> int:
    """Count the quarantined rows that hold one of the texts.

    Raises:
        TableError: the quarantine cannot be read.
    """
    uri = quarantine_uri(place)
    delta = open_delta(uri)
    files = [] if delta is None else files_of(delta)
    return sum(
        int(_holding(batch, traces).sum())
        for file in files
        for batch in read_batches(uri, file.path, QUARANTINE_SCHEMA.names)
    )


def erase_quarantined(place: str, traces: Traces) -> int:
    """Take the rows that hold one of the texts out of the quarantine, with every older version of it; their number.

    Raises:
        TableError: the quarantine cannot be read or written.
        OutputError: a file cannot be written or removed.
    """
    uri = quarantine_uri(place)

    def attempt() -> int:
        delta = open_delta(uri)
        if delta is None:
            return 0
        remove: list[DataFile] = []
        add: list[DataFile] = []
        for file in files_of(delta):
            batches = list(read_batches(uri, file.path, QUARANTINE_SCHEMA.names))
            holding = [_holding(batch, traces) for batch in batches]
            if not any(rows.any() for rows in holding):
                continue
            kept = [batch.filter(pa.array(~rows)) for batch, rows in zip(batches, holding, strict=True)]
            remove.append(file)
            rows = pa.Table.from_batches(kept, QUARANTINE_SCHEMA)
            if len(rows):
                # The names of its files sort as they were quarantined, and each file holds rows of one dump.
                path = file.path.removesuffix(".parquet") + f"-{time.time_ns()}.parquet"
                size_bytes = write_parquet(uri, path, rows)
                add.append(DataFile(path=path, size_bytes=size_bytes, num_rows=len(rows), partition={}))
        if remove:
            replace_files(delta, remove, add, QUARANTINE_SCHEMA, [], data_change=True, metadata={})
        return sum(file.num_rows for file in remove) - sum(file.num_rows for file in add)

    num_rows = retrying(attempt)
    delta = open_delta(uri)
    if delta is not None:
        paths = [relative(file.uri, uri) for file in list_stored(uri)]
        needed = {file.path for file in files_of(delta)}
        needed |= {path for path in paths if path.startswith("_delta_log/")}
        remove_files(uri, [path for path in paths if path not in needed])
        trim_log(uri, delta.version())
    return num_rows


def _holding(batch: pa.RecordBatch, traces: Traces) -> Any:
    """Which quarantined rows hold one of the texts."""
    rows: list[Any] = batch.select(["raw", "reason"]).to_pylist()
    return np.array([traces.find(f"{row['raw']}\0{row['reason']}".encode()) is not None for row in rows], np.bool_)
