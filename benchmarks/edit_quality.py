r"""How well editors answer on a data set: free generation and teacher forcing, 1 to 1,000 edits at once.

    python benchmarks/edit_quality.py --llm LLM --data edits:report.jsonl --editors paper=DIR default=DIR

Prints a table, and as its last line one JSON object: the metrics by number of edits and editor, those of retrieval, and
what was measured on what.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from recipe_ray.datasets.cleaning import clean
from recipe_ray.datasets.sources import read_source
from recipe_ray.eval.cases import Sort, cases_in_groups, facts_of_prompts, sorts_of
from recipe_ray.eval.evaluation import evaluate_counts
from recipe_ray.eval.methods.in_context import Oracle
from recipe_ray.eval.methods.recipe import Recipe
from recipe_ray.eval.methods.unedited import Unedited
from recipe_ray.eval.protocol import plain_reader
from recipe_ray.model.editor import load_editor
from recipe_ray.model.llm import load_llm


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llm", required=True)
    parser.add_argument("--data", required=True, help="FORM:PATH")
    parser.add_argument("--editors", nargs="*", default=[], help="NAME=DIRECTORY")
    parser.add_argument("--num-edits", nargs="+", type=int, default=[1, 10, 100, 1000])
    parser.add_argument("--max-cases", type=int, default=1000)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--output", type=Path, help="file for the JSON as well")
    args = parser.parse_args()
    started = time.monotonic()
    source = read_source(args.data)
    (records,) = clean([source.records], num_empty=source.num_empty).records
    cases, counts = cases_in_groups(records, args.max_cases, args.num_edits, name=args.data)
    llm = load_llm(args.llm, args.device)
    found: dict[str, Any] = {}
    retrieval: dict[str, Any] = {}
    unedited = plain_reader(llm)
    pasted = Oracle(llm, facts_of_prompts(cases, neighbours=True), name="in_context")
    for method in (Unedited(llm), pasted):
        answers, _ = evaluate_counts(method, cases, [1], data=args.data, unedited=unedited)
        found[method.name] = {"any": answers["1"]}
    editors: dict[str, Any] = {}
    for named in args.editors:
        name, _, folder = named.partition("=")
        model = load_editor(folder, args.device)
        recipe = Recipe(llm, model, name=name)
        found[name], retrieval[name] = evaluate_counts(recipe, cases, counts, data=args.data, unedited=unedited)
        editors[name] = {"fingerprint": model.fingerprint(), **model.config.to_dict()}
    _show(found, sorts_of(cases))
    result = {
        "edits": found,
        "retrieval": retrieval,
        "editors": editors,
        "llm": args.llm,
        "data": {"name": source.name, "sha256": source.sha256, "cases": len(cases)},
        "device": str(llm.device),
        "seconds": round(time.monotonic() - started, 1),
    }
    line = json.dumps(result)
    if args.output:
        args.output.write_text(line + "\n")
    print(line)


def _show(found: dict[str, dict[str, Any]], sorts: tuple[Sort, ...]) -> None:
    table = Table(
        "editor", "edits at once", *(f"{sort}, free" for sort in sorts), *(f"{sort}, forced" for sort in sorts)
    )
    for name, by_count in found.items():
        for num, metrics in by_count.items():
            values = [metrics[measure][sort] for measure in ("free", "teacher_forced") for sort in sorts]
            table.add_row(name, num, *(f"{value:.3f}" for value in values))
    Console(width=150).print(table)


if __name__ == "__main__":
    main()
