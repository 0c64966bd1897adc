"""Very many facts held at once, by keys that lie in files and are never all in memory.

Shape letters: B queries, F facts, K key width, P virtual tokens, D LLM width, N rows.
"""

import itertools
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from recipe_ray.config import EditorIdentity
from recipe_ray.errors import OutputError, TableError
from recipe_ray.facts import DEFAULT_NAMESPACE
from recipe_ray.model.editor import Editor
from recipe_ray.retrieval import NO_FACT
from recipe_ray.store.indexes.ann import Keys, exact_nearest
from recipe_ray.store.indexes.artefacts import latest_index, open_index
from recipe_ray.store.indexes.tuning import IndexSettings, Sample, build_tuned, sample_rows
from recipe_ray.testbed.million import generate_facts

FACTS_PER_CHUNK = 8192
QUERIES_PER_SCAN = 1000  # whose scores with a block of keys are in memory at once

Rows = npt.NDArray[np.int64]
Vectors = npt.NDArray[np.float32]


class LargeFacts(Protocol):
    """Facts in force, in rows.

    Attributes:
        num_facts: F.
        index: the index's kind, in words.
        size_bytes: of what files keep of the facts: keys, and of a table's index all that it has.
        seconds_per_fact: of encoding; None where that was done before.
    """

    num_facts: int
    index: str
    size_bytes: int
    seconds_per_fact: float | None

    def search(self, queries_BK: Vectors) -> tuple[Rows, Vectors]:
        """Best row and score of each query, through the index."""

    def exact(self, queries_BK: Vectors) -> tuple[Rows, Vectors]:
        """The same by a scan of all keys."""

    def fact_id(self, row: int) -> str:
        """Of a row."""

    def prompts(self, rows_N: Rows) -> Vectors:
        """Continuous prompts [N, P, D]."""


class TableFacts:
    """The facts of a table, through its newest index.

    Args:
        table_uri: local or s3://.
        identity: of the editor that will ask.

    Raises:
        TableError: there is no index, it is damaged, or another editor encoded it.
    """

    seconds_per_fact: float | None = None

    def __init__(self, table_uri: str, identity: EditorIdentity) -> None:
        uri = latest_index(table_uri, fingerprint=identity.fingerprint)
        if uri is None:
            raise TableError(
                f"{table_uri}: has no index of the editor with fingerprint {identity.fingerprint}; "
                "run jobs/build_index.py, or give the editor of the table"
            )
        self._index = open_index(uri, fingerprint=identity.fingerprint)
        self._parts = [part for part in self._index.parts if part.namespace == DEFAULT_NAMESPACE]
        if len(self._parts) < len(self._index.parts):
            raise TableError(f"{table_uri}: holds other namespaces than {DEFAULT_NAMESPACE!r}; give a table of one")
        self.num_facts = self._index.num_facts
        self.size_bytes = self._index.manifest.size_bytes
        self.index = "; ".join(dict.fromkeys(f"{part.spec.kind}: {part.reason}" for part in self._index.manifest.parts))

    def search(self, queries_BK: Vectors) -> tuple[Rows, Vectors]:
        """See `LargeFacts`."""
        return self._index.search(queries_BK, [DEFAULT_NAMESPACE] * len(queries_BK))

    def exact(self, queries_BK: Vectors) -> tuple[Rows, Vectors]:
        """See `LargeFacts`."""
        return _scan([part.index.keys_FK for part in self._parts], queries_BK)

    def fact_id(self, row: int) -> str:
        """See `LargeFacts`."""
        return str(self._index.fact(row)["fact_id"])

    def prompts(self, rows_N: Rows) -> Vectors:
        """See `LargeFacts`; as the table holds them."""
        identity = self._index.manifest.identity
        prompts = np.empty((len(rows_N), identity.num_virtual_tokens, identity.llm_width), np.float32)
        for place, row in enumerate(rows_N.tolist()):
            prompts[place] = self._index.prompt(row)
        return prompts


