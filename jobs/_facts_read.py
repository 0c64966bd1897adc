"""Commands of `jobs/facts.py` that read a table."""

from collections.abc import Mapping
from dataclasses import dataclass

from jobs._facts import Command, TableArgs, VersionArgs, check_limit, show
from recipe_ray.store.commits import read_commits
from recipe_ray.store.queries import list_facts
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


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{value} {name.replace('_', ' ')}" for name, value in counts.items() if value)


READ_COMMANDS: dict[str, type[Command]] = {"list": ListFacts, "log": Log}
