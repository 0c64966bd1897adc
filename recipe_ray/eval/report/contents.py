"""What a report is made of: rows of measurements and what lies beside them."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from recipe_ray.eval.cases import SORTS

FREE, TEACHER_FORCED, CHAT = "free", "teacher_forced", "chat"
MEASURES = {
    FREE: "free generation, exact match",
    TEACHER_FORCED: "teacher-forced token accuracy",
    CHAT: "chat, first sentence",
}
LOW, HIGH = "_ci_low", "_ci_high"
RETRIEVAL = "retrieval_"

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One editor on one data set at one number of edits at once, as it was measured.

    Attributes:
        rows: one a measure (`free`, `teacher_forced`, `chat` where it was asked), flat: what is in `results.json`.
        examples: wrong answers chosen by seed, each with `kind`, `question`, `wanted` and `got`.
        margins_related, margins_unrelated: by how much the best fact's score exceeds the sentinel's, for questions that
            an edit in force answers and for those that none does; empty for editors without a sentinel.
    """

    rows: tuple[Row, ...]
    examples: tuple[Mapping[str, str], ...] = ()
    margins_related: tuple[float, ...] = ()
    margins_unrelated: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedCell:
    """A cell that could not be measured, and why, in a line; a fault of ours has a traceback too."""

    editor: str
    data: str
    num_edits: int | str
    mode: str
    reason: str
    traceback: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """All of a report.

    Attributes:
        cells: in the order in which editors and data sets shall stand.
        failed: likewise.
        ablations: names of the editors that are ablations of another's training.
        ability: general ability, one object an editor and task, as `jobs/ability.py` writes them.
    """

    cells: tuple[Cell, ...]
    failed: tuple[FailedCell, ...] = ()
    ablations: tuple[str, ...] = ()
    ability: tuple[Row, ...] = ()

    def rows(self, **wanted: Any) -> list[Row]:
        """Rows with these values, in their order."""
        every = (row for cell in self.cells for row in cell.rows)
        return [row for row in every if all(row.get(name) == value for name, value in wanted.items())]

    def values(self, name: str) -> list[Any]:
        """Values of a column, each once, in the order of their first appearance; missing ones left out."""
        return distinct(row.get(name) for row in self.rows())

    @property
    def data_sets(self) -> list[str]:
        """Data sets that anything was measured on."""
        return self.values("data")


def distinct(values: Iterable[Any]) -> list[Any]:
    """Values that are there, each once, in order."""
    return list(dict.fromkeys(value for value in values if value is not None))


def quality_kinds(rows: Sequence[Row]) -> list[str]:
    """Names of scores that any row has: the sorts of questions in the protocol's order, each before its kinds."""
    found = distinct(
        name.removesuffix(LOW)
        for row in rows
        for name in row
        if name.endswith(LOW) and not name.startswith(RETRIEVAL) and number(row, name.removesuffix(LOW)) is not None
    )
    order = {sort: place for place, sort in enumerate(SORTS)}
    return sorted(found, key=lambda kind: order.get(kind.partition("/")[0], len(order)))


def number(row: Row, name: str) -> float | None:
    """A number of a row; None where it was not measured."""
    value = row.get(name)
    return None if value is None or not math.isfinite(value) else float(value)
