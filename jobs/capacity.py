"""What a number of facts and a stream of requests need: `python jobs/capacity.py --facts … --requests-per-s …`."""

import json

from rich.console import Console
from rich.table import Table

from jobs._cli import run
from recipe_ray.capacity.config import CapacityConfig
from recipe_ray.capacity.parts import Plan
from recipe_ray.capacity.plan import plan
from recipe_ray.capacity.table import as_json, rows

_WIDTH = 120


def main(config: CapacityConfig) -> None:
    """Print shards, memory, storage, GPUs, nightly hours and network: a plan on paper, nothing is looked at."""
    found = plan(config)
    if config.json:
        print(json.dumps(as_json(config, found)))
    else:
        show(config, found)


def show(config: CapacityConfig, found: Plan) -> None:
    """Print a table, and below it what to know of it."""
    console = Console(width=_WIDTH, highlight=False)
    table = Table("part", "what", "value", "made of")
    before = None
    for row in rows(config, found):
        if before not in (None, row.part):
            table.add_section()
        table.add_row("" if row.part == before else row.part, row.what, row.value, row.made_of)
        before = row.part
    console.print(table)
    for note in found.notes:
        console.print(f"note: {note}", markup=False)


if __name__ == "__main__":
    run(main, CapacityConfig)
