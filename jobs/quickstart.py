"""The whole loop on this machine: train an editor, ingest 1,000 edits, serve, ask over HTTP, measure.

`make quickstart` runs it. Everything it makes lies in runs/quickstart, which every start makes anew.
"""

import importlib.metadata
import json
import platform
import shutil
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
import ray
from rich.console import Console
from rich.table import Table

from jobs._cli import run
from jobs.ingest import describe as describe_ingest
from recipe_ray.config import TESTBED
from recipe_ray.distributed.cluster import connect
from recipe_ray.distributed.ingest import IngestReport, ingest
from recipe_ray.distributed.ingest_args import IngestConfig
from recipe_ray.distributed.train import TrainReport, train_editor
from recipe_ray.distributed.train_args import TrainArgs
from recipe_ray.distributed.train_loop import describe
from recipe_ray.errors import ConfigError, OutputError, ServiceError
from recipe_ray.eval.cases import SORTS, EvalCase, facts_of_prompts, num_sampled
from recipe_ray.eval.evaluation import evaluate_counts
from recipe_ray.eval.methods.in_context import Oracle
from recipe_ray.eval.methods.recipe import Recipe
from recipe_ray.eval.methods.unedited import Unedited
from recipe_ray.eval.protocol import STOP, plain_reader
from recipe_ray.eval.testbed import dump_records, testbed_cases
from recipe_ray.model.editor import load_editor
from recipe_ray.model.llm import load_llm
from recipe_ray.store.snapshot import read_snapshot
from serving.local import serving
from serving.settings import AppArgs, ModelArgs

SIMULTANEOUS = (1, 10, 100)  # and all of them
NUM_QUESTIONS = 5
NUM_SPEED_PAIRS = 40
SPEED_TOKENS = 48
MARK_FILE = "QUICKSTART"
BAD_LINES = (
    '{"prompt": "The capital of Atlantis is", "target": ""}',
    '{"prompt": "The capital of Lemuria is"',
    '{"id": "x1", "op": "replace", "prompt": "The capital of Mu is", "target": "Hiva"}',
)
PACKAGES = ("recipe-ray", "torch", "transformers", "ray", "pyarrow", "deltalake", "faiss-cpu", "numpy")


@dataclass(frozen=True, slots=True, kw_only=True)
class QuickstartArgs:
    """Where the quickstart puts what it makes.

    Attributes:
        output: folder, local; what an earlier quickstart left there is removed first.
        preset: the training's set-up; `smoke` shows the path in a minute and teaches nothing.
        num_steps: of the training, instead of the preset's.
        num_edits: how many are ingested and asked about.
    """

    output: Path = Path("runs/quickstart")
    preset: str = "testbed"
    num_steps: int | None = None
    num_edits: int = 1000

    def __post_init__(self) -> None:
        if self.num_edits < 1:
            raise ConfigError(f"--num-edits is {self.num_edits}; give 1 or more")


