"""The tables of a report, as texts; what was not measured is a dash, never a nought."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from recipe_ray.eval.cases import SORTS
from recipe_ray.eval.report.contents import (
    CHAT,
    FREE,
    HIGH,
    LOW,
    MEASURES,
    RETRIEVAL,
    Contents,
    Row,
    distinct,
    number,
    quality_kinds,
)
from recipe_ray.eval.results import ENDED

MISSING = "–"
UNEDITED = "unedited"
SHOWN_CHARACTERS = 200  # of a text in an example
_NOTES = {
    CHAT: " Asked through the LLM's chat template in words that no training uses, answered greedily to the end or 32 "
    "tokens; right where the first sentence says the target and no rival. Locality: the unedited LLM's answer, token "
    "for token. Ended: answers about edits that ended by themselves."
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table.

    Attributes:
        title: what it shows.
        note: how to read it; may be empty.
        columns: headings.
        rows: cells by row, as many as headings.
    """

    title: str
    note: str = ""
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def all_tables(contents: Contents) -> list[Table]:
    """Every table that has a row, data set by data set."""
    tables: list[Table] = []
    for data in contents.data_sets:
        main = [row for row in contents.rows(data=data) if row["editor"] not in contents.ablations]
        tables += [_quality(data, measure, _of(main, measure)) for measure in MEASURES]
        tables.append(_kinds(data, _of(main, FREE)))
        tables += _retrieval(data, _of(contents.rows(data=data), FREE))
        tables += _retrieval(f"{data} in chats", _of(contents.rows(data=data), CHAT))
        tables.append(_efficiency(data, _of(main, FREE)))
        if contents.ablations:
            tables.append(_ablations(data, contents))
    tables += [_ability(contents.ability), _failed(contents)]
    return [table for table in tables if table.rows]


def provenance(contents: Contents) -> Table:
    """By what the numbers were made; several values where cells were made by several starts."""
    names = {"llm": "LLM", "command": "command", "commit": "commit", "hardware": "hardware", "versions": "versions"}
    shown = tuple(
        (label, str(value)) for name, label in names.items() for value in contents.values(name) or ["not known"]
    )
    return Table(title="How it was made", columns=("what", "value"), rows=shown)


def examples(contents: Contents) -> Table:
    """Wrong answers, at the most edits at once of each editor and data set."""
    shown = []
    for cell in contents.cells:
        row = cell.rows[0]
        if row["editor"] == UNEDITED:  # every question about an edit would be one
            continue
        most = max(other["T"] for other in contents.rows(editor=row["editor"], data=row["data"]))
        if row["T"] == most:
            shown += [
                (
                    *_name(row),
                    row["data"],
                    *(_short(one.get(key, "")) for key in ("edit", "kind", "question", "wanted", "got")),
                )
                for one in cell.examples
            ]
    return Table(
        title="Examples of failures",
        note="Drawn by the seed among the wrong answers of free generation, and of chats (their kind is chat), at the "
        "most edits at once; for locality the wanted answer is the unedited LLM's own.",
        columns=("editor", "T", "mode", "data", "edit", "kind", "question", "wanted", "got"),
        rows=tuple(shown),
    )


def _quality(data: str, measure: str, rows: Sequence[Row]) -> Table:
    kinds = [kind for kind in quality_kinds(rows) if kind in (*SORTS, ENDED)]
    return Table(
        title=f"Quality on {data}: {MEASURES[measure]}",
        note="Mean over n cases, in brackets the 95% interval of a bootstrap over cases." + _NOTES.get(measure, ""),
        columns=("editor", "T", "mode", *kinds, "n"),
        rows=tuple((*_name(row), *(_with_interval(row, kind) for kind in kinds), _count(row.get("n"))) for row in rows),
    )


def _kinds(data: str, rows: Sequence[Row]) -> Table:
    kinds = [kind for kind in quality_kinds(rows) if kind not in (*SORTS, ENDED)]
    return Table(
        title=f"Quality on {data} by the data set's own kinds of questions: {MEASURES[FREE]}",
        columns=("editor", "T", "mode", *kinds),
        rows=tuple((*_name(row), *(_with_interval(row, kind) for kind in kinds)) for row in rows) if kinds else (),
    )


def _ablations(data: str, contents: Contents) -> Table:
    wanted = ("recipe", *contents.ablations)
    rows = [row for row in contents.rows(data=data, measure=FREE) if row["editor"] in wanted]
    table = _quality(data, FREE, rows)
    return Table(title=f"Ablations of training on {data}", note=table.note, columns=table.columns, rows=table.rows)


