"""Reading a dump of facts: JSON Lines, scanned once to decide and read once more to take what was decided.

Both passes hold one block of rows at a time. A dump that is different the second time is refused.
"""

import hashlib
import io
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import IO, Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from recipe_ray.errors import FactError
from recipe_ray.facts import Fact, fact_from_line
from recipe_ray.store.files import open_lines
from recipe_ray.store.order import Hashes, hashes_of
from recipe_ray.store.quarantine import BadLine
from recipe_ray.store.schema import TIMESTAMP, identity_hash

MAX_LINE_BYTES = 1024 * 1024  # far beyond the longest fact; bounds what a file without line ends can take
RAW_CHARS = 4096
_SCAN_ROWS = 16384
_DUMP_ORDER: Any = [("file", "ascending"), ("line", "ascending")]
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_SCAN_FIELDS: dict[str, Any] = {
    "file": pa.int32(),
    "line": pa.int64(),
    "identity": pa.binary(),
    "content_hash": pa.binary(),
    "updated_us": pa.int64(),
    "is_delete": pa.bool_(),
    "reason": pa.string(),
    "raw": pa.string(),
    "digest": pa.binary(),
}
SCAN_SCHEMA = pa.schema(_SCAN_FIELDS)
"""One row a line: of a fact (identity, content_hash, updated_us or null, is_delete), of a bad line (reason, raw), and
after a file's last line one with its digest."""

_FACT_ROW_FIELDS: dict[str, Any] = {
    "namespace": pa.string(),
    "fact_id": pa.string(),
    "op": pa.string(),
    "statement": pa.string(),
    "prompt": pa.string(),
    "target": pa.string(),
    "subject": pa.string(),
    "source": pa.string(),
    "updated_at": TIMESTAMP,
    "content_hash": pa.binary(),
}
FACT_ROW_SCHEMA = pa.schema(_FACT_ROW_FIELDS)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScannedFacts:
    """The N valid lines of a dump.

    Attributes:
        file_N: int32, number of the file in the dump.
        line_N: int64, counted from 1.
        identity_N2, content_N2: hashes.
        updated_us_N: int64, microseconds since the Unix epoch; the dump's time where a line says none.
        is_delete_N: bool.
    """

    file_N: npt.NDArray[np.int32]
    line_N: npt.NDArray[np.int64]
    identity_N2: Hashes
    content_N2: Hashes
    updated_us_N: npt.NDArray[np.int64]
    is_delete_N: npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """What the first pass found in a dump.

    Attributes:
        facts: the valid lines, in the order of the dump.
        bad_lines: the others, in the order of the dump.
        digests: of each file, by its number.
    """

    facts: ScannedFacts
    bad_lines: list[BadLine]
    digests: dict[int, bytes]

    @property
    def dump_hash(self) -> str:
        """What the dump is known by: the content of its files, wherever they lie."""
        return hashlib.blake2b(b"".join(sorted(self.digests.values())), digest_size=16).hexdigest()


def scan_file(uri: str, file: int) -> Iterator[pa.Table]:
    """Validate every line of a file.

    Args:
        uri: of the file, plain or `.gz`.
        file: its number in the dump.

    Yields:
        Tables of SCAN_SCHEMA, the last of which ends with the digest.

    Raises:
        FactError: the file cannot be read to its end.
    """
    digest = hashlib.blake2b(digest_size=16)
    rows: list[dict[str, Any]] = []
    for line, text in _lines(uri, digest):
        rows.append({"file": file, "line": line, **_scan_line(text, place=f"{uri}:{line}")})
        if len(rows) == _SCAN_ROWS:
            yield pa.Table.from_pylist(rows, SCAN_SCHEMA)
            rows = []
    rows.append({"file": file, "digest": digest.digest()})
    yield pa.Table.from_pylist(rows, SCAN_SCHEMA)


def collect_scan(tables: Iterable[Any], uris: Sequence[str], *, dump_time: datetime) -> Scan:
    """Gather the tables of `scan_file`, of all files and in any order.

    Args:
        tables: of SCAN_SCHEMA.
        uris: of the files, by their number.
        dump_time: takes the place of a missing `updated_at`.
    """
    facts, bad = [SCAN_SCHEMA.empty_table()], [SCAN_SCHEMA.empty_table()]
    digests: dict[int, bytes] = {}
    for table in tables:
        facts.append(_where(table, "identity").select(SCAN_SCHEMA.names))
        bad.append(_where(table, "reason").select(SCAN_SCHEMA.names))
        ends = _where(table, "digest")
        digests.update(zip(ends.column("file").to_pylist(), ends.column("digest").to_pylist(), strict=True))
    valid: Any = pa.concat_tables(facts).sort_by(_DUMP_ORDER)
    return Scan(
        facts=ScannedFacts(
            file_N=valid.column("file").to_numpy(),
            line_N=valid.column("line").to_numpy(),
            identity_N2=_hashes(valid.column("identity")),
            content_N2=_hashes(valid.column("content_hash")),
            updated_us_N=valid.column("updated_us").fill_null(microseconds(dump_time)).to_numpy(),
            is_delete_N=valid.column("is_delete").to_numpy(),
        ),
        bad_lines=[
            BadLine(file=uris[row["file"]], line=row["line"], reason=row["reason"], raw=row["raw"])
            for row in pa.concat_tables(bad).sort_by(_DUMP_ORDER).to_pylist()
        ],
        digests=digests,
    )


