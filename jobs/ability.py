"""General ability after edits: `python jobs/ability.py --editor EDITOR --tasks csqa:csqa-dev.json.gz --output RUN`."""

import json
import sys

from rich.console import Console
from rich.table import Table

from jobs._cli import run
from recipe_ray.distributed.ability import AbilityArgs, measure_ability
from recipe_ray.errors import ConfigError
from recipe_ray.eval.ability.run import Row

SOME_FAILED = 2
MISSING = "-"
_COUNTS = ("n", "fired", "unfired_changed", "changed", "answers_changed", "truncated")


def main(args: AbilityArgs) -> None:
    """Measure what edits do to an LLM's general ability, by lm-evaluation-harness; the last line is JSON.

    Exit status: 0 every editor is measured, 2 some failed and a line says why, 1 failed.
    """
    console = Console(stderr=True, soft_wrap=True)
    report = measure_ability(args, progress=console.print)
    failed = [row for row in report.rows if "failed" in row]
    _print_table([row for row in report.rows if "failed" not in row])
    for row in failed:
        print(f"failed: {row['editor']}: {row['failed']}")
    print(f"rows   {report.uri}\n{report.seconds:.0f} s\n{json.dumps(report.rows)}", flush=True)
    if len(failed) == len(args.methods):
        raise ConfigError("no editor could be measured; the lines above say why")
    if failed:
        sys.exit(SOME_FAILED)


def _print_table(rows: list[Row]) -> None:
    """Edits are compared to the unedited LLM in the rows' own columns, so a row is read by itself."""
    table = Table("task", "editor", "edits", "metric", "before", "after", *(name.replace("_", " ") for name in _COUNTS))
    for row in rows:
        metrics = [name for name in row if f"{name}_before" in row]
        for name in metrics:
            counts = (MISSING if row[count] is None else str(row[count]) for count in _COUNTS)
            values = (f"{row[f'{name}_before']:.4f}", f"{row[name]:.4f}")
            table.add_row(row["task"], row["editor"], str(row["T"]), name, *values, *counts)
    Console(width=150).print(table)


if __name__ == "__main__":
    run(main, AbilityArgs)