def _retrieval(data: str, rows: Sequence[Row]) -> list[Table]:
    """Over all questions, and by sort of question."""
    names = distinct(name.removesuffix(LOW) for row in rows for name in row if name.endswith(LOW))
    names = [
        name for name in names if name.startswith(RETRIEVAL) and any(number(row, name) is not None for row in rows)
    ]
    found = [row for row in rows if any(number(row, name) is not None for name in names)]
    of_sort = [name for name in names if name.endswith(tuple(f"_{sort}" for sort in SORTS))]
    titles = {
        f"Retrieval on {data}": [name for name in names if name not in of_sort],
        f"Retrieval on {data} by sort of question": of_sort,
    }
    return [
        Table(
            title=title,
            note="Apart from generation. Right fact: the right one is nearest, applied or not; right decision: it is "
            "applied, or none where none answers. False fire: an edit is applied though none answers; missed, wrong "
            "fact: none, or another, is applied though one answers.",
            columns=("editor", "T", "mode", *(name.removeprefix(RETRIEVAL).replace("_", " ") for name in shown)),
            rows=tuple((*_name(row), *(_with_interval(row, name) for name in shown)) for row in found) if shown else (),
        )
        for title, shown in titles.items()
    ]


_EFFICIENCY: dict[str, tuple[str, Callable[[float], str]]] = {
    "seconds_per_edit": ("s an edit", lambda value: f"{value:.3g}"),
    "ttft_s": ("time to first token, ms", lambda value: f"{value * 1e3:.2f}"),
    "unedited_ttft_s": ("the same, unedited", lambda value: f"{value * 1e3:.2f}"),
    "tokens_per_s": ("tokens a s", lambda value: f"{value:.1f}"),
    "unedited_tokens_per_s": ("the same, unedited", lambda value: f"{value:.1f}"),
    "state_bytes_per_fact": ("state, bytes a fact", lambda value: f"{value:,.0f}"),
    "peak_memory_bytes": ("peak memory, MiB", lambda value: f"{value / 2**20:,.0f}"),
    "seconds": ("cell, s", lambda value: f"{value:.1f}"),
}


def _efficiency(data: str, rows: Sequence[Row]) -> Table:
    names = [name for name in _EFFICIENCY if any(number(row, name) is not None for row in rows)]

    def shown(row: Row, name: str) -> str:
        value = number(row, name)
        return MISSING if value is None else _EFFICIENCY[name][1](value)

    return Table(
        title=f"Efficiency on {data}",
        note="With the T edits in force; cells run side by side, one a worker, so compare within a column.",
        columns=("editor", "T", "mode", *(_EFFICIENCY[name][0] for name in names)),
        rows=tuple((*_name(row), *(shown(row, name) for name in names)) for row in rows) if names else (),
    )


def _ability(rows: Sequence[Row]) -> Table:
    columns = distinct(name for row in rows for name, value in row.items() if not isinstance(value, (list, dict)))
    return Table(
        title="General ability before and after edits",
        note="By lm-evaluation-harness; the query is the question without its answer.",
        columns=tuple(name.replace("_", " ") for name in columns),
        rows=tuple(tuple(_plain(row.get(name)) for name in columns) for row in rows),
    )


def _failed(contents: Contents) -> Table:
    return Table(
        title="Cells that failed",
        columns=("editor", "T", "mode", "data", "reason"),
        rows=tuple(
            (one.editor, _count(one.num_edits), one.mode, one.data, _short(one.reason, limit=400))
            for one in contents.failed
        ),
    )


def _of(rows: Sequence[Row], measure: str) -> list[Row]:
    return [row for row in rows if row["measure"] == measure]


def _name(row: Row) -> tuple[str, str, str]:
    return row["editor"], _count(row["T"]), row["mode"]


def _with_interval(row: Row, kind: str) -> str:
    value, low, high = number(row, kind), number(row, kind + LOW), number(row, kind + HIGH)
    if value is None:
        return MISSING
    return f"{value:.3f}" + (f" ({low:.3f}–{high:.3f})" if low is not None and high is not None else "")


def _count(value: int | str | None) -> str:
    return MISSING if value is None else value if isinstance(value, str) else f"{value:,}"


def _plain(value: object) -> str:
    if value is None or value != value:
        return MISSING
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _short(text: str, *, limit: int = SHOWN_CHARACTERS) -> str:
    line = " ".join(text.split())
    return line if len(line) <= limit else line[: limit - 1] + "…"
