"""Cells of an evaluation: what tells one from another, how one is measured, and the file that its numbers lie in."""

import dataclasses
import hashlib
import json
import re
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from recipe_ray.errors import EditorError, OutputError, RecipeError
from recipe_ray.eval.cases import EvalCase
from recipe_ray.eval.evaluation import evaluate_cell
from recipe_ray.eval.methods.base import Method
from recipe_ray.eval.methods.context import Context, Preset
from recipe_ray.eval.methods.registry import build
from recipe_ray.eval.protocol import Reader, plain_reader
from recipe_ray.eval.report.contents import Cell as MeasuredCell
from recipe_ray.eval.results import CellResult, CellSettings, Mode
from recipe_ray.examples import Batches, EditRecord
from recipe_ray.model.llm import FrozenLLM, load_llm
from recipe_ray.store import files
from recipe_ray.store.parquet import parquet_bytes

CELLS_FOLDER, STATE_FOLDER = "cells", "trained"
_LISTS = ("failures", "related_margins", "unrelated_margins")  # columns of the first row: the cell's, not a measure's


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One editor on one data set at one number of edits at once.

    Attributes:
        editor, data: names, as the report has them.
        num_edits: T.
        mode: how the edits are made.
        num_cases: edits asked about: the first so many of the data set's.
        chat: whether edits are asked about in chats too.
        identity: of all that makes a difference to the numbers, and of nothing else.
    """

    editor: str
    data: str
    num_edits: int
    mode: Mode
    num_cases: int
    chat: bool = False
    identity: str

    @property
    def name(self) -> str:
        """What its files are called, without ending."""
        words = f"{self.editor}-{self.data}-{self.num_edits}-{self.mode}"
        return f"{re.sub(r'[^A-Za-z0-9._]+', '-', words).strip('-')}-{self.identity}"


def identity_of(settings: Mapping[str, Any]) -> str:
    """What equal settings have in common: a hash of them as JSON."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What all cells of a run share; it travels to every worker once.

    Attributes:
        folder: the run's, local or s3://.
        llm: name of the frozen LLM.
        device: auto, cpu, cuda or cuda:N.
        preset: of the editors' hyperparameters.
        settings: what differs from it, each `EDITOR.NAME=VALUE`.
        seed: of what is drawn.
        editor: where RECIPE's trained editor lies.
        ablations: where the ablations' editors lie, by name.
        encoder: name of the sentence encoder.
        training, batches, tuning: as in the registry's `Context`.
        made_by: columns that say how the numbers were made: command, commit.
        hardware: says what a worker runs on.
    """

    folder: str
    llm: str
    device: str
    preset: Preset
    settings: tuple[str, ...]
    seed: int
    editor: str | None
    ablations: Mapping[str, str]
    encoder: str
    training: tuple[EditRecord, ...]
    batches: Callable[[int, str], Batches] | None
    tuning: tuple[EvalCase, ...]
    made_by: Mapping[str, str | None]
    hardware: Callable[[], Mapping[str, str]]

    def context(self, llm: FrozenLLM, cases: Sequence[EvalCase], *, editor: str | None) -> Context:
        """What editors are made from, with RECIPE's of this directory.

        Args:
            llm: the frozen LLM, loaded.
            cases: those that will be asked about.
            editor: where a trained editor lies.
        """
        return Context(
            llm=llm,
            cases=cases,
            preset=self.preset,
            settings=self.settings,
            device=self.device,
            seed=self.seed,
            state=files.join(self.folder, STATE_FOLDER),
            editor=None if editor is None else files.localize_editor(editor),
            encoder=self.encoder,
            training=self.training,
            batches=self.batches,
            tuning=self.tuning,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a cell went: `reason` says in one line why it failed, None where it was measured.

    A fault that is no user's or data's comes with its traceback.
    """

    cell: Cell
    reason: str | None = None
    traceback: str = ""


