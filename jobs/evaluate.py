"""Compare editors: `python jobs/evaluate.py --editor EDITOR --data testbed --output RUN`."""

import sys

import ray

from jobs._cli import run
from recipe_ray.distributed.cluster import connect
from recipe_ray.distributed.evaluate import EvaluateReport, evaluate
from recipe_ray.distributed.evaluate_args import EvaluateArgs
from recipe_ray.errors import OutputError

SOME_FAILED = 2


def main(args: EvaluateArgs) -> None:
    """Measure what editing does to a model, editor by editor, and write a report; started again it goes on.

    Exit status: 0 every cell is measured, 2 some cells failed and the report says why, 1 failed.
    """
    connect(bulk=True)
    try:
        report = evaluate(args)
    finally:
        ray.shutdown()
    print(describe(report), flush=True)
    if not report.num_measured:
        raise OutputError(f"{report.report}: no cell could be measured; the report says why")
    if report.failed:
        sys.exit(SOME_FAILED)


def describe(report: EvaluateReport) -> str:
    """Say where the report lies and how the cells went."""
    lines = [
        f"report {report.report} (report.md, results.json and figures lie beside it)",
        f"{report.num_measured} cells measured, {report.num_now} of them now, {len(report.failed)} failed, "
        f"{report.seconds:.0f} s",
    ]
    if report.without_chats:
        lines.append("nothing was asked in chats: the LLM has no chat template")
    lines += [f"failed: {one.editor} on {one.data}, {one.num_edits} {one.mode}: {one.reason}" for one in report.failed]
    return "\n".join(lines)


if __name__ == "__main__":
    run(main, EvaluateArgs)
