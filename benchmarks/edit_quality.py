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

import numpy as np
from rich.console import Console
from rich.table import Table

from recipe_ray.datasets.cleaning import clean
from recipe_ray.datasets.sources import read_source
from recipe_ray.eval.cases import Kind, cases_in_groups, kinds_of
from recipe_ray.eval.editors import InContext, Unedited
from recipe_ray.eval.protocol import STOP, Metrics, Reader, evaluate
from recipe_ray.eval.trained import evaluate_trained
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
    cases, counts = cases_in_groups(records, args.max_cases, args.num_edits)
    llm = load_llm(args.llm, args.device)
    found: dict[str, Any] = {}
    retrieval: dict[str, Any] = {}
    plain = Reader(llm, np.zeros((0, 0, llm.width), np.float32), "first")
    for name, editor in (("unedited", Unedited(cases)), ("in_context", InContext(cases, statement_end=STOP))):
        found[name] = {"any": evaluate(plain, editor, cases, num_edits=1)}
    editors: dict[str, Any] = {}
    for named in args.editors:
        name, _, folder = named.partition("=")
        model = load_editor(folder, args.device)
        found[name], retrieval[name] = evaluate_trained(model, llm, cases, counts)
        editors[name] = {"fingerprint": model.fingerprint(), **model.config.to_dict()}
    _show(found, kinds_of(cases))
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


def _show(found: dict[str, dict[str, Metrics]], kinds: tuple[Kind, ...]) -> None:
    table = Table(
        "editor", "edits at once", *(f"{kind}, free" for kind in kinds), *(f"{kind}, forced" for kind in kinds)
    )
    for name, by_count in found.items():
        for num, metrics in by_count.items():
            values = [metrics[mode][kind] for mode in ("free", "teacher_forced") for kind in kinds]
            table.add_row(name, num, *(f"{value:.3f}" for value in values))
    Console(width=150).print(table)


if __name__ == "__main__":
    main()
