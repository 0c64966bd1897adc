"""The figures of a report, as SVG: equal for equal rows, to the byte."""

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure as Canvas

from recipe_ray.eval.cases import SORTS
from recipe_ray.eval.report.contents import FREE, HIGH, LOW, Contents, Row, number
from recipe_ray.eval.results import MODES

_SETTINGS = {"svg.hashsalt": "recipe-ray", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
_MARKS = "osD^v<>PX*hp"
_NUM_BINS = 40
AVERAGED = ("reliability", "generality", "locality")
_ROOM_FOR_LEGEND = 1.1  # inches below the axes


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A drawing.

    Attributes:
        name: of its file, without folder and ending.
        title: what it shows.
        svg: the drawing.
    """

    name: str
    title: str
    svg: str


def all_figures(contents: Contents) -> list[Figure]:
    """Quality against edits at once, quality against seconds, and margins over the sentinel, data set by data set."""
    figures: list[Figure] = []
    for data in contents.data_sets:
        rows = contents.rows(data=data, measure=FREE)
        for mode in MODES[1:]:
            # A single edit is where the curves of both modes begin.
            of_mode = [row for row in rows if row["mode"] in (mode, MODES[0])]
            if any(row["mode"] == mode for row in of_mode):
                title = f"Quality on {data} against edits at once, {mode} (free generation)"
                figures.append(_drawn(f"quality-{data}-{mode}", title, _quality_by_count, of_mode))
        timed = _at_most_edits([row for row in rows if number(row, "seconds_per_edit")])
        if timed:
            title = f"Quality on {data} against seconds an edit, at the most edits at once"
            figures.append(_drawn(f"seconds-{data}", title, _quality_by_seconds, timed))
        figures += _margins(contents, data)
    return figures


def _drawn(name: str, title: str, draw: Callable[..., None], *args: Any, panels: int = 3) -> Figure:
    with matplotlib.rc_context(_SETTINGS):
        canvas = Canvas(figsize=(3.6 * panels, 3 + _ROOM_FOR_LEGEND), layout="constrained")
        draw(canvas, *args)
        text = io.StringIO()
        canvas.savefig(text, format="svg", metadata={"Date": None})
    return Figure(name=re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-").lower(), title=title, svg=text.getvalue())


def _quality_by_count(canvas: Any, rows: Sequence[Row]) -> None:
    """A panel a kind of question, a line an editor, bars the 95% intervals."""
    kinds = [kind for kind in SORTS if any(number(row, kind) is not None for row in rows)]
    for axes, kind in zip(np.atleast_1d(canvas.subplots(1, len(kinds), sharey=True)), kinds, strict=True):
        for place, editor in enumerate(dict.fromkeys(row["editor"] for row in rows)):
            points = {row["T"]: row for row in rows if row["editor"] == editor and number(row, kind) is not None}
            counts = sorted(points)
            values = [number(points[count], kind) for count in counts]
            axes.errorbar(
                counts,
                values,
                yerr=_bars([points[count] for count in counts], kind),
                label=editor,
                **_style(place),
                linewidth=1,
                elinewidth=0.6,
            )
        axes.set(title=kind.replace("_", ", "), xlabel="edits at once", xscale="log", ylim=(-0.03, 1.03))
        axes.grid(alpha=0.25)
    _legend(canvas)


def _bars(rows: Sequence[Row], kind: str) -> Any:
    """Lengths of the bars below and above, [2, points]; an interval that was not measured has none."""
    lengths = []
    for row in rows:
        value, low, high = (number(row, name) for name in (kind, kind + LOW, kind + HIGH))
        assert value is not None  # as the caller chose
        lengths.append((max(0.0, value - low) if low is not None else 0, max(0.0, high - value) if high else 0))
    return np.array(lengths).T if lengths else None


def _quality_by_seconds(canvas: Any, rows: Sequence[Row]) -> None:
    """A point an editor: the mean of its reliability, generality and locality."""
    axes = canvas.subplots()
    for place, row in enumerate(rows):
        values = [value for kind in AVERAGED if (value := number(row, kind)) is not None]
        if values:
            label = f"{row['editor']} ({row['T']:,}, {row['mode']})"
            axes.plot([number(row, "seconds_per_edit")], [np.mean(values)], label=label, **_style(place), linestyle="")
    axes.set(xscale="log", xlabel="seconds an edit", ylabel=f"mean of {', '.join(AVERAGED)}")
    axes.set_ylim(-0.03, 1.03)
    axes.grid(alpha=0.25)
    _legend(canvas)


def _margins(contents: Contents, data: str) -> list[Figure]:
    """A histogram an editor that has a sentinel, at its most edits at once."""
    figures = []
    with_margins = [
        cell
        for cell in contents.cells
        if cell.rows[0]["data"] == data and cell.margins_related and cell.margins_unrelated
    ]
    last = {}
    for cell in sorted(with_margins, key=lambda one: one.rows[0]["T"]):
        last[cell.rows[0]["editor"]] = cell
    for editor, cell in sorted(last.items()):
        row = cell.rows[0]
        title = f"Margin over the sentinel on {data}: {editor}, {row['T']:,} edits at once"
        figures.append(
            _drawn(
                f"margins-{data}-{editor}",
                title,
                _histogram,
                np.asarray(cell.margins_related),
                np.asarray(cell.margins_unrelated),
                panels=2,
            )
        )
    return figures


def _histogram(canvas: Any, related: Any, unrelated: Any) -> None:
    axes = canvas.subplots()
    both = np.concatenate([related, unrelated])
    both = both[np.isfinite(both)]
    edges = np.linspace(both.min(), both.max() + 1e-9, _NUM_BINS + 1) if len(both) else _NUM_BINS
    for values, label in ((related, "an edit answers it"), (unrelated, "no edit answers it")):
        axes.hist(values[np.isfinite(values)], bins=edges, alpha=0.6, label=f"{label} ({len(values):,} questions)")
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set(xlabel="best fact's score − sentinel's; a fact is applied right of 0", ylabel="questions")
    _legend(canvas)


def _at_most_edits(rows: Sequence[Row]) -> list[Row]:
    """Of each editor the row of most edits at once; of two ways to make them, the later in the table."""
    last: dict[str, Row] = {}
    for row in sorted(rows, key=lambda one: one["T"]):
        last[row["editor"]] = row
    order = dict.fromkeys(row["editor"] for row in rows)
    return [last[editor] for editor in order]


def _style(place: int) -> dict[str, Any]:
    return {"color": f"C{place % 10}", "marker": _MARKS[place % len(_MARKS)], "markersize": 4}


def _legend(canvas: Any) -> None:
    handles, labels = canvas.axes[0].get_legend_handles_labels()
    canvas.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False, fontsize="small")
