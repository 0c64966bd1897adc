r"""How well editors answer on a data set: free generation and teacher forcing, 1 to 1,000 edits at once.

    python benchmarks/edit_quality.py --llm LLM --data edits:report.jsonl --editors paper=DIR default=DIR

With --chat edits are asked about in chats too, through the LLM's template, and --answers writes each of those answers
with its question and verdict for a person to read. Prints a table, and as its last line one JSON object: the metrics by
number of edits and editor, those of retrieval, and what was measured on what.
"""

import argparse
import dataclasses
import functools
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from recipe_ray.config import TESTBED
from recipe_ray.datasets.asking import is_held_out, with_relation
from recipe_ray.datasets.cleaning import clean
from recipe_ray.datasets.sources import read_source
from recipe_ray.datasets.wordings.relations import HELD_OUT
from recipe_ray.eval.cases import EvalCase, Sort, in_groups, record_cases, sorts_of
from recipe_ray.eval.chats import facts_of_questions
from recipe_ray.eval.evaluation import evaluate_counts
from recipe_ray.eval.methods.base import Method
from recipe_ray.eval.methods.in_context import Oracle
from recipe_ray.eval.methods.recipe import OraclePrompt, Recipe
from recipe_ray.eval.methods.unedited import Unedited
from recipe_ray.eval.protocol import plain_reader
from recipe_ray.eval.results import ENDED
from recipe_ray.eval.scoring import ChatAnswer
from recipe_ray.eval.testbed import testbed_cases
from recipe_ray.examples import EditRecord
from recipe_ray.model.editor import load_editor
from recipe_ray.model.llm import load_llm

MEASURES = {"free": "free", "forced": "teacher_forced"}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llm", required=True)
    parser.add_argument("--data", required=True, help="FORM:PATH, or testbed for its world's facts")
    parser.add_argument("--editors", nargs="*", default=[], help="NAME=DIRECTORY")
    parser.add_argument("--num-edits", nargs="+", type=int, default=[1, 10, 100, 1000])
    parser.add_argument(
        "--max-cases", type=int, default=1000, help="edits asked about; others are in force beside them"
    )
    parser.add_argument("--only-editors", action="store_true", help="leave out the unedited LLM and pasted statements")
    parser.add_argument("--chat", action="store_true", help="ask in chats too")
    parser.add_argument("--answers", type=Path, help="file for every answer in a chat, a JSON object a line")
    parser.add_argument(
        "--relations",
        choices=["all", "trained", "held-out"],
        default="all",
        help="edits of the relations held out of a training, of all others, or all",
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument("--output", type=Path, help="file for the JSON as well")
    args = parser.parse_args()
    started = time.monotonic()
    if args.answers and not args.chat:
        parser.error("--answers are those of chats; give --chat too")
    if args.data == TESTBED and args.relations != "all":
        parser.error("--relations are those of data sets; leave it out with the testbed's facts")
    edits, data = _edits(args.data, args.relations, max(args.max_cases, *args.num_edits))
    cases, counts = _in_force(edits, args.max_cases, args.num_edits)
    llm = load_llm(args.llm, args.device)
    if args.chat and not llm.tokenizer.chat_template:
        parser.error(f"LLM {args.llm} has no chat template; leave --chat out")
    if args.answers:
        args.answers.write_text("")
    unedited = plain_reader(llm)

    def measured(method: Method, counts: Mapping[int, Sequence[EvalCase]]) -> tuple[dict[str, Any], dict[str, Any]]:
        told = functools.partial(_append, args.answers, method.name) if args.answers else None
        answers, lookups = {}, {}
        for num_edits, bystanders in counts.items():
            of_count = evaluate_counts(
                *(method, cases, [num_edits]),
                data=args.data,
                unedited=unedited,
                chat=args.chat,
                told=told,
                bystanders=bystanders,
            )
            answers |= of_count[0]
            lookups |= of_count[1]
        return answers, lookups

    found: dict[str, Any] = {}
    retrieval: dict[str, Any] = {}
    pasted = Oracle(llm, facts_of_questions(cases, neighbours=True), name="in_context")
    for method in () if args.only_editors else (Unedited(llm), pasted):
        answers, _ = measured(method, {1: ()})
        found[method.name] = {"any": answers["1"]}
    editors: dict[str, Any] = {}
    for named in args.editors:
        name, _, folder = named.partition("=")
        model = load_editor(folder, args.device)
        recipe = Recipe(llm, model, name=name)
        found[name], retrieval[name] = measured(recipe, counts)
        handed = OraclePrompt(llm, model, facts_of_questions(cases), name=f"{name}, right fact", beside=recipe)
        answers, _ = measured(handed, {1: ()})
        found[handed.name] = {"any": answers["1"]}
        editors[name] = {"fingerprint": model.fingerprint(), **model.config.to_dict()}
    _show(found, sorts_of(cases), chat=args.chat)
    result = {
        "edits": found,
        "retrieval": retrieval,
        "editors": editors,
        "llm": args.llm,
        "data": {**data, "cases": len(cases), "relations": args.relations},
        "device": str(llm.device),
        "seconds": round(time.monotonic() - started, 1),
    }
    line = json.dumps(result)
    if args.output:
        args.output.write_text(line + "\n")
    print(line)


def _edits(data: str, relations: str, num_edits: int) -> tuple[tuple[EvalCase, ...], dict[str, str]]:
    """At most so many edits, and what they were read from."""
    if data == TESTBED:
        return testbed_cases()[:num_edits], {"name": TESTBED}
    source = read_source(data)
    (cleaned,) = clean([source.records], num_empty=source.num_empty).records
    records = [record for record in map(with_relation, cleaned) if _chosen(record, relations)]
    return record_cases(records, num_edits, name=data), {"name": source.name, "sha256": source.sha256}


def _in_force(
    edits: tuple[EvalCase, ...], max_cases: int, num_edits: Sequence[int]
) -> tuple[tuple[EvalCase, ...], dict[int, tuple[EvalCase, ...]]]:
    """The edits that are asked about, and by number of edits at once those in force beside them."""
    cases, counts = in_groups(edits[:max_cases], [num for num in num_edits if num <= max_cases])
    beside: dict[int, tuple[EvalCase, ...]] = dict.fromkeys(counts, ())
    for num in sorted(num_edits):
        if max_cases < num:
            beside[min(num, len(edits))] = edits[len(cases) : num]
    return cases, beside


def _append(path: Path, editor: str, num_edits: int, answers: Sequence[ChatAnswer]) -> None:
    with path.open("a", encoding="utf-8") as file:
        for answer in answers:
            row = {"editor": editor, "num_edits": num_edits, **dataclasses.asdict(answer)}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _chosen(record: EditRecord, relations: str) -> bool:
    if relations == "held-out":
        return record.relation in HELD_OUT
    return relations == "all" or not is_held_out(record)


def _show(found: dict[str, dict[str, Any]], sorts: tuple[Sort, ...], *, chat: bool) -> None:
    columns = [(f"{sort}, {label}", measure, sort) for label, measure in MEASURES.items() for sort in sorts]
    if chat:
        columns += [(f"{name}, chat", "chat", name) for name in (*sorts, ENDED)]
    table = Table("editor", "edits at once", *(title for title, _, _ in columns))
    for name, by_count in found.items():
        for num, metrics in by_count.items():
            values = [metrics[measure].get(sort) for _, measure, sort in columns]
            table.add_row(name, num, *("" if value is None else f"{value:.3f}" for value in values))
    Console(width=190 if chat else 150).print(table)


if __name__ == "__main__":
    main()
