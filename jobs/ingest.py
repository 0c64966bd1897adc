"""Fill a table of facts: `python jobs/ingest.py --source facts.jsonl --table … --editor …`."""

import ray

from jobs._cli import run
from recipe_ray.distributed.cluster import connect
from recipe_ray.distributed.ingest import IngestConfig, IngestReport, ingest


def main(config: IngestConfig) -> None:
    """Connect, ingest, and say where the table lies and what became of the lines."""
    connect()
    try:
        report = ingest(config)
    finally:
        ray.shutdown()
    print(describe(report))


def describe(report: IngestReport) -> str:
    """Say in a few lines what an ingest did."""
    counts = report.counts
    lines = [
        f"table {report.table} version {report.version}",
        f"read {counts.read} lines: {counts.new} new, {counts.changed} changed, {counts.deleted} deleted, "
        f"{counts.unchanged} unchanged, {counts.superseded} superseded, {counts.quarantined} quarantined",
        f"wrote {report.num_written} events, {report.size_bytes / 1e6:.1f} MB, in {report.seconds:.1f} s "
        f"({report.facts_per_s:.1f} facts/s)",
    ]
    if report.quarantine is not None:
        lines.append(
            f"quarantine {report.quarantine} holds the {counts.quarantined} bad lines with file, line and reason"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    run(main, IngestConfig)
