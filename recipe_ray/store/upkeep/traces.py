"""Looking for texts in the bytes of files: as they are, as JSON writes them, and inside the pages of Parquet.

A trace is found where it stands by itself: `land-1` not within `land-10`, nor a statement within a longer word.
"""

import json
import re
from collections.abc import Collection, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recipe_ray.errors import OutputError
from recipe_ray.store.files import SourceFile, filesystem

MIN_RAW_BYTES = 6  # shorter ones stand by chance in the bytes of vectors
_HEAD_BYTES = 8
_READ_BYTES = 8 * 1024 * 1024
_BATCH_ROWS = 4096
_WORD = re.compile(rb"[\w\x80-\xff]")
_JOINS = re.compile(rb"[-:/@.][\w\x80-\xff]")
_JOINED = re.compile(rb"[\w\x80-\xff][-:/@.]$")
_VECTORS = ("key", "prompt_embeddings")
_PARQUET = b"PAR1"

Bytes = npt.NDArray[np.uint8]


class Traces:
    """Texts to look for, however many.

    Args:
        texts: none of them empty.
        ids: likewise; `land` is not found within `land-1` or `x.land`.
    """

    def __init__(self, texts: Collection[str], ids: Collection[str] = ()) -> None:
        self.texts = frozenset(texts) | frozenset(ids)
        self._text_of_form = {form: text for text in self.texts for form in _forms(text)}
        self._ids = frozenset(ids) - frozenset(texts)
        forms = list(self._text_of_form)
        # Whether two bytes begin any of the forms; of one byte, whatever follows.
        self._begins = np.zeros(65536, np.bool_)
        for form in forms:
            if len(form) > 1:
                self._begins[form[0] << 8 | form[1]] = True
            else:
                self._begins[form[0] << 8 : (form[0] + 1) << 8] = True
        heads = {int.from_bytes(form[:_HEAD_BYTES], "little") for form in forms}
        self._heads = np.array(sorted(heads), np.uint64)
        self._has_short = any(len(form) < _HEAD_BYTES for form in forms)
        self._lengths = sorted({len(form) for form in forms})

    def find(self, content: bytes, *, min_bytes: int = 0, is_first: bool = True, is_last: bool = True) -> str | None:
        """A text that stands in the content, of those of at least so many bytes; None where there is none.

        Where the content is a part, not the first or not the last, what touches that edge of it is passed over.
        """
        if not content or not self.texts:
            return None
        for place in self._candidates(np.frombuffer(content + b"\0", np.uint8)).tolist():
            if _goes_on(content, place) or (place == 0 and not is_first):
                continue
            for length in self._lengths:
                end = place + length
                if end == len(content) and not is_last:
                    continue
                text = self._text_of_form.get(content[place:end]) if length >= min_bytes else None
                if text is None or _goes_on(content, end):
                    continue
                if text not in self._ids or not (_is_joined(content, place) or _is_joined(content, end)):
                    return text
        return None

    def _candidates(self, content: Bytes) -> npt.NDArray[np.int64]:
        """Places at which one may begin."""
        pairs = content[:-1].astype(np.uint16) << 8 | content[1:]
        places = np.flatnonzero(self._begins[pairs])
        if self._has_short or not len(places):
            return places
        # One byte after another: a window of eight bytes at each place would take eight times the memory.
        padded = np.concatenate([content, np.zeros(_HEAD_BYTES, np.uint8)])
        head = np.zeros(len(places), np.uint64)
        for offset in range(_HEAD_BYTES):
            head |= padded[places + offset].astype(np.uint64) << np.uint64(8 * offset)
        return places[np.isin(head, self._heads)]

    def find_in_file(self, file: SourceFile) -> str | None:
        """A text that stands in a file, in its bytes or in the pages of Parquet; None where there is none.

        Raises:
            OutputError: it cannot be read.
        """
        if not self.texts:
            return None
        filesystem_, path = filesystem(file.uri)
        try:
            with filesystem_.open_input_stream(path, compression=None) as stream:
                part = stream.read(_READ_BYTES)
                is_parquet, kept, is_first = part.startswith(_PARQUET), b"", True
                while part:
                    coming = stream.read(_READ_BYTES)
                    content = kept + part
                    found = self.find(content, min_bytes=MIN_RAW_BYTES, is_first=is_first, is_last=not coming)
                    if found is not None:
                        return found
                    # A text may lie across two parts; with the byte before it and the one after.
                    kept, part, is_first = content[-(self._lengths[-1] + 2) :], coming, False
            if is_parquet:
                with pq.ParquetFile(path, filesystem=filesystem_) as parquet:
                    return self._find_in_parquet(parquet)
        except (OSError, pa.ArrowException) as error:
            raise OutputError(f"{file.uri}: cannot be searched ({error}); look at it, or remove it") from error
        return None

    def _find_in_parquet(self, parquet: Any) -> str | None:
        columns = [name for name in parquet.schema_arrow.names if name not in _VECTORS]
        for batch in parquet.iter_batches(_BATCH_ROWS, columns=columns):
            for content in _texts_of(batch):
                found = self.find(content)
                if found is not None:
                    return found
        return None


def _texts_of(batch: pa.RecordBatch) -> Iterator[bytes]:
    for field in batch.schema:
        column: Any = batch.column(field.name)
        kind = field.type
        if pa.types.is_dictionary(kind):
            column = column.dictionary_decode()
            kind = column.type
        if pa.types.is_string(kind) or pa.types.is_large_string(kind):
            yield joined(column)
        elif pa.types.is_nested(kind):
            yield json.dumps(column.to_pylist(), ensure_ascii=False, default=str).encode()


def joined(column: Any) -> bytes:
    """The texts of a column in one, with something between them that no text holds."""
    filled = pc.fill_null(column.cast(pa.large_string()), pa.scalar("", pa.large_string()))
    whole = pa.LargeListArray.from_arrays(pa.array([0, len(filled)], pa.int64()), filled)
    texts: Any = pc.binary_join(whole, pa.scalar("\0", pa.large_string()))
    (text,) = texts.to_pylist()
    return b"\0" + str(text).encode() + b"\0"


def _forms(text: str) -> set[bytes]:
    """A text as it is, and as it stands within JSON."""
    quoted = (json.dumps(text, ensure_ascii=ascii_)[1:-1] for ascii_ in (False, True))
    return {form.encode() for form in (text, *quoted)}


def _goes_on(content: bytes, place: int) -> bool:
    """Whether a word is cut in two at a place."""
    return (
        0 < place < len(content)
        and _WORD.match(content, place) is not None
        and _WORD.match(content, place - 1) is not None
    )


def _is_joined(content: bytes, place: int) -> bool:
    """Whether a sign that ids are made with joins the words before and after a place."""
    return (
        _WORD.match(content, place) is not None and _JOINED.search(content, max(0, place - 2), place) is not None
    ) or (place > 0 and _WORD.match(content, place - 1) is not None and _JOINS.match(content, place) is not None)