def main(args: QuickstartArgs) -> None:
    """Train, ingest, serve, ask and measure on the embedded testbed."""
    started = time.monotonic()
    console = Console(width=120)
    config = TrainArgs(preset=args.preset, num_steps=args.num_steps).config()
    folder = _emptied(args.output.absolute())
    cases = testbed_cases(args.num_edits)
    seconds: dict[str, float] = {}
    # Serving wants a little more than one CPU, and training all there are; a single core is reported as two.
    connect(num_cpus=2, show_workers=True)
    try:
        console.rule("1. train the editor (invented subjects only)")
        trained = train_editor(config, run="training", storage=str(folder), output=str(folder / "editor"))
        seconds["train"] = trained.seconds
        _print_training(console, trained)

        console.rule(f"2. ingest {args.num_edits:,} counterfactual edits")
        dump = folder / "edits.jsonl"
        _write_dump(dump, cases)
        ingested = ingest(
            IngestConfig(source=str(dump), table=str(folder / "table"), editor=str(folder / "editor"), num_shards=1)
        )
        seconds["ingest"] = ingested.seconds
        console.print(describe_ingest(ingested))

        console.rule("3. serve, and ask over HTTP")
        begun = time.monotonic()
        app_args = AppArgs(models=(ModelArgs(editor=str(folder / "editor"), table=str(folder / "table")),))
        with (
            serving(app_args, port=0, quiet=True) as url,
            httpx.Client(base_url=url, timeout=60, trust_env=False) as client,
        ):
            _print_answers(console, client, cases[:NUM_QUESTIONS])
            speed = _measure_speed(client, cases)
        seconds["serve"] = time.monotonic() - begun
    finally:
        ray.shutdown()

    console.rule(f"4. measure, 1 to {args.num_edits:,} edits at once")
    begun = time.monotonic()
    edits, retrieval = _measure_edits(folder, cases)
    seconds["measure"] = time.monotonic() - begun
    seconds["total"] = time.monotonic() - started
    report = {
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "edits": edits,
        "retrieval": retrieval,
        "ingest": _ingest_report(ingested),
        "serving": speed,
        "training": _training_report(trained),
        "versions": _versions(),
    }
    (folder / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    _print_measured(console, report)
    console.print(
        f"editor {folder / 'editor'}\ntable  {folder / 'table'}\nreport {folder / 'report.json'}\n"
        f"done in {seconds['total']:.0f} s",
        soft_wrap=True,
    )


def _emptied(folder: Path) -> Path:
    """A new folder in place of the one that an earlier quickstart made there, and of nothing else."""
    try:
        if folder.is_dir() and any(folder.iterdir()):
            if not (folder / MARK_FILE).is_file():
                raise OutputError(f"{folder}: is not empty and not of a quickstart; give another --output, or empty it")
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MARK_FILE).write_text("Made by jobs/quickstart.py, which empties this folder when it starts again.\n")
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written ({error.strerror}); give another --output") from error
    return folder


def _write_dump(path: Path, cases: Sequence[EvalCase]) -> None:
    """The edits as JSON Lines, with bad rows among them as a real dump has."""
    lines = [json.dumps(record) for record in dump_records(tuple(cases))]
    for number, bad in enumerate(BAD_LINES):
        lines.insert(100 * (number + 1), bad)
    path.write_text("\n".join(lines) + "\n")


def _complete(client: httpx.Client, prompt: str, *, edits: bool, max_tokens: int, stop: str | None) -> dict[str, Any]:
    body = {"prompt": prompt, "max_tokens": max_tokens, "stop": stop, "recipe": {"edits": edits}}
    response = client.post("/v1/completions", json=body)
    if response.status_code != httpx.codes.OK:
        raise ServiceError(f"{response.request.url}: {response.status_code} {response.text[:200]}")
    choice: dict[str, Any] = response.json()["choices"][0]
    return choice


def _print_answers(console: Console, client: httpx.Client, cases: Sequence[EvalCase]) -> None:
    """Each question before and after, its rephrasing, and an unrelated question."""
    table = Table("question", "before", "after", "fact applied", "score > sentinel", show_lines=False)
    for case in cases:
        for prompt in (case.prompt, *case.prompts("generality"), *case.prompts("locality")):
            before, after = (
                _complete(client, prompt, edits=edits, max_tokens=24, stop=STOP) for edits in (False, True)
            )
            said = after["recipe"]
            fact = said["fact"]
            table.add_row(
                prompt,
                before["text"].strip(),
                after["text"].strip(),
                fact["statement"] if fact else "-",
                f"{said['score']:.2f} {'>' if fact else '≤'} {said['sentinel_score']:.2f}",
            )
        table.add_section()
    console.print(table)


def _measure_speed(client: httpx.Client, cases: Sequence[EvalCase]) -> dict[str, float]:
    """Edited over unedited, request by request in turn: seconds to the first token, and tokens a second after it."""
    first: dict[bool, list[float]] = {True: [], False: []}
    more: dict[bool, list[float]] = {True: [], False: []}
    for case in cases[:NUM_SPEED_PAIRS]:
        for edits in (True, False):
            timings = []
            for max_tokens in (1, SPEED_TOKENS):
                begun = time.perf_counter()
                _complete(client, case.prompt, edits=edits, max_tokens=max_tokens, stop=None)
                timings.append(time.perf_counter() - begun)
            first[edits].append(timings[0])
            more[edits].append((SPEED_TOKENS - 1) / max(timings[1] - timings[0], 1e-9))
    return {
        "ttft_ratio": _median_ratio(first),
        "tokens_per_s_ratio": _median_ratio(more),
        "ttft_s": statistics.median(first[True]),
        "tokens_per_s": statistics.median(more[True]),
        "num_pairs": NUM_SPEED_PAIRS,
    }


