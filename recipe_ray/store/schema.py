"""Layout of the table of facts: its columns, its properties, how vectors lie in a cell, which shard an id belongs to.

F facts, K key width, P virtual tokens, D LLM width.
"""

import base64
import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from recipe_ray.config import EditorIdentity
from recipe_ray.errors import TableError

VectorDtype = Literal["float16", "float32"]

SCHEMA_VERSION = "2"
CANONICAL = "canonical"
PARTITION_COLUMNS = ["namespace", "shard"]
TIMESTAMP = pa.timestamp("us", tz="UTC")

_EVENT_FIELDS: list[Any] = [
    pa.field("namespace", pa.string(), nullable=False),
    pa.field("shard", pa.int32(), nullable=False),
    pa.field("fact_id", pa.string(), nullable=False),
    pa.field("op", pa.string(), nullable=False),
    pa.field("statement", pa.string(), nullable=False),
    pa.field("prompt", pa.string(), nullable=False),
    pa.field("target", pa.string(), nullable=False),
    pa.field("subject", pa.string(), nullable=False),
    pa.field("source", pa.string(), nullable=False),
    pa.field("updated_at", TIMESTAMP, nullable=False),
    pa.field("expires_at", TIMESTAMP),
    pa.field("ingested_at", TIMESTAMP, nullable=False),
    pa.field("content_hash", pa.binary(), nullable=False),
    pa.field("statement_hash", pa.binary(), nullable=False),
    pa.field("encoded", pa.bool_(), nullable=False),
    pa.field("key", pa.binary()),
    pa.field("prompt_embeddings", pa.binary()),
]
EVENT_SCHEMA = pa.schema(_EVENT_FIELDS)
"""One row an event. `encoded` says whether `key` and `prompt_embeddings` stand in the row. They are null in a delete,
in a fact that had expired when it came, and where an older event of the same id has the same `statement_hash`: the
vectors are that event's."""

FILE_SCHEMA = pa.schema([field for field in EVENT_SCHEMA if field.name not in PARTITION_COLUMNS])
"""What a data file holds; the partition columns stand in the log, as Delta demands."""

FACT_COLUMNS = [
    "fact_id",
    "namespace",
    "statement",
    "prompt",
    "target",
    "subject",
    "source",
    "updated_at",
    "expires_at",
]
"""What a snapshot tells of a live fact besides its vectors."""

_DTYPES: dict[str, str] = {"float16": "<f2", "float32": "<f4"}
_PROPERTY = "recipe."


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def microseconds(moment: datetime) -> int:
    """Microseconds since the Unix epoch, exactly."""
    return (moment - _EPOCH) // timedelta(microseconds=1)


def identity_hash(namespace: str, fact_id: str) -> bytes:
    """16 bytes that stand for a fact among all facts; no field of a fact holds a NUL character."""
    return hashlib.blake2b(f"{namespace}\0{fact_id}".encode(), digest_size=16).digest()


def shard_of(fact_id: str, num_shards: int) -> int:
    """Give the shard of an id: the same on every machine and in every run."""
    return int.from_bytes(hashlib.blake2b(fact_id.encode(), digest_size=8).digest(), "little") % num_shards


def properties(
    identity: EditorIdentity, *, num_shards: int, dtype: VectorDtype, is_canonical: bool = True
) -> dict[str, str]:
    """Table properties that say what encoded the table and how it is laid out; `identity_of` reads them back.

    Args:
        identity: of the editor.
        num_shards, dtype: the table's layout.
        is_canonical: whether all ids and keys are made of texts in canonical form; see `upkeep.renewal`.
    """
    sentinel = np.ascontiguousarray(identity.sentinel_K, dtype="<f4").tobytes()
    values = {
        "schema_version": SCHEMA_VERSION,
        "fingerprint": identity.fingerprint,
        "encoder": identity.encoder,
        "llm": identity.llm,
        "llm_width": str(identity.llm_width),
        "key_width": str(identity.key_width),
        "num_virtual_tokens": str(identity.num_virtual_tokens),
        "sentinel": base64.b64encode(sentinel).decode(),
        "dtype": dtype,
        "num_shards": str(num_shards),
        "text_form": CANONICAL if is_canonical else "",
    }
    named = {_PROPERTY + name: value for name, value in values.items()}
    # Whoever rewrites this table with delta-rs or Spark keeps names and addresses out of the log as well.
    return {**named, "delta.dataSkippingStatsColumns": "updated_at,ingested_at"}