class EncodedFacts:
    """The first invented facts of a seed, encoded here; prompts are made from the keys when they are asked for.

    Keys are float16, as a table keeps them, in a file that the next run finds again.

    Args:
        editor: encodes them.
        num_facts: F.
        folder: for the file of keys.
        seed: of the facts.
        settings: of the index.

    Raises:
        OutputError: the folder cannot be written.
    """

    def __init__(
        self, editor: Editor, num_facts: int, folder: Path, *, seed: int = 0, settings: IndexSettings | None = None
    ) -> None:
        self.num_facts = num_facts
        self._editor = editor
        self._seed = seed
        self.seconds_per_fact: float | None = None
        file = folder / f"keys-{editor.fingerprint()}-{seed}-{num_facts}.npy"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not file.exists():
                started = time.perf_counter()
                _encode(editor, num_facts, seed, file)
                self.seconds_per_fact = (time.perf_counter() - started) / num_facts
            self._keys_FK: Keys = np.load(file, mmap_mode="r")
        except OSError as error:
            raise OutputError(f"{file}: cannot be written ({error.strerror}); give another folder") from error
        rows = sample_rows(num_facts, IndexSettings().num_queries)
        prompts = [fact["prompt"] for fact in _facts_of(rows, num_facts, seed)]
        # As `build_index` measures: questions in the facts' own words, every other one with its fact left out.
        left_out = np.where(np.arange(len(rows)) % 2 == 0, rows, NO_FACT)
        sample = Sample(queries_QK=editor.encode_queries(prompts), left_out_Q=left_out)
        tuned = build_tuned(self._keys_FK, settings or IndexSettings(), editor.identity().sentinel_K, sample)
        self._part = tuned.part
        self.index = f"{tuned.part.spec.kind}: {tuned.reason}"
        self.size_bytes = self._keys_FK.nbytes

    def search(self, queries_BK: Vectors) -> tuple[Rows, Vectors]:
        """See `LargeFacts`."""
        return self._part.search(queries_BK)

    def exact(self, queries_BK: Vectors) -> tuple[Rows, Vectors]:
        """See `LargeFacts`."""
        return _scan([self._keys_FK], queries_BK)

    def fact_id(self, row: int) -> str:
        """See `LargeFacts`."""
        return f"invented-{row}"

    def prompts(self, rows_N: Rows) -> Vectors:
        """See `LargeFacts`."""
        made = [np.zeros((0, self._editor.config.num_virtual_tokens, self._editor.llm_width), np.float32)]
        facts = _facts_of(rows_N, self.num_facts, self._seed)
        statements = [f"{fact['prompt']} {fact['target']}" for fact in facts]
        with torch.inference_mode():
            for start in range(0, len(rows_N), FACTS_PER_CHUNK):
                rows = rows_N[start : start + FACTS_PER_CHUNK]
                keys = torch.from_numpy(self._keys_FK[rows].astype(np.float32))
                made.append(self._editor.prompts_of(keys, statements[start : start + len(rows)]))
        return np.concatenate(made)


def _encode(editor: Editor, num_facts: int, seed: int, file: Path) -> None:
    """Write the keys; the file has its name only when it is whole."""
    unfinished = file.with_suffix(".partial")
    shape = (num_facts, editor.config.key_width)
    keys_FK = np.lib.format.open_memmap(unfinished, mode="w+", dtype=np.float16, shape=shape)
    start = 0
    for statements in _chunks(f"{fact['prompt']} {fact['target']}" for fact in generate_facts(num_facts, seed)):
        keys_FK[start : start + len(statements)] = editor.encode_facts(statements)[0]
        start += len(statements)
    keys_FK.flush()
    unfinished.rename(file)


def _chunks(statements: Iterator[str]) -> Iterator[list[str]]:
    while chunk := list(itertools.islice(statements, FACTS_PER_CHUNK)):
        yield chunk


def _facts_of(rows: Rows, num_facts: int, seed: int) -> list[dict[str, str]]:
    """The invented facts of rows, in their order."""
    wanted = set(rows.tolist())
    facts = {number: fact for number, fact in enumerate(generate_facts(num_facts, seed)) if number in wanted}
    return [facts[row] for row in rows.tolist()]


def _scan(parts: Sequence[Any], queries_BK: Vectors) -> tuple[Rows, Vectors]:
    """Best row over parts whose rows are counted through, the lowest of equals."""
    nearest_B = np.full(len(queries_BK), NO_FACT, np.int64)
    score_B = np.full(len(queries_BK), -np.inf, np.float32)
    for begin in range(0, len(queries_BK), QUERIES_PER_SCAN):
        some = slice(begin, begin + QUERIES_PER_SCAN)
        first = 0
        for keys_FK in parts:
            nearest, score = exact_nearest(keys_FK, queries_BK[some])
            better = score > score_B[some]
            nearest_B[some] = np.where(better, nearest + first, nearest_B[some])
            score_B[some] = np.where(better, score, score_B[some])
            first += len(keys_FK)
    return nearest_B, score_B
