"""Publish a day's facts: `python jobs/nightly.py --date 2026-11-24 --source s3://bucket/dumps/{date}/ --table … …`."""

import json
import sys
from dataclasses import asdict

import ray

from jobs._cli import run
from jobs.ingest import SOME_QUARANTINED, too_many_quarantined
from jobs.ingest import describe as describe_ingest
from recipe_ray.distributed.cluster import connect
from recipe_ray.distributed.nightly import NightlyReport, nightly
from recipe_ray.distributed.nightly_args import NightlyConfig
from recipe_ray.eval.canary import CanaryFailure, CanaryReport
from recipe_ray.store.files import check_writable, write_text

CANARY_DIED = 3
_NUM_SHOWN = 5


def main(config: NightlyConfig) -> None:
    """Ingest the dump of a date, ask the canary, publish, build the index; or leave what is served, and fail.

    Exit status: 0 published, or published before; 1 failed, and the same command goes on; 2 published, but more rows
    quarantined than --max-quarantined; 3 not published, since the canary died of it; 64 a wrong command line.
    """
    if config.json is not None:
        check_writable(config.json)
    connect(bulk=True)
    try:
        report = nightly(config, say=lambda text: print(text, file=sys.stderr, flush=True))
    finally:
        ray.shutdown()
    if config.json is not None:
        write_text(config.json, json.dumps(asdict(report), indent=2) + "\n")
    print(describe(report))
    if report.status == "refused":
        sys.exit(CANARY_DIED)
    if report.ingest is not None and too_many_quarantined(report.ingest, config.max_quarantined):
        sys.exit(SOME_QUARANTINED)


def describe(report: NightlyReport) -> str:
    """Say in a few lines what a night did."""
    if report.status == "refused":
        assert report.canary is not None
        return "\n".join(
            [
                f"NOT PUBLISHED: the canary died of {report.source}",
                *(f"  {complaint}" for complaint in report.canary.complaints),
                *(f"  {_failed(failure)}" for failure in report.canary.failures[:_NUM_SHOWN]),
                f"table {report.table} is as it was, at version {report.version}, which servers serve on "
                f"({report.seconds:.1f} s); correct the dump or the editor, or the canary, then run this again",
            ]
        )
    assert report.ingest is not None
    assert report.index is not None
    word = "published before, and nothing was done" if report.status == "repeated" else "published"
    lines = [
        f"{report.date} {word}: version {report.version} ({report.seconds:.1f} s, {report.facts_per_s:.1f} facts/s)"
    ]
    if report.status != "repeated":
        lines.append(describe_ingest(report.ingest))
    if report.canary is not None:
        lines.append(f"canary {_counted(report.canary)}")
    index = report.index
    built = "was built before" if index.repeated else f"built in {index.seconds:.1f} s"
    lines.append(f"index {index.uri}: {index.num_facts} facts, recall {index.recall:.4f}, {built}")
    lines += [f"server {url} serves version {version}" for url, version in report.servers.items()]
    return "\n".join(lines)


def _counted(canary: CanaryReport) -> str:
    return ", ".join(f"{canary.right[sort]} of {num} {sort} right" for sort, num in canary.asked.items())


def _failed(failure: CanaryFailure) -> str:
    """A failure by its place; the texts of facts are for the summary's file, not for a log."""
    question, told = failure.question, failure.told
    applied = "no fact is applied" if told.fact_id is None else f"fact {told.fact_id!r} is applied"
    score = "none" if told.score is None else f"{told.score:.3f}"
    return f"{question.sort} {question.place}: {applied} (score {score}, sentinel {told.sentinel:.3f})"


if __name__ == "__main__":
    run(main, NightlyConfig)
