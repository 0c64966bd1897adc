"""Commands of `jobs/facts.py` that change single facts, or clear up after an ingest."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.compute as pc
import tyro

from jobs._facts import Command, TableArgs, check_limit, show
from recipe_ray.errors import ConfigError, TableError
from recipe_ray.store.delta import open_delta
from recipe_ray.store.pointer import follow
from recipe_ray.store.quarantine import clear_quarantine, export_quarantine, quarantine_uri, read_quarantine
from recipe_ray.store.upkeep.deletion import Selection, delete_facts

_QUARANTINE_COLUMNS = ("file", "line", "reason", "raw", "dump_hash")


@dataclass(frozen=True, slots=True, kw_only=True)
class Delete(TableArgs):
    """Delete facts: no encoder is needed, and older versions keep them (`erase` leaves none).

    Attributes:
        fact_ids: ids of live facts.
        namespace: of the ids; needed where one is live in several.
        where_namespace: delete every fact of a namespace.
        source: delete every fact from a source; with --where-namespace, of that namespace.
        updated_at: as of when the facts are not so any more, ISO 8601; now if not given.
        missing_ok: pass over ids that are not live.
        dry_run: show what would be deleted, and write nothing.
        limit: facts shown; all are counted.
    """

    fact_ids: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="[ID ...]")] = ()
    namespace: str | None = None
    where_namespace: str | None = None
    source: str | None = None
    updated_at: str | None = None
    missing_ok: bool = False
    dry_run: bool = False
    limit: int = 50

    def run(self) -> None:
        """Delete."""
        check_limit(self.limit)
        selection = Selection(
            fact_ids=self.fact_ids,
            namespace=self.namespace,
            where_namespace=self.where_namespace,
            source=self.source,
        )
        report = delete_facts(
            self.table,
            selection,
            updated_at=_moment(self.updated_at),
            missing_ok=self.missing_ok,
            dry_run=self.dry_run,
            num_first=self.limit,
        )
        done = "would be deleted" if self.dry_run else "deleted"
        passed_over = f", {len(report.missing)} not live" if report.missing else ""
        show(
            report.first.to_pylist(),
            ("namespace", "fact_id", "statement", "source", "updated_at"),
            as_json=self.json,
            summary={
                "table": report.table,
                "version": report.version,
                "deleted": report.num_deleted,
                "missing": list(report.missing),
                "dry_run": self.dry_run,
            },
            said=f"table {report.table} version {report.version}: {report.num_deleted} facts {done}{passed_over}",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Quarantine(TableArgs):
    """Rows of dumps that are no facts: list them, write them out to be repaired, clear them.

    Attributes:
        dump: only rows of the dump with this hash.
        export: write the rows' texts to a new file, JSON Lines to be repaired and ingested.
        clear: remove the rows for good, after the export where one is asked for.
        limit: rows shown.
    """

    dump: str | None = None
    export: str | None = None
    clear: bool = False
    limit: int = 50

    def run(self) -> None:
        """List, export or clear."""
        check_limit(self.limit)
        uri = follow(self.table)
        if open_delta(quarantine_uri(uri)) is None and open_delta(uri) is None:
            raise TableError(f"{uri}: there is neither a table nor a quarantine; check the path")
        if self.export is None and not self.clear:
            self._list(uri)
            return
        done: dict[str, Any] = {}
        if self.export is not None:
            done["exported"] = export_quarantine(uri, self.export, dump_hash=self.dump)
        if self.clear:
            done["cleared"] = clear_quarantine(uri, dump_hash=self.dump)
        said = ", ".join(f"{count} rows {name}" for name, count in done.items())
        show([], (), as_json=self.json, summary=done, said=said if self.export is None else f"{said} ({self.export})")

    def _list(self, uri: str) -> None:
        rows = read_quarantine(uri)
        if self.dump is not None:
            rows = rows.filter(pc.equal(rows.column("dump_hash"), pa.scalar(self.dump)))
        shown = rows.slice(0, self.limit)
        more = f", the first {len(shown)} shown" if len(shown) < len(rows) else ""
        show(
            shown.to_pylist(),
            _QUARANTINE_COLUMNS,
            as_json=self.json,
            summary={"table": uri, "rows": len(rows), "shown": len(shown)},
            said=f"quarantine of {uri}: {len(rows)} rows{more}",
        )


def _moment(text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError) as error:  # at the ends of the calendar UTC is beyond it
        raise ConfigError(f"updated_at is {text!r}; give ISO 8601, such as 2026-01-31T08:00:00Z") from error


EDIT_COMMANDS: dict[str, type[Command]] = {"delete": Delete, "quarantine": Quarantine}