def identity_of(configuration: Mapping[str, str], *, place: str) -> EditorIdentity:
    """Rebuild who encoded a table, from its properties.

    Raises:
        TableError: the table is not one of ours, or of another layout.
    """
    version = layout_of(configuration)
    if version == "1":
        raise TableError(
            f"{place}: is of layout 1; run `python jobs/facts.py migrate --table {place}`, which encodes nothing "
            "again (a version from before that is not read any more)"
        )
    if version != SCHEMA_VERSION:
        raise TableError(
            f"{place}: is a Delta table but not a table of facts of layout {SCHEMA_VERSION} (found {version}); "
            "give a table that ingest wrote"
        )
    try:
        values = {name.removeprefix(_PROPERTY): value for name, value in configuration.items()}
        identity = EditorIdentity(
            fingerprint=values["fingerprint"],
            encoder=values["encoder"],
            llm=values["llm"],
            llm_width=int(values["llm_width"]),
            key_width=int(values["key_width"]),
            num_virtual_tokens=int(values["num_virtual_tokens"]),
            sentinel_K=np.frombuffer(base64.b64decode(values["sentinel"]), dtype="<f4").astype(np.float32),
        )
    except (KeyError, ValueError) as error:
        raise TableError(f"{place}: its properties are damaged ({error!r}); restore or ingest anew") from error
    if identity.sentinel_K.shape != (identity.key_width,):
        raise TableError(f"{place}: its sentinel has not key_width {identity.key_width} entries; ingest anew")
    return identity


def layout_of(configuration: Mapping[str, str]) -> str | None:
    """Read the layout of a table; None where it is not one of ours."""
    return configuration.get(_PROPERTY + "schema_version")


def layout_property() -> dict[str, str]:
    """The property that says this layout."""
    return {_PROPERTY + "schema_version": SCHEMA_VERSION}


def num_shards_of(configuration: Mapping[str, str]) -> int:
    """Read the number of shards of a table that `identity_of` accepted."""
    return int(configuration[_PROPERTY + "num_shards"])


def is_canonical(configuration: Mapping[str, str]) -> bool:
    """Whether all ids and keys of a table are made of texts in canonical form."""
    return configuration.get(_PROPERTY + "text_form") == CANONICAL


def dtype_of(configuration: Mapping[str, str]) -> np.dtype[Any]:
    """Little-endian dtype of the vectors of a table that `identity_of` accepted."""
    return np.dtype(_DTYPES[configuration[_PROPERTY + "dtype"]])


def vectors_to_cells(vectors: npt.NDArray[Any], dtype: np.dtype[Any]) -> Any:
    """Lay float vectors [F, ...] into a BinaryArray of F little-endian cells of one width, under 2 GiB together.

    Raises:
        TableError: a value is not finite, or does not fit the dtype.
    """
    with np.errstate(over="ignore"):  # an overflow shows as an infinity below
        rows = np.ascontiguousarray(vectors, dtype=dtype)
    if not np.isfinite(rows).all():
        raise TableError(f"a vector is not finite in {dtype.name}; use a table of float32, or check the editor")
    width = rows[0].nbytes if len(rows) else 0
    assert rows.nbytes < 2**31, rows.nbytes
    offsets = np.arange(len(rows) + 1, dtype=np.int32) * np.int32(width)
    buffers = [None, pa.py_buffer(offsets.tobytes()), pa.py_buffer(rows.tobytes())]
    return pa.BinaryArray.from_buffers(pa.binary(), len(rows), buffers)


def cells_to_vectors(cells: Any, width: int, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Invert `vectors_to_cells`: an array [F, width].

    Raises:
        ValueError: a cell is null or of another length.
    """
    lengths = pc.binary_length(cells).to_numpy(zero_copy_only=False)
    if cells.null_count or not (lengths == width * dtype.itemsize).all():
        raise ValueError(f"a cell has not {width} entries of {dtype.name}")
    if not len(cells):
        return np.empty((0, width), dtype)
    # A slice shares its parent's buffers: its values begin where its first offset points.
    start = int(np.frombuffer(cells.buffers()[1], dtype=np.int32)[cells.offset])
    flat = np.frombuffer(cells.buffers()[2], dtype=dtype, count=len(cells) * width, offset=start)
    return flat.reshape(len(cells), width)
