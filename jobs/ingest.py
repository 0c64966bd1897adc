"""Fill a table of facts: `python jobs/ingest.py --source facts.jsonl --table … --editor …`."""

import json
import sys
from dataclasses import asdict

import ray

from jobs._cli import run
from recipe_ray.distributed.cluster import connect
from recipe_ray.distributed.ingest import IngestReport, ingest
from recipe_ray.distributed.ingest_args import IngestConfig
from recipe_ray.store.files import check_writable, write_text
from recipe_ray.store.resolve import IngestCounts

SOME_QUARANTINED = 2


def main(config: IngestConfig) -> None:
    """Connect, ingest, and say where the table lies and what became of the rows.

    Exit status: 0 all in, 2 all in but more rows quarantined than --max-quarantined, 1 failed.
    """
    if config.report is not None:
        check_writable(config.report)
    connect(bulk=True)
    try:
        report = ingest(config)
    finally:
        ray.shutdown()
    if config.report is not None:
        write_text(config.report, json.dumps(asdict(report), indent=2) + "\n")
    print(describe(report))
    if too_many_quarantined(report, config.max_quarantined):
        sys.exit(SOME_QUARANTINED)


def too_many_quarantined(report: IngestReport, allowed: float) -> bool:
    """Whether more rows were bad than allowed: a number of rows, or below 1 a share of those read."""
    counts = report.counts
    return counts.quarantined > (allowed * counts.read if allowed < 1 else allowed)


def describe(report: IngestReport) -> str:
    """Say in a few lines what an ingest did."""
    counts = report.counts
    if report.repeated:
        return (
            f"table {report.table} version {report.version}\n"
            f"dump {report.dump_hash} was ingested before, and nothing was done ({report.seconds:.1f} s); "
            "--again ingests it all the same, after a rollback for instance\n"
            f"then: {_counted(counts)}" + (f"\n{_renewed(report)}" if report.num_renewed or report.num_joined else "")
        )
    lines = [
        f"table {report.table} version {report.version}",
        _counted(counts),
        f"wrote {report.num_written} events, {report.num_encoded} of them encoded, {report.size_bytes / 1e6:.1f} MB, "
        f"in {report.seconds:.1f} s ({report.facts_per_s:.1f} facts/s)",
    ]
    if report.num_renewed or report.num_joined:
        lines.append(_renewed(report))
    if report.quarantine is not None:
        lines.append(
            f"quarantine {report.quarantine} holds the {counts.quarantined} bad rows with file, line and reason"
        )
    if report.num_headers:
        lines.append(f"passed over {report.num_headers} headers in the middle of CSV files")
    if report.contradictions != 0:
        found = "not looked for" if report.contradictions is None else report.contradictions
        lines.append(
            f"contradictions: {found}; `python jobs/facts.py conflicts --table {report.table}` names facts of one "
            "prompt and different targets"
        )
    return "\n".join(lines)


def _renewed(report: IngestReport) -> str:
    return (
        f"of an older release's facts {report.num_renewed} were encoded again in their canonical form, and "
        f"{report.num_joined} joined with a later one of the same prompt"
    )


def _counted(counts: IngestCounts) -> str:
    return (
        f"read {counts.read} rows: {counts.new} new, {counts.changed} changed, {counts.deleted} deleted, "
        f"{counts.expired} expired, {counts.unchanged} unchanged, {counts.superseded} superseded, "
        f"{counts.quarantined} quarantined"
    )


if __name__ == "__main__":
    run(main, IngestConfig)