def read_facts(
    uri: str, lines: npt.NDArray[np.int64], *, digest: bytes, dump_time: datetime, block_rows: int
) -> Iterator[pa.Table]:
    """Read some facts of a file that was scanned before.

    Args:
        uri: of the file.
        lines: numbers of the wanted lines, ascending.
        digest: what the scan found the file to be.
        dump_time: takes the place of a missing `updated_at`.
        block_rows: largest number of rows of a yielded table.

    Yields:
        Tables of FACT_ROW_SCHEMA.

    Raises:
        FactError: the file cannot be read, or is not what was scanned (known at its end at the latest).
    """
    changed = FactError(f"{uri}: changed while it was read; let its writer finish, then run ingest again")
    now = hashlib.blake2b(digest_size=16)
    rows: list[dict[str, Any]] = []
    wanted = iter(lines.tolist())
    next_line = next(wanted, None)
    for line, text in _lines(uri, now):
        if line != next_line:
            continue
        next_line = next(wanted, None)
        if isinstance(text, _TooLong):
            raise changed
        try:
            rows.append(_fact_row(fact_from_line(text.decode("utf-8"), place=f"{uri}:{line}"), dump_time))
        except (FactError, UnicodeDecodeError) as error:
            raise changed from error
        if len(rows) == block_rows:
            yield pa.Table.from_pylist(rows, FACT_ROW_SCHEMA)
            rows = []
    if next_line is not None or now.digest() != digest:
        raise changed
    if rows:
        yield pa.Table.from_pylist(rows, FACT_ROW_SCHEMA)


@dataclass(frozen=True, slots=True)
class _TooLong:
    start: bytes


def _lines(uri: str, digest: hashlib.blake2b) -> Iterator[tuple[int, bytes | _TooLong]]:
    """Yield the lines that are not blank, counted from 1; the digest takes in every byte."""
    number = 0
    try:
        with open_lines(uri) as stream:
            lines = io.BufferedReader(cast(io.RawIOBase, stream), 1024 * 1024)
            while line := lines.readline(MAX_LINE_BYTES + 1):
                number += 1
                digest.update(line)
                if len(line) > MAX_LINE_BYTES:
                    _skip_line(lines, digest, line)
                    yield number, _TooLong(line)
                elif line.strip():
                    yield number, line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
    except (OSError, EOFError, zlib.error) as error:
        raise FactError(
            f"{uri}: cannot be read at line {number + 1} ({str(error) or type(error).__name__}); "
            "check that the file is whole and readable"
        ) from error


def _skip_line(lines: IO[bytes], digest: hashlib.blake2b, part: bytes) -> None:
    while part and not part.endswith(b"\n"):
        part = lines.readline(MAX_LINE_BYTES)
        digest.update(part)


def _scan_line(text: bytes | _TooLong, *, place: str) -> dict[str, Any]:
    if isinstance(text, _TooLong):
        return _bad(text.start, f"the line has over {MAX_LINE_BYTES} bytes; give one fact a line")
    try:
        fact = fact_from_line(text.decode("utf-8"), place=place)
    except UnicodeDecodeError as error:
        return _bad(text, f"not UTF-8 ({error.reason} at byte {error.start}); write the file in UTF-8")
    except FactError as error:
        return _bad(text, str(error).removeprefix(f"{place}: "))
    return {
        "identity": identity_hash(fact.namespace, fact.fact_id),
        "content_hash": fact.content_hash(),
        "updated_us": None if fact.updated_at is None else microseconds(fact.updated_at),
        "is_delete": fact.op == "delete",
    }


def _where(table: Any, column: str) -> Any:
    return table.filter(pc.is_valid(table.column(column)))


def _hashes(cells: Any) -> Hashes:
    contents: list[Any] = cells.to_pylist()
    return hashes_of(b"".join(contents), place="the scan of the dump")


def _bad(line: bytes, reason: str) -> dict[str, Any]:
    raw = line[: 4 * RAW_CHARS].decode("utf-8", "replace").rstrip("\r\n")
    return {"reason": reason, "raw": raw[:RAW_CHARS]}


def _fact_row(fact: Fact, dump_time: datetime) -> dict[str, Any]:
    return {
        "namespace": fact.namespace,
        "fact_id": fact.fact_id,
        "op": fact.op,
        "statement": fact.statement,
        "prompt": fact.prompt,
        "target": fact.target,
        "subject": fact.subject,
        "source": fact.source,
        "updated_at": fact.updated_at or dump_time,
        "content_hash": fact.content_hash(),
    }


def microseconds(moment: datetime) -> int:
    """Microseconds since the Unix epoch, exactly."""
    return (moment - _EPOCH) // timedelta(microseconds=1)
