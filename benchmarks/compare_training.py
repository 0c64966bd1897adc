r"""Editors trained in several ways on one LM, measured beside each other.

    python benchmarks/compare_training.py --llm LM --encoder ENCODER --data counterfact:TRAIN --tuning-data edits:TUNE \
        --report edits:REPORT --variants default paper reference no-prompt no-sentinel neither --storage RUNS
    python benchmarks/compare_training.py … --report edits:TUNE --num-steps 300 --variants default queue inner-product …

A variant is a method or one option changed from the default (see VARIANTS); each is trained by `jobs/train.py`'s own
code on this machine, and skipped where the storage holds its run already. Prints a table, and as its last line one JSON
object: by variant the metrics of answers and of retrieval by number of edits at once, and the training's figures.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
from rich.console import Console
from rich.table import Table

from recipe_ray.datasets.cleaning import clean
from recipe_ray.datasets.sources import read_source
from recipe_ray.distributed.cluster import connect
from recipe_ray.distributed.train import train_editor
from recipe_ray.distributed.train_args import TrainArgs
from recipe_ray.eval.cases import cases_in_groups
from recipe_ray.eval.evaluation import evaluate_counts
from recipe_ray.eval.methods.recipe import Recipe
from recipe_ray.eval.protocol import plain_reader
from recipe_ray.model.editor import load_editor
from recipe_ray.model.llm import load_llm

STAND_IN_RATES = ("encoder_lr=1e-4", "head_lr=1e-4", "prompt_lr=1e-4")  # for an encoder pretrained for minutes
NO_LOCALITY = {"locality": 0}


def stages(*parts: tuple[float, dict[str, float]]) -> Callable[[argparse.Namespace], tuple[str, ...]]:
    """The setting of stages, each a share of the steps with its weights."""

    def setting(args: argparse.Namespace) -> tuple[str, ...]:
        made = [{"num_steps": round(share * args.num_steps), "weights": weights} for share, weights in parts]
        return (f"stages={json.dumps(made)}",)

    return setting


def fixed(*settings: str) -> Callable[[argparse.Namespace], tuple[str, ...]]:
    """Settings that depend on nothing."""
    return lambda _: settings


def random_text(args: argparse.Namespace) -> tuple[str, ...]:
    """Lines of a file in place of every third locality question."""
    return (f"data.random_text={args.random_text}", "data.random_text_share=0.33")


# Method, what is set beside, and steps as a multiple of the default's: with an eighth of the edits a step is shorter.
VARIANTS: dict[str, tuple[str, Callable[[argparse.Namespace], tuple[str, ...]], float]] = {
    "default": ("default", fixed(), 1),
    "paper": ("paper", fixed(*STAND_IN_RATES), 2),
    "reference": ("reference", fixed(*STAND_IN_RATES), 2),
    "no-prompt": ("no-prompt", fixed(), 1),
    "no-sentinel": ("no-sentinel", fixed(), 1),
    "neither": ("neither", fixed(), 1),
    "both-questions": ("default", fixed("losses.questions=both", "batch_size=32"), 1),
    "margin": ("default", fixed("losses.margin=1.2"), 1),
    "queue": ("default", fixed("losses.queue_size=1024"), 1),
    "no-hard-negatives": ("default", fixed("data.hard_negatives=0"), 1),
    "no-swapped-targets": ("default", fixed("data.swapped_targets=0"), 1),
    "inner-product": ("default", fixed("editor.similarity=inner_product"), 1),
    "key-width-128": ("default", fixed("editor.key_width=128"), 1),
    "key-width-2048": ("default", fixed("editor.key_width=2048"), 1),
    "cold-start": ("default", fixed("num_warm_start=0"), 1),
    "prompt-first": ("default", fixed("editor.prompt_position=first"), 1),
    "random-text": ("default", random_text, 1),
    "one-stage": ("default", stages((1, NO_LOCALITY)), 1),
    "locality-term": ("default", stages((0.75, {"sentinel": 0.5}), (0.25, {})), 1),
    "edit-first": (
        "default",
        stages((0.25, {"neighbour": 0, "sentinel": 0, "locality": 0}), (0.75, NO_LOCALITY)),
        1,
    ),
}


def train(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Train a variant, or find it trained."""
    method, settings, multiple = VARIANTS[name]
    wanted = TrainArgs(
        preset="small",
        method=method,
        run=name,
        storage=args.storage,
        llm=args.llm,
        encoder=args.encoder,
        data=tuple(args.data),
        tuning_data=tuple(args.tuning_data),
        num_steps=round(args.num_steps * multiple),
        set=(*settings(args), *args.set),
    )
    report = train_editor(wanted.config(), run=name, storage=wanted.storage, output=wanted.output_folder)
    return {
        "editor": report.editor,
        "fingerprint": report.fingerprint,
        "num_steps": report.num_steps,
        "best_step": report.best_step,
        "edits_per_s": report.edits_per_s,
        "seconds": report.seconds,
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llm", required=True)
    parser.add_argument("--encoder", required=True)
    parser.add_argument("--data", nargs="+", required=True, help="FORM:PATH")
    parser.add_argument("--tuning-data", nargs="+", required=True, help="FORM:PATH")
    parser.add_argument("--report", required=True, help="FORM:PATH")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=["default"], metavar="VARIANT")
    parser.add_argument("--num-steps", type=int, default=1000, help="of the default")
    parser.add_argument("--num-edits", nargs="+", type=int, default=[1, 10, 100, 1000])
    parser.add_argument("--max-cases", type=int, default=1000)
    parser.add_argument("--set", nargs="*", default=[], help="settings of all variants, as of jobs/train.py")
    parser.add_argument("--random-text", help="file of the variant random-text")
    parser.add_argument("--storage", required=True)
    parser.add_argument("--output", type=Path, help="file for the JSON as well")
    args = parser.parse_args()
    started = time.monotonic()
    source = read_source(args.report)
    (records,) = clean([source.records], num_empty=source.num_empty).records
    cases, counts = cases_in_groups(records, args.max_cases, args.num_edits, name=args.report)
    llm = load_llm(args.llm)
    unedited = plain_reader(llm)
    found: dict[str, Any] = {}
    connect(training=True)
    try:
        for name in args.variants:
            training = train(name, args)
            recipe = Recipe(llm, load_editor(training["editor"]), name=name)
            answers, retrieval = evaluate_counts(recipe, cases, counts, data=args.report, unedited=unedited)
            found[name] = {"edits": answers, "retrieval": retrieval, "training": training}
            print(json.dumps({name: found[name]}), flush=True)
    finally:
        ray.shutdown()
    _show(found)
    result = {
        "variants": found,
        "llm": args.llm,
        "encoder": args.encoder,
        "trained_on": args.data,
        "data": {"name": source.name, "sha256": source.sha256, "cases": len(cases)},
        "seconds": round(time.monotonic() - started, 1),
    }
    line = json.dumps(result)
    if args.output:
        args.output.write_text(line + "\n")
    print(line)


def _show(found: dict[str, Any]) -> None:
    """Free generation, and the decisions of retrieval, by variant and number of edits."""
    table = Table("variant", "edits at once", "reliability", "generality", "locality", "right fact", "right decision")
    for name, one in found.items():
        for num, metrics in one["edits"].items():
            free, retrieval = metrics["free"], one["retrieval"][num]
            values = [free["reliability"], free["generality"], free["locality"]]
            values += [retrieval["right_fact"], retrieval["right_decision"]]
            table.add_row(name, num, *(f"{value:.3f}" for value in values))
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
