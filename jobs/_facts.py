"""What the commands of `jobs/facts.py` share: which table, and how rows are shown."""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from recipe_ray.errors import ConfigError

_WIDTH = 160  # of tables that go into a file or a pipe


class Command(Protocol):
    """A subcommand: a dataclass of its flags."""

    def run(self) -> None:
        """Do it, and say what was done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TableArgs:
    """Which table, and how to answer.

    Attributes:
        table: the table of facts, local or s3://.
        json: answer in JSON, one object a line.
    """

    table: str
    json: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionArgs(TableArgs):
    """Which version of which table, and which of its facts.

    Attributes:
        version: of the table; the last if not given.
        namespace: of the facts; all if not given.
    """

    version: int | None = None
    namespace: str | None = None


def check_limit(limit: int) -> None:
    """Refuse a number of rows that cannot be.

    Raises:
        ConfigError: it is negative.
    """
    if limit < 0:
        raise ConfigError(f"limit is {limit}; give 0 or more")


def check_version(version: int | None) -> None:
    """Refuse a number that no version can have.

    Raises:
        ConfigError: it is negative, or too large for a log.
    """
    if version is not None and not 0 <= version < 2**63:
        raise ConfigError(f"version is {version}; give 0 or more, as `log` lists them")


def show(
    rows: Iterable[Mapping[str, Any]], columns: Sequence[str], *, as_json: bool, summary: Mapping[str, Any], said: str
) -> None:
    """Show rows, and then what they come to.

    Args:
        rows: values by name; of columns, and of others that JSON alone shows.
        columns: of the table for people.
        as_json: one object a line, the last one {"summary": …}: where it is missing, the answer is not whole.
        summary: for JSON; read after the rows, so it may be filled while they are.
        said: the summary for people.
    """
    if as_json:
        for row in rows:
            say_json(row)
        say_json({"summary": dict(summary)})
        return
    table = Table(*columns, box=box.SIMPLE_HEAD)
    for row in rows:
        table.add_row(*(Text(as_text(row[name]), overflow="fold") for name in columns))
    console = Console(width=None if sys.stdout.isatty() else _WIDTH)
    if table.row_count:
        console.print(table)
    say(said)


def say(text: str) -> None:
    """Say a line to a person."""
    print(text, flush=True)


def say_json(row: Mapping[str, Any]) -> None:
    """Say one JSON object on one line."""
    print(json.dumps(row, ensure_ascii=False, default=_plain), flush=True)


def _plain(value: object) -> str:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, bytes):
        return value.hex()
    raise TypeError(f"{type(value).__name__} is no value of a row")


def as_text(value: object) -> str:
    """A value of a row, for a person."""
    if value is None:
        return ""
    if isinstance(value, datetime):
        return value.strftime("%Y-%m-%d %H:%M:%S")
    return f"{value:.4g}" if isinstance(value, float) else str(value)
