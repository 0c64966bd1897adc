"""Commands of `jobs/facts.py` that read a table."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import tyro

from jobs._facts import Command, TableArgs, VersionArgs, as_text, check_limit, check_version, say, say_json, show
from recipe_ray.distributed.progress import progress
from recipe_ray.errors import ConfigError
from recipe_ray.store.files import localize_editor
from recipe_ray.store.indexes.artefacts import EncodeQueries
from recipe_ray.store.reading.changes import KINDS, Change, read_changes
from recipe_ray.store.reading.commits import read_commits
from recipe_ray.store.reading.contradictions import Said, find_contradictions
from recipe_ray.store.reading.export import export_facts
from recipe_ray.store.reading.near import find_near
from recipe_ray.store.reading.queries import find_fact, list_facts, read_history
from recipe_ray.store.table import FactTable

_FACT_COLUMNS = ("namespace", "fact_id", "statement", "subject", "source", "updated_at", "expires_at")


@dataclass(frozen=True, slots=True, kw_only=True)
class ListFacts(VersionArgs):
    """Live facts, by namespace and id.

    Attributes:
        prefix: of the ids.
        contains: a text in statement, prompt, target or subject, whatever the case.
        limit: facts shown; all are counted. `export` gives all.
    """

    prefix: str = ""
    contains: str = ""
    limit: int = 50

    def run(self) -> None:
        """List."""
        check_limit(self.limit)
        check_version(self.version)
        table = FactTable.open(self.table, self.version)
        found = list_facts(
            table, limit=self.limit, namespace=self.namespace, prefix=self.prefix, contains=self.contains
        )
        shown = len(found.facts)
        show(
            found.facts.to_pylist(),
            _FACT_COLUMNS,
            as_json=self.json,
            summary={"table": table.uri, "version": table.version, "facts": found.num_facts, "shown": shown},
            said=f"table {table.uri} version {table.version}: {found.num_facts} facts"
            + (f", the first {shown} shown; --limit shows more, export all" if shown < found.num_facts else ""),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Log(TableArgs):
    """Versions of the table: when each was made, by what, and what it counted.

    Attributes:
        limit: the newest versions shown.
    """

    limit: int = 50

    def run(self) -> None:
        """Tell the log."""
        check_limit(self.limit)
        table = FactTable.open(self.table)
        commits = list(read_commits(table.uri, until=table.version))
        shown = commits[len(commits) - min(self.limit, len(commits)) :]
        show(
            (
                {
                    "version": commit.version,
                    "at": commit.at,
                    "operation": commit.operation,
                    "dump_hash": commit.dump_hash,
                    "counts": commit.counts if self.json else _counts(commit.counts),
                    "added_files": len(commit.added),
                    "removed_files": commit.num_removed,
                }
                for commit in shown
            ),
            ("version", "at", "operation", "dump_hash", "counts", "added_files", "removed_files"),
            as_json=self.json,
            summary={"table": table.uri, "version": table.version, "versions": len(commits), "shown": len(shown)},
            said=f"table {table.uri} version {table.version}: {len(commits)} versions in the log"
            + (f", the last {len(shown)} shown" if len(shown) < len(commits) else ""),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Show(VersionArgs):
    """One fact, or why there is none.

    Attributes:
        fact_id: its id.
    """

    fact_id: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="ID")]

    def run(self) -> None:
        """Show what stands, in each namespace that has heard of the id."""
        check_version(self.version)
        table = FactTable.open(self.table, self.version)
        states = find_fact(table, self.fact_id, namespace=self.namespace)
        common = {"table": table.uri, "version": table.version, "fingerprint": table.identity.fingerprint}
        if not states:
            absent = {"fact_id": self.fact_id, "status": "never there", **common}
            where = "" if self.namespace is None else f" of namespace {self.namespace!r}"
            self._say(absent, f"{self.fact_id}{where} was never in table {table.uri} version {table.version}")
        for number, state in enumerate(states):
            if number and not self.json:
                say("")
            vectors = "none"
            if state.vectors_path is not None:
                vectors = (
                    "in this file"
                    if state.vectors_path == state.path
                    else f"of the same statement, before: {state.vectors_path}"
                )
            row = {"status": state.status, **state.event, "file": state.path, "vectors": vectors, **common}
            self._say(row, "\n".join(f"{name:12} {as_text(value)}".rstrip() for name, value in row.items()))

    def _say(self, row: Mapping[str, Any], said: str) -> None:
        if self.json:
            say_json(row)
        else:
            say(said)


@dataclass(frozen=True, slots=True, kw_only=True)
class History(VersionArgs):
    """All that an id went through, in the order that decides, and what brought it.

    Attributes:
        fact_id: the id.
    """

    fact_id: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="ID")]

    def run(self) -> None:
        """Tell the history."""
        check_version(self.version)
        table = FactTable.open(self.table, self.version)
        past = read_history(table, self.fact_id, namespace=self.namespace)
        show(
            (
                {
                    "stands": event.stands
                    if self.json
                    else "stands" * event.stands or "not held" * (not event.is_held),
                    "held": event.is_held,
                    **event.event,
                    "version": None if event.commit is None else event.commit.version,
                    "committed_at": None if event.commit is None else event.commit.at,
                    "operation": None if event.commit is None else event.commit.operation,
                    "dump_hash": None if event.commit is None else event.commit.dump_hash,
                }
                for event in past
            ),
            (
                "namespace",
                "op",
                "statement",
                "updated_at",
                "ingested_at",
                "version",
                "operation",
                "dump_hash",
                "stands",
            ),
            as_json=self.json,
            summary={"table": table.uri, "version": table.version, "fact_id": self.fact_id, "events": len(past)},
            said=f"table {table.uri} version {table.version}: {len(past)} events of {self.fact_id}",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Diff(TableArgs):
    """What became of the facts between two versions: new, changed, deleted, expired, gone (rolled back or erased).

    Attributes:
        before: one version.
        after: another, which may be the older one.
        namespace: of the facts; all if not given.
        limit: facts shown; all are counted.
    """

    before: Annotated[tyro.conf.Positional[int], tyro.conf.arg(metavar="BEFORE")]
    after: Annotated[tyro.conf.Positional[int], tyro.conf.arg(metavar="AFTER")]
    namespace: str | None = None
    limit: int = 50

    def run(self) -> None:
        """Compare."""
        check_limit(self.limit)
        check_version(self.before)
        check_version(self.after)
        counts: dict[str, Any] = {"table": self.table, "before": self.before, "after": self.after}
        counts |= dict.fromkeys(KINDS, 0)
        rows: list[dict[str, Any]] = []
        for change in read_changes(self.table, self.before, self.after, namespace=self.namespace):
            counts[change.kind] += 1
            if len(rows) < self.limit:
                rows.append(self._row(change))
        num_changes = sum(counts[kind] for kind in KINDS)
        show(
            rows,
            ("change", "namespace", "fact_id", "before", "after"),
            as_json=self.json,
            summary=counts,
            said=", ".join(f"{counts[kind]} {kind}" for kind in KINDS)
            + (f"; the first {len(rows)} shown" if len(rows) < num_changes else ""),
        )

    def _row(self, change: Change) -> dict[str, Any]:
        before, after = change.before, change.after
        if not self.json:  # a person wants the statements, or what else changed
            before, after = _differing(before, after)
        return {
            "change": change.kind,
            "namespace": change.namespace,
            "fact_id": change.fact_id,
            "before": before,
            "after": after,
        }


def _differing(before: Mapping[str, Any] | None, after: Mapping[str, Any] | None) -> tuple[Any, Any]:
    """What two states of a fact say for a person: the statements, or where these are equal, the other fields."""
    if before is None or after is None or before["statement"] != after["statement"]:
        return (before or {}).get("statement"), (after or {}).get("statement")
    names = [name for name in before if name != "updated_at" and before[name] != after[name]]
    one, other = (", ".join(f"{name} {as_text(said[name])}" for name in names) for said in (before, after))
    return one, other


@dataclass(frozen=True, slots=True, kw_only=True)
class Export(VersionArgs):
    """Live facts as a dump that ingest reads.

    Attributes:
        output: a new file, local or s3://: .jsonl or .csv, also with .gz or .zst after it, or .parquet.
        events: all that stands, deletes and expired facts too, which keep an older dump from bringing facts back.
    """

    output: str
    events: bool = False

    def run(self) -> None:
        """Write the file."""
        check_version(self.version)
        table = FactTable.open(self.table, self.version)
        report = export_facts(table, self.output, events=self.events, namespace=self.namespace)
        if self.json:
            say_json(asdict(report))
        else:
            what = "events" if self.events else "facts"
            say(
                f"{report.output}: {report.num_rows} {what} of table {report.table} version {report.version}, "
                f"{report.size_bytes / 1e6:.1f} MB in {report.seconds:.1f} s"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Conflicts(VersionArgs):
    """Live facts that contradict each other under different ids: one subject and prompt, different targets.

    Attributes:
        near: look also for facts whose questions may get another fact; this takes longer.
        editor: the table's: its directory, local or s3://, or the name of a published one; facts are then asked for by
            their prompts, else roughly by their keys.
        share: of the score of the fact that is asked for, from which on another is near; 0.9 by prompts, 0.6 by keys.
        limit: contradictions shown, and near pairs; all are counted.
    """

    near: bool = False
    editor: str | None = None
    share: float | None = None
    limit: int = 50

    def run(self) -> None:
        """Look."""
        check_limit(self.limit)
        for name in ("editor", "share"):
            if getattr(self, name) is not None and not self.near:
                raise ConfigError(f"{name} is given without near; give near too")
        check_version(self.version)
        table = FactTable.open(self.table, self.version)
        encode_queries = None if self.editor is None else query_encoder(self.editor, table)
        num_found = 0
        rows: list[dict[str, Any]] = []
        for found in find_contradictions(table, namespace=self.namespace):
            num_found += 1
            if num_found <= self.limit:
                rows += [self._row("says", num_found, found.namespace, fact, {}) for fact in found.facts]
        summary: dict[str, Any] = {"table": table.uri, "version": table.version, "contradictions": num_found}
        said = f"table {table.uri} version {table.version}: {num_found} contradictions"
        if self.near:
            report = find_near(
                table,
                limit=self.limit,
                encode_queries=encode_queries,
                share=self.share,
                namespace=self.namespace,
                progress=progress,
            )
            for number, pair in enumerate(report.pairs, num_found + 1):
                measured = {"score": pair.score, "own_score": pair.own_score, "sentinel": pair.sentinel}
                rows += [
                    self._row("asked for", number, pair.namespace, pair.asked, measured),
                    self._row("may be got", number, pair.namespace, pair.got, measured),
                ]
            summary |= {"facts": report.num_facts, "near": report.num_asked}
            said += f"; of {report.num_facts} facts, {report.num_asked} whose questions may get another"
        columns = ("number", "kind", "namespace", "fact_id", "subject", "prompt", "target")
        show(
            rows,
            (*columns, "score", "own_score", "sentinel") if self.near else columns,
            as_json=self.json,
            summary=summary,
            said=said,
        )

    def _row(self, kind: str, number: int, namespace: str, fact: Said, measured: Mapping[str, float]) -> dict[str, Any]:
        scores = {name: measured.get(name) for name in ("score", "own_score", "sentinel")} if self.near else {}
        return {"number": number, "kind": kind, "namespace": namespace, **asdict(fact), **scores}


def query_encoder(editor: str, table: FactTable) -> EncodeQueries:
    """What encodes questions as the table's editor does.

    Raises:
        EditorError: the editor cannot be read.
        TableError: another editor encoded the table.
    """
    # Here, not above: without an editor no command needs PyTorch.
    from recipe_ray.model.editor import load_editor

    loaded = load_editor(localize_editor(editor))
    table.check_editor(loaded.identity())
    return loaded.encode_queries


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{value} {name.replace('_', ' ')}" for name, value in counts.items() if value)


READ_COMMANDS: dict[str, type[Command]] = {
    "list": ListFacts,
    "show": Show,
    "history": History,
    "diff": Diff,
    "log": Log,
    "export": Export,
    "conflicts": Conflicts,
}
