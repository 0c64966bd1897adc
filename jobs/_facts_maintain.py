"""Commands of `jobs/facts.py` that look after a table."""

import sys
from collections import Counter
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Annotated, Literal

import tyro

from jobs._facts import Command, TableArgs, check_limit, check_version, show
from recipe_ray.distributed.progress import progress
from recipe_ray.errors import ConfigError
from recipe_ray.store.upkeep.compaction import compact
from recipe_ray.store.upkeep.erasure import erase
from recipe_ray.store.upkeep.maintenance import rollback, verify
from recipe_ray.store.upkeep.migration import migrate
from recipe_ray.store.upkeep.vacuum import vacuum

_MB = 1e6
_MAX_AGE = timedelta(days=36525)  # a century: before the present, the calendar has that


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollback(TableArgs):
    """Make the content of an older version the newest version; the versions between stay.

    Attributes:
        to: the older version.
    """

    to: int

    def run(self) -> None:
        """Roll back."""
        check_version(self.to)
        report = rollback(self.table, self.to)
        dumps = (
            f"; {len(report.undone)} dumps committed since are undone and still known, so only `ingest.py --again` "
            "brings one back"
            if report.undone
            else ""
        )
        show(
            [asdict(dump) for dump in report.undone],
            ("version", "dump_hash", "committed_at"),
            as_json=self.json,
            summary={**asdict(report), "undone": len(report.undone)},
            said=f"table {report.table} version {report.version} tells what version {report.to} tells "
            f"({report.num_files_restored} files restored, {report.num_files_removed} removed, "
            f"{report.seconds:.1f} s){dumps}",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Compact(TableArgs):
    """Fold the table: of every fact the event that stands, in few files; the facts stay the same.

    Attributes:
        drop_tombstones_older_than: days after which what keeps late dumps from bringing deleted and expired facts back
            goes too; kept if not given.
    """

    drop_tombstones_older_than: float | None = None

    def run(self) -> None:
        """Compact."""
        days = self.drop_tombstones_older_than
        age = None if days is None else _age("drop_tombstones_older_than", days, timedelta(days=1))
        report = compact(self.table, drop_tombstones_older_than=age, progress=progress)
        show(
            [],
            (),
            as_json=self.json,
            summary=asdict(report),
            said=f"table {report.table} version {report.version}: "
            f"{report.num_rewritten} of {report.num_partitions} partitions folded, {report.num_dropped} events and "
            f"{report.num_tombstones_dropped} tombstones dropped\n"
            f"{report.num_files_before} files of {report.size_bytes_before / _MB:.1f} MB became {report.num_files} of "
            f"{report.size_bytes / _MB:.1f} MB, in {report.seconds:.1f} s; vacuum gives the disk back",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Vacuum(TableArgs):
    """Remove files that no version within the retention needs, and what broke off.

    Attributes:
        retention_hours: how long a version stays readable after another took its place.
        dry_run: list only.
        limit: files shown of a dry run.
    """

    retention_hours: float = 168.0
    dry_run: bool = False
    limit: int = 50

    def run(self) -> None:
        """Vacuum."""
        check_limit(self.limit)
        report = vacuum(
            self.table,
            retention=_age("retention_hours", self.retention_hours, timedelta(hours=1)),
            dry_run=self.dry_run,
            progress=progress,
        )
        counts = Counter(file.kind for file in report.garbage)
        kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(counts.items())) or "none"
        done = "would be removed" if self.dry_run else "removed"
        show(
            [asdict(file) for file in report.garbage[: self.limit]] if self.dry_run else [],
            ("kind", "size_bytes", "path"),
            as_json=self.json,
            summary={
                "table": report.table,
                "oldest_version": report.oldest_version,
                "files": len(report.garbage),
                "size_bytes": report.size_bytes,
                "kinds": dict(counts),
                "dry_run": report.dry_run,
                "seconds": report.seconds,
            },
            said=f"table {report.table}: {len(report.garbage)} files {done} ({kinds}), "
            f"{report.size_bytes / _MB:.1f} MB, in {report.seconds:.1f} s; "
            f"versions from {report.oldest_version} on can be read",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Verify(TableArgs):
    """Read every byte of a version and say what is wrong; exit status 1 if anything is.

    Attributes:
        version: of the table; the last if not given.
    """

    version: int | None = None

    def run(self) -> None:
        """Verify."""
        check_version(self.version)
        report = verify(self.table, self.version, progress=progress)
        problems = len(report.problems)
        show(
            [{"problem": problem} for problem in report.problems],
            ("problem",),
            as_json=self.json,
            summary={**asdict(report), "problems": problems},
            said=f"table {report.table} version {report.version}: "
            f"{'whole' if not problems else f'{problems} things are wrong'}; {report.num_files} files, "
            f"{report.num_events} events, {report.num_facts} facts, {report.size_bytes / _MB:.1f} MB read in "
            f"{report.seconds:.1f} s",
        )
        if problems:
            sys.exit(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Erase(TableArgs):
    """Erase facts from all versions and from all that lies below the table; nothing brings them back.

    Attributes:
        fact_ids: ids of facts.
        subject: erase the facts with this subject, as any of their events had it.
        source: erase the facts from this source, likewise.
        namespace: of the facts; all if not given.
        keep_tombstone: leave a delete of each id, so that a late dump does not bring the fact back; the id stays.
        force: go on although an ingest seems to be running.
        dry_run: count only.
    """

    fact_ids: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="[ID ...]")] = ()
    subject: str | None = None
    source: str | None = None
    namespace: str | None = None
    keep_tombstone: bool = False
    force: bool = False
    dry_run: bool = False

    def run(self) -> None:
        """Erase."""
        report = erase(
            self.table,
            self.fact_ids,
            subject=self.subject,
            source=self.source,
            namespace=self.namespace,
            keep_tombstone=self.keep_tombstone,
            force=self.force,
            dry_run=self.dry_run,
            progress=progress,
        )
        summary = asdict(report)
        if report.dry_run:
            said = (
                f"table {report.table}: {report.num_facts} facts with {report.num_events} events and "
                f"{report.num_quarantined} quarantined rows would be erased, with all older versions and indexes"
            )
        else:
            late = (
                "deletes of their ids stay, so a late dump does not bring them back"
                if self.keep_tombstone
                else "a late dump may bring them back"
            )
            said = (
                f"table {report.table} version {report.version}: {report.num_facts} facts erased with "
                f"{report.num_events} events, and {report.num_quarantined} quarantined rows; {late}\n"
                f"older versions are gone, with {report.num_files} files and {report.num_object_versions} older "
                f"versions of objects; {report.num_searched} files that are left were searched, none holds a text of "
                f"them ({report.seconds:.1f} s)"
            )
            if report.num_indexes:
                said += f"\n{report.num_indexes} indexes held them and are gone; run build_index.py, then deploy anew"
        show([], (), as_json=self.json, summary=summary, said=said)


@dataclass(frozen=True, slots=True, kw_only=True)
class Migrate(TableArgs):
    """Bring a table of layout 1 to today's; its vectors are copied, nothing is encoded."""

    def run(self) -> None:
        """Migrate."""
        report = migrate(self.table, progress=progress)
        said = f"table {report.table} version {report.version} "
        if report.was_there:
            said += "is of today's layout already, and nothing was done"
        else:
            said += (
                f"is of today's layout: {report.num_events} events in {report.num_files} files, {report.num_dropped} "
                f"that no longer stood dropped, in {report.seconds:.1f} s"
            )
        show([], (), as_json=self.json, summary=asdict(report), said=said)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reencode(TableArgs):
    """Encode the table anew by another editor, beside it; readers are led over when all is there.

    Attributes:
        editor: the new editor: its directory, local (on every node) or s3://, or the name of a published one.
        output: where the new table comes to lie; beside the old one if not given.
        back: let readers have the table again as it was before the last re-encoding; nothing else is given then.
        device: where encoders compute: auto takes GPUs where the cluster has some.
        num_encoders: encoder processes; what the cluster has room for if not given.
        gpus_per_encoder: GPUs of an encoder, fractions allowed.
    """

    editor: str | None = None
    output: str | None = None
    back: bool = False
    device: Literal["auto", "cpu", "cuda"] = "auto"
    num_encoders: int | None = None
    gpus_per_encoder: float | None = None

    def run(self) -> None:
        """Re-encode, or go back."""
        # Here, not above: the other commands need no Ray, which takes seconds to load.
        import ray

        from recipe_ray.distributed.cluster import connect
        from recipe_ray.distributed.reencode import ReencodeConfig, go_back, reencode

        if self.back:
            if self.editor is not None or self.output is not None:
                raise ConfigError("back and editor or output exclude each other; give one")
            left = go_back(self.table)
            said = f"table {self.table} is found where it was before; {left} stays as it is, with what it got since"
            show([], (), as_json=self.json, summary={"table": self.table, "left": left}, said=said)
            return
        if self.editor is None:
            raise ConfigError("editor is missing; give the new editor, or --back")
        config = ReencodeConfig(
            table=self.table,
            editor=self.editor,
            output=self.output,
            device=self.device,
            num_encoders=self.num_encoders,
            gpus_per_encoder=self.gpus_per_encoder,
        )
        connect(bulk=True)
        try:
            report = reencode(config)
        finally:
            ray.shutdown()
        show(
            [],
            (),
            as_json=self.json,
            summary=asdict(report),
            said=f"table {report.output} version {report.version} tells by the new editor what {report.source} version "
            f"{report.source_version} tells; {report.num_encoded} facts encoded in {report.num_rounds} rounds, "
            f"{report.seconds:.1f} s\n"
            f"whoever opens {report.table} has it now; `reencode --back` undoes that, and build_index.py and a new "
            "deployment let servers have it",
        )


def _age(name: str, number: float, unit: timedelta) -> timedelta:
    """So many units of time.

    Raises:
        ConfigError: it is no number, negative, or more than a century.
    """
    if not 0 <= number <= _MAX_AGE / unit:  # false of nan
        raise ConfigError(f"{name} is {number:g}; give 0 to {_MAX_AGE / unit:.0f}")
    return number * unit


MAINTAIN_COMMANDS: dict[str, type[Command]] = {
    "rollback": Rollback,
    "compact": Compact,
    "vacuum": Vacuum,
    "verify": Verify,
    "erase": Erase,
    "migrate": Migrate,
    "reencode": Reencode,
}