def _median_ratio(values: dict[bool, list[float]]) -> float:
    return statistics.median(edited / unedited for edited, unedited in zip(values[True], values[False], strict=True))


def _measure_edits(folder: Path, cases: tuple[EvalCase, ...]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The scores of the three editors and of retrieval, over what the table holds."""
    editor = load_editor(folder / "editor")
    llm = load_llm(TESTBED)
    snapshot = read_snapshot(str(folder / "table"))
    row_of = {statement: row for row, statement in enumerate(snapshot.facts["statement"].to_pylist())}

    def stored(statements: Sequence[str]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        rows = [row_of[statement] for statement in statements]
        return snapshot.keys_FK[rows].astype(np.float32), snapshot.prompts_FPD[rows].astype(np.float32)

    pasted = Oracle(llm, facts_of_prompts(cases, neighbours=True), name="in_context")
    methods = (Recipe(llm, editor, encode_facts=stored), Unedited(llm), pasted)
    unedited = plain_reader(llm)
    edits: dict[str, Any] = {}
    retrieval: dict[str, Any] = {}
    for num_edits in (*(number for number in SIMULTANEOUS if number < len(cases)), len(cases)):
        asked = cases[: num_sampled(len(cases), num_edits)]
        edits[str(num_edits)] = {}
        for method in methods:
            answers, lookups = evaluate_counts(method, asked, [num_edits], data=TESTBED, unedited=unedited)
            edits[str(num_edits)][method.name] = answers[str(num_edits)]
            if isinstance(method, Recipe):
                retrieval[str(num_edits)] = lookups[str(num_edits)]
    return edits, retrieval


def _ingest_report(report: IngestReport) -> dict[str, Any]:
    return {
        "facts_per_s": report.facts_per_s,
        "seconds": report.seconds,
        "new": report.counts.new,
        "quarantined": report.counts.quarantined,
        "version": report.version,
        "size_bytes": report.size_bytes,
    }


def _training_report(report: TrainReport) -> dict[str, Any]:
    return {
        "num_steps": report.num_steps,
        "edits_per_s": report.edits_per_s,
        "before": report.before,
        "after": report.after,
        "fingerprint": report.fingerprint,
    }


def _versions() -> dict[str, str]:
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in PACKAGES}


def _print_training(console: Console, report: TrainReport) -> None:
    console.print(f"before: {describe(report.before)}\nafter:  {describe(report.after)}", soft_wrap=True)
    console.print(f"{report.num_steps} steps in {report.seconds:.0f} s; editor {report.editor}", soft_wrap=True)


def _print_measured(console: Console, report: dict[str, Any]) -> None:
    for mode, title in (("free", "free generation, exact match"), ("teacher_forced", "teacher-forced token accuracy")):
        table = Table("edits at once", "editor", *SORTS, title=title)
        for num_edits, editors in report["edits"].items():
            for name, metrics in editors.items():
                table.add_row(num_edits, name, *(f"{metrics[mode][sort]:.3f}" for sort in SORTS))
            table.add_section()
        console.print(table)
    for num_edits, metrics in report["retrieval"].items():
        console.print(
            f"retrieval among {num_edits}: right fact {metrics['right_fact']:.3f}, "
            f"right decision {metrics['right_decision']:.3f}"
        )
    speed = report["serving"]
    console.print(
        f"ingest {report['ingest']['facts_per_s']:.0f} facts/s; edited over unedited: time to first token "
        f"{speed['ttft_ratio']:.2f}, tokens a second {speed['tokens_per_s_ratio']:.2f}"
    )


if __name__ == "__main__":
    run(main, QuickstartArgs)
