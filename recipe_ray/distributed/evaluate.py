"""An evaluation as cells over Ray workers: planned, measured, continued where it was left, and reported."""

import dataclasses
import json
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError

from recipe_ray.distributed.cells import Cell, CellRunner, Outcome, Setup, read_cell
from recipe_ray.distributed.evaluate_args import EvaluateArgs
from recipe_ray.distributed.evaluate_plan import Plan, Unit, planned, units_of
from recipe_ray.distributed.progress import progress
from recipe_ray.errors import ConfigError
from recipe_ray.eval.report.contents import Contents, FailedCell
from recipe_ray.eval.report.rendering import HTML_FILE, render
from recipe_ray.store import files

CONFIG_FILE, ABILITY_FOLDER = "evaluate_config.json", "ability"


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateReport:
    """What an evaluation did.

    Attributes:
        report: URI of the page.
        num_measured: cells that the report shows.
        num_now: those of them that this start measured.
        failed: the others.
        seconds: wall time of this start, the start of the cluster left out.
        without_chats: nothing was asked in chats, since the LLM has no chat template.
    """

    report: str
    num_measured: int
    num_now: int
    failed: tuple[FailedCell, ...]
    seconds: float
    without_chats: bool = False


Execute = Callable[[Setup, Sequence[Unit]], Iterator[Outcome]]


def evaluate(args: EvaluateArgs, *, execute: Execute | None = None) -> EvaluateReport:
    """Measure what is not measured yet, and write the report over all cells asked for.

    Args:
        args: what to compare.
        execute: measures units' cells in any order; by default on the connected Ray cluster.

    Raises:
        ConfigError: options that cannot be.
        FactError: a data set that cannot be read.
        ModelError: the LLM cannot be loaded.
        EditorError: a trained editor is not where it was said to be.
        OutputError: the run's folder cannot be written.
    """
    started = time.monotonic()
    plan = planned(args)
    folder = plan.setup.folder
    files.write_text(files.join(folder, CONFIG_FILE), json.dumps(dataclasses.asdict(args), indent=2) + "\n")
    ability = read_ability(files.join(folder, ABILITY_FOLDER))  # a broken file is told before the work
    missing = [cell for cell in plan.cells if read_cell(folder, cell) is None]
    failed: dict[Cell, Outcome] = {}
    with progress(f"evaluating {len(missing)} of {len(plan.cells)} cells", len(missing), unit="cells") as done:
        for outcome in (execute or on_cluster)(plan.setup, units_of(missing, plan.data)):
            if outcome.reason is not None:
                failed[outcome.cell] = outcome
            done(1)
    contents = contents_of(plan, failed, ability)
    for name, text in render(contents).items():
        files.write_text(files.join(folder, name), text)
    return EvaluateReport(
        report=files.join(folder, HTML_FILE),
        num_measured=len(contents.cells),
        num_now=len(missing) - len(failed),
        failed=contents.failed,
        seconds=time.monotonic() - started,
        without_chats=plan.without_chats,
    )


def on_cluster(setup: Setup, units: Sequence[Unit]) -> Iterator[Outcome]:
    """Measure on the connected Ray cluster, as many workers at once as it has GPUs, or CPUs, for.

    A worker that dies, for want of memory as a rule, costs the cell that it was at; another takes over the rest.
    """
    if not units:
        return
    resources, room = _worker(setup.device)
    runner = ray.remote(max_restarts=0, **resources)(CellRunner)
    shared = ray.put(setup)
    waiting = deque(units)
    running: dict[Any, tuple[Any, Cell, deque[tuple[Cell, Any]]]] = {}

    def start(worker: Any, left: deque[tuple[Cell, Any]]) -> None:
        if not left and waiting:
            unit = waiting.popleft()
            cases = {name: ray.put(given) for name, given in unit.cases.items()}
            left = deque((cell, cases[cell.data]) for cell in unit.cells)
        if left:
            cell, given = left.popleft()
            running[worker.run.remote(cell, given)] = (worker, cell, left)

    for _ in range(min(room, len(units))):
        start(runner.remote(shared), deque())
    while running:
        (finished,), _ = ray.wait(list(running), num_returns=1)
        worker, cell, left = running.pop(finished)
        try:
            yield ray.get(finished)
        except RayError as error:
            why = " ".join(str(error).split())[:300] or type(error).__name__
            yield Outcome(cell=cell, reason=f"its worker died ({why}); if for want of memory, give fewer edits at once")
            ray.kill(worker)
            worker = runner.remote(shared)
        start(worker, left)


def contents_of(plan: Plan, failed: Mapping[Cell, Outcome], ability: Sequence[Mapping[str, Any]]) -> Contents:
    """All of the report: the plan's cells as they lie in the run's folder, and those that failed now."""
    measured = [found for cell in plan.cells if (found := read_cell(plan.setup.folder, cell)) is not None]
    told = [
        FailedCell(
            editor=cell.editor,
            data=cell.data,
            num_edits=cell.num_edits,
            mode=cell.mode,
            reason=failed[cell].reason or "",
            traceback=failed[cell].traceback,
        )
        for cell in plan.cells
        if cell in failed
    ]
    return Contents(
        cells=tuple(measured), failed=(*plan.failed, *told), ablations=plan.ablations, ability=tuple(ability)
    )


def read_ability(folder: str) -> tuple[dict[str, Any], ...]:
    """What `jobs/ability.py` wrote into the run's folder: of each file the JSON in its last line.

    Raises:
        ConfigError: a file whose last line is no JSON.
    """
    rows: list[dict[str, Any]] = []
    for uri in files.list_below(folder):
        try:
            value = json.loads((files.read_text(uri) or "").strip().rpartition("\n")[2])
        except ValueError as error:
            raise ConfigError(f"{uri}: its last line is no JSON ({error}); remove it, or write it anew") from error
        found = value.get("rows", value) if isinstance(value, dict) else value
        rows += found if isinstance(found, list) else [found]
    return tuple(rows)


def _worker(device: str) -> tuple[dict[str, Any], int]:
    """What one worker reserves, and how many the cluster has room for."""
    have = ray.cluster_resources()
    use_gpu = device.startswith("cuda") or (device == "auto" and have.get("GPU", 0) > 0)
    if use_gpu and not have.get("GPU"):
        raise ConfigError(f"device is {device!r}, but the Ray cluster has no GPU; give auto or cpu")
    num_cpus = int(have.get("CPU", 1))
    room = min(num_cpus, int(have["GPU"])) if use_gpu else num_cpus
    return {"num_cpus": 1, "num_gpus": 1 if use_gpu else 0}, max(1, room)