class CellRunner:
    """Measures cells one after the other, with one LLM in memory; what a cell did wrong is its own.

    Args:
        setup: what the cells share.
    """

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._llm: FrozenLLM | None = None
        self._unedited: Reader | None = None
        self._digest: tuple[int, ...] = ()
        self._method: tuple[tuple[str, str], Method] | None = None

    def run(self, cell: Cell, cases: Sequence[EvalCase]) -> Outcome:
        """Measure a cell and write its file; whatever goes wrong is told in the outcome, and is no exception.

        Args:
            cell: which.
            cases: of its data set.
        """
        try:
            write_cell(self._setup.folder, cell, self._measured(cell, cases))
        except Exception as error:  # noqa: BLE001 -- whatever one editor does wrong, the rest of the table goes on
            # What it left of the LLM nobody knows; the next cell begins with another.
            self._llm = self._unedited = self._method = None
            told = isinstance(error, RecipeError)
            trace = "" if told else "".join(traceback.format_exception(error))
            return Outcome(cell=cell, reason=reason_of(error, self._setup.device), traceback=trace)
        return Outcome(cell=cell)

    def _measured(self, cell: Cell, cases: Sequence[EvalCase]) -> MeasuredCell:
        begun = time.perf_counter()
        llm = self._loaded()
        assert self._unedited is not None  # as loaded
        method = self._made(cell, llm, cases)
        settings = CellSettings(
            data=cell.data, num_edits=cell.num_edits, mode=cell.mode, seed=self._setup.seed, chat=cell.chat
        )
        result = evaluate_cell(method, cases[: cell.num_cases], settings, unedited=self._unedited)
        if _digest(llm) != self._digest:
            raise EditorError(
                f"{cell.editor} left the LLM changed after undo; its numbers would be those of others too"
            )
        beside = {
            "seconds": time.perf_counter() - begun,
            "device": str(llm.device),
            **self._setup.made_by,
            **self._setup.hardware(),
        }
        return measured_cell(cell, result, beside)

    def _loaded(self) -> FrozenLLM:
        if self._llm is None:
            self._llm = load_llm(self._setup.llm, self._setup.device)
            self._unedited = plain_reader(self._llm)
            self._digest = _digest(self._llm)
        return self._llm

    def _made(self, cell: Cell, llm: FrozenLLM, cases: Sequence[EvalCase]) -> Method:
        """The editor, kept for the next cell of the same editor and data set."""
        if self._method is None or self._method[0] != (cell.editor, cell.data):
            self._method = None  # first let go of what the last one holds
            ablation = self._setup.ablations.get(cell.editor)
            context = self._setup.context(llm, cases, editor=ablation or self._setup.editor)
            self._method = ((cell.editor, cell.data), build("recipe" if ablation else cell.editor, context))
        return self._method[1]


def measured_cell(cell: Cell, result: CellResult, beside: Mapping[str, Any]) -> MeasuredCell:
    """What a cell gives, as the report takes it: its rows under the cell's name, with further columns."""
    return MeasuredCell(
        rows=tuple({**row, "editor": cell.editor, **beside} for row in result.rows()),
        examples=tuple(dataclasses.asdict(failure) for failure in result.failures),
        margins_related=tuple(result.related_margins),
        margins_unrelated=tuple(result.unrelated_margins),
    )


def cell_uri(folder: str, cell: Cell) -> str:
    """Where a finished cell's file lies."""
    return files.join(folder, CELLS_FOLDER, f"{cell.name}.parquet")


def write_cell(folder: str, cell: Cell, measured: MeasuredCell) -> None:
    """Write a cell's file, whole or not at all: a row a measure, what belongs to the cell in its first.

    Raises:
        OutputError: the place cannot be written.
    """
    lists = (list(measured.examples), list(measured.margins_related), list(measured.margins_unrelated))
    first = dict(zip(_LISTS, lists, strict=True))
    rows = [{**row, **(dict.fromkeys(_LISTS) if number else first)} for number, row in enumerate(measured.rows)]
    files.write_whole(cell_uri(folder, cell), parquet_bytes(pa.Table.from_pylist(rows)))


def read_cell(folder: str, cell: Cell) -> MeasuredCell | None:
    """What `write_cell` wrote; None where there is nothing.

    Raises:
        OutputError: the file cannot be read.
    """
    uri = cell_uri(folder, cell)
    filesystem, path = files.filesystem(uri)
    try:
        with filesystem.open_input_file(path) as stream:
            rows = pq.read_table(stream).to_pylist()
    except FileNotFoundError:
        return None
    except (OSError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())[:200]
        raise OutputError(f"{uri}: cannot be read ({reason}); remove it, and the cell is measured again") from error
    failures, related, unrelated = (rows[0][name] or [] for name in _LISTS)
    return MeasuredCell(
        rows=tuple({name: value for name, value in row.items() if name not in _LISTS} for row in rows),
        examples=tuple(failures),
        margins_related=tuple(related),
        margins_unrelated=tuple(unrelated),
    )


def reason_of(error: BaseException, device: str) -> str:
    """Why a cell failed, in one line; a fault that is none of ours to word is told with its type."""
    text = " ".join(str(error).split())
    if isinstance(error, RecipeError):
        return text
    # On a CPU PyTorch raises a plain RuntimeError, "DefaultCPUAllocator: can't allocate memory".
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "allocate memory" in text:
        return f"out of memory on device {device}; give a larger one, a smaller LLM, or fewer edits at once"
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__


def _digest(llm: FrozenLLM) -> tuple[int, ...]:
    """A sum over the bits of each weight tensor: another after almost any change, and fast."""
    widths = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return tuple(
        int(one.detach().reshape(-1).view(widths[one.element_size()]).sum(dtype=torch.int64))
        for one in llm.model.state_dict().values()
    )
