"""A report's files as texts: Markdown, one HTML page that needs nothing beside it, figures, JSON."""

import base64
import dataclasses
import json
import math
import re
from collections.abc import Sequence
from typing import Any

import jinja2

from recipe_ray.eval.report.contents import Contents, Row
from recipe_ray.eval.report.figures import Figure, all_figures
from recipe_ray.eval.report.tables import Table, all_tables, examples, provenance

TITLE = "Knowledge editing: what it does to a model"
MARKDOWN_FILE, HTML_FILE, FIGURES_FOLDER = "report.md", "report.html", "figures"
RESULTS_FILE, FAILED_FILE = "results.json", "failed.json"
PROTOCOL = (
    "Every editor gets the same cases; at T edits at once the cases are taken in groups of T, each group edited apart "
    "from the others: single is one edit, batch makes T by one call, lifelong one after another (alone, where an "
    "editor's batch is the same). The query is the prompt alone. Free generation is greedy, up to the first full stop, "
    "and compared as text; teacher forcing is the share of the answer's tokens that are most likely, each after the "
    "right ones before it. Locality is compared with the unedited LLM's own output. A dash is what was not measured."
)
# What every row says, measured or not, so that a reader need not ask which are there.
RESULT_NAMES = (
    *("editor", "data", "llm", "T", "mode", "measure", "reliability", "generality", "locality", "n"),
    *("seconds_per_edit", "tokens_per_s", "command", "commit"),
)

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem; color: #1a1a1a; }
h2 { margin-top: 2.5rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13px; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid #ddd; text-align: left; vertical-align: top; }
th { position: sticky; top: 0; background: #f4f4f4; }
td { overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
figure { margin: 1rem 0; }
img { max-width: 100%; }
.note, figcaption { color: #555; font-size: 13px; }
</style>
</head>
<body>
<h1>{{ title }}</h1>
<p>{{ protocol }}</p>
{%- macro show(table) %}
<section>
<h2>{{ table.title }}</h2>
{%- if table.note %}
<p class="note">{{ table.note }}</p>
{%- endif %}
<div class="wide"><table>
<thead><tr>{% for name in table.columns %}<th>{{ name }}</th>{% endfor %}</tr></thead>
<tbody>
{%- for row in table.rows %}
<tr>{% for value in row %}<td>{{ value }}</td>{% endfor %}</tr>
{%- endfor %}
</tbody>
</table></div>
</section>
{%- endmacro %}
{{- show(made) }}
{%- for figure, image in figures %}
<figure>
<img alt="{{ figure.title }}" src="data:image/svg+xml;base64,{{ image }}">
<figcaption>{{ figure.title }}</figcaption>
</figure>
{%- endfor %}
{%- for table in tables %}
{{- show(table) }}
{%- endfor %}
</body>
</html>
"""


def render(contents: Contents) -> dict[str, str]:
    """The report's files by their paths within its folder; equal contents give equal files."""
    tables = [*all_tables(contents), *(table for table in (examples(contents),) if table.rows)]
    figures = all_figures(contents)
    made = provenance(contents)
    return {
        MARKDOWN_FILE: _markdown(made, tables, figures),
        HTML_FILE: _html(made, tables, figures),
        RESULTS_FILE: _results(contents),
        FAILED_FILE: _json([dataclasses.asdict(one) for one in contents.failed]),
        **{f"{FIGURES_FOLDER}/{figure.name}.svg": figure.svg for figure in figures},
    }


def _markdown(made: Table, tables: Sequence[Table], figures: Sequence[Figure]) -> str:
    parts = [f"# {TITLE}", PROTOCOL, _markdown_table(made)]
    parts += [
        f"![{markdown_text(figure.title)}]({FIGURES_FOLDER}/{figure.name}.svg)\n\n{markdown_text(figure.title)}"
        for figure in figures
    ]
    return "\n\n".join([*parts, *map(_markdown_table, tables)]) + "\n"


def _markdown_table(table: Table) -> str:
    lines = [f"## {markdown_text(table.title)}", ""]
    if table.note:
        lines += [table.note, ""]
    lines += [_markdown_row(table.columns), "|" + "---|" * len(table.columns), *map(_markdown_row, table.rows)]
    return "\n".join(lines)


def _markdown_row(values: Sequence[str]) -> str:
    return "| " + " | ".join(map(markdown_text, values)) + " |"


def markdown_text(text: str) -> str:
    """A text as Markdown shows it literally, also within a table: one line, nothing of it markup."""
    line = " ".join(text.split())
    line = re.sub(r"([\\`*\[\]|~]|(?<!\w)_|_(?!\w))", r"\\\1", line)
    return line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _html(made: Table, tables: Sequence[Table], figures: Sequence[Figure]) -> str:
    page = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(_PAGE)
    images = [(figure, base64.b64encode(figure.svg.encode()).decode()) for figure in figures]
    return page.render(title=TITLE, protocol=PROTOCOL, made=made, tables=tables, figures=images) + "\n"


def _results(contents: Contents) -> str:
    return _json([_finite({**dict.fromkeys(RESULT_NAMES), **row}) for row in contents.rows()])


def _json(rows: Sequence[Row]) -> str:
    return json.dumps(rows, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _finite(row: Row) -> dict[str, Any]:
    """JSON knows neither NaN nor infinity: what is no number is null."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in row.items()
    }
