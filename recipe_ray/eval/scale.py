r"""RECIPE with very many facts held at once: the testbed's invented subjects, asked on a sample.

    python -m recipe_ray.eval.scale --llm testbed --editor EDITOR --num-facts 10000 100000 --folder FOLDER
    python -m recipe_ray.eval.scale --llm testbed --editor EDITOR --table TABLE

The facts are encoded here, their keys kept in a file and never all in memory, or they lie in a table with its index
into which `python -m recipe_ray.testbed.million` was ingested. A sample of them is asked in the fact's own words and in
other trained words, beside as many questions about subjects of which nothing is stored. The last line of what is
printed is one JSON list of results.
"""

import argparse
import dataclasses
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from recipe_ray.eval.cases import Ask, CaseQuestion, EvalCase
from recipe_ray.eval.efficiency import peak_memory_bytes, start_peak_memory
from recipe_ray.eval.large import EncodedFacts, LargeFacts, TableFacts
from recipe_ray.eval.methods.base import Found
from recipe_ray.eval.methods.retrieving import EditorEncoding
from recipe_ray.eval.protocol import Reader, plain_reader
from recipe_ray.eval.results import CellResult, CellSettings, Efficiency
from recipe_ray.eval.scoring import Lookups, Sheet
from recipe_ray.eval.statistics import Score
from recipe_ray.model.editor import load_editor
from recipe_ray.model.llm import load_llm
from recipe_ray.retrieval import NO_FACT, Retrieval, decide
from recipe_ray.store.indexes.tuning import IndexSettings
from recipe_ray.testbed.million import generate_facts, generate_questions

DATA = "testbed/invented"
NUM_SAMPLE = 2000
NUM_TIMED = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleResult:
    """What RECIPE answers with very many facts in force, and where answers are lost.

    Attributes:
        cell: as of any cell, T being the facts held; its `retrieval` is through the index.
        exact_retrieval: the same under an exact search of all keys: what no index can better.
        index_missed: share of questions whose nearest fact the index does not find.
        index_changed: share of questions for which another fact is applied, or none, than after an exact search.
        lookup_ms_p50, lookup_ms_p99: of one query in the index, milliseconds.
        exact_ms_p50: of one query against all keys.
        encode_ms_p50: of one question by the editor.
        index: its kind, probes and why.
    """

    cell: CellResult
    exact_retrieval: dict[str, Score]
    index_missed: float
    index_changed: float
    lookup_ms_p50: float
    lookup_ms_p99: float
    exact_ms_p50: float
    encode_ms_p50: float
    index: str

    def row(self) -> dict[str, Any]:
        """One flat row: that of free generation, with what is known beside it."""
        own = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name not in ("cell", "exact_retrieval")
        }
        exact = {f"exact_{name}": score.value for name, score in self.exact_retrieval.items()}
        return {**self.cell.rows()[0], **exact, **own}


def invented_cases(num_facts: int, num_sample: int, *, seed: int = 0) -> tuple[EvalCase, ...]:
    """A sample of the first `num_facts` invented facts of a seed, each with a rephrasing and a stranger's question.

    Args:
        num_facts: that are stored.
        num_sample: that are asked about, or as many as there are.
        seed: of the facts and of the sample.
    """
    num_sample = min(num_sample, num_facts)
    questions = generate_questions(num_facts, 2 * num_sample, seed)
    rephrased = {one.fact_id: one.text for one in questions if one.fact_id is not None}
    strangers = iter([one.text for one in questions if one.fact_id is None])
    return tuple(
        EvalCase(
            fact_id=fact["id"],
            prompt=fact["prompt"],
            target=fact["target"],
            subject=fact["subject"],
            others=(
                CaseQuestion(sort="generality", kind="rephrase", prompt=rephrased[fact["id"]], target=fact["target"]),
                CaseQuestion(sort="locality", kind="stranger", prompt=next(strangers)),
            ),
        )
        for fact in generate_facts(num_facts, seed)
        if fact["id"] in rephrased
    )


def evaluate_scale(
    facts: LargeFacts, encoding: EditorEncoding, cases: Sequence[EvalCase], *, unedited: Reader, seed: int = 0
) -> ScaleResult:
    """Ask a sample of the facts held at once.

    Args:
        facts: all that are held.
        encoding: of the editor that encoded them.
        cases: of facts among them.
        unedited: the LLM.
        seed: of intervals and examples.
    """
    llm = unedited.llm
    llm.check_prompt_width(encoding.editor.llm_width)
    start_peak_memory(llm.device)
    sheet = Sheet(cases, unedited)
    queries_BK = encoding.queries(sheet.prompts)
    thresholds_B = encoding.thresholds(queries_BK)
    indexed = decide(*facts.search(queries_BK), thresholds_B)
    exact = decide(*facts.exact(queries_BK), thresholds_B)
    # Only what is applied somewhere is read.
    applied = np.unique(indexed.row_B[indexed.row_B != NO_FACT])
    config = encoding.editor.config
    reader = Reader(llm, facts.prompts(applied), config.prompt_position, config.chat_position)
    places = np.where(indexed.row_B == NO_FACT, NO_FACT, np.searchsorted(applied, indexed.row_B))
    asks = [Ask(prompt, place) for prompt, place in zip(sheet.prompts, places.tolist(), strict=True)]
    answers = sheet.answers(reader, asks, slice(None))

    settings = CellSettings(data=DATA, num_edits=facts.num_facts, mode="batch", seed=seed)
    free, teacher_forced = sheet.scores(answers, settings)
    lookups = Lookups(sheet, [_found(indexed, facts)])
    timed = queries_BK[:NUM_TIMED]
    lookup_ms = _times_ms(facts.search, timed)
    return ScaleResult(
        cell=CellResult(
            editor="recipe",
            llm=llm.name,
            settings=settings,
            num_cases=len(cases),
            free=free,
            teacher_forced=teacher_forced,
            retrieval=lookups.scores(settings),
            related_margins=lookups.margins(related=True),
            unrelated_margins=lookups.margins(related=False),
            efficiency=Efficiency(
                seconds_per_edit=facts.seconds_per_fact,
                ttft_s=None,
                tokens_per_s=None,
                unedited_ttft_s=None,
                unedited_tokens_per_s=None,
                state_bytes=facts.size_bytes,
                peak_memory_bytes=peak_memory_bytes(llm.device),
            ),
            failures=sheet.failures(answers, settings),
        ),
        exact_retrieval=Lookups(sheet, [_found(exact, facts)]).scores(settings),
        # Of equal scores either fact is as near.
        index_missed=float((indexed.score_B < exact.score_B).mean()),
        index_changed=float((indexed.row_B != exact.row_B).mean()),
        lookup_ms_p50=float(np.median(lookup_ms)),
        lookup_ms_p99=float(np.quantile(lookup_ms, 0.99)),
        exact_ms_p50=float(np.median(_times_ms(facts.exact, timed[:10]))),
        encode_ms_p50=float(np.median(_times_ms(encoding.queries, sheet.prompts[:NUM_TIMED]))),
        index=facts.index,
    )


def _found(found: Retrieval, facts: LargeFacts) -> Found:
    return Found(
        fact_ids_B=tuple(None if row == NO_FACT else facts.fact_id(row) for row in found.nearest_B.tolist()),
        applied_B=found.row_B != NO_FACT,
        score_B=found.score_B,
        threshold_B=found.sentinel_B,
    )


def _times_ms(call: Any, items: Any) -> npt.NDArray[np.float64]:
    """Milliseconds of a call with each item alone; the first is made once before."""
    taken = []
    for place in [0, *range(len(items))]:
        begun = time.perf_counter()
        call(items[place : place + 1])
        taken.append(1e3 * (time.perf_counter() - begun))
    return np.array(taken[1:])


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llm", default="testbed")
    parser.add_argument("--editor", required=True, help="directory of a trained editor")
    parser.add_argument("--num-facts", nargs="+", type=int, default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--table", help="that holds the invented facts, with an index; instead of --num-facts")
    parser.add_argument("--num-sample", type=int, default=NUM_SAMPLE)
    parser.add_argument("--index", default="auto", help="kind of index over facts that are encoded here")
    parser.add_argument("--folder", type=Path, default=Path("runs/scale"), help="for the keys of facts encoded here")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    editor = load_editor(args.editor, args.device)
    unedited = plain_reader(load_llm(args.llm, args.device))
    encoding = EditorEncoding(editor)
    results = []
    for num_facts in [None] if args.table else sorted(args.num_facts):
        facts: LargeFacts
        if num_facts is None:
            facts = TableFacts(args.table, editor.identity())
        else:
            settings = IndexSettings(kind=args.index)
            facts = EncodedFacts(editor, num_facts, args.folder, seed=args.seed, settings=settings)
        cases = invented_cases(facts.num_facts, args.num_sample, seed=args.seed)
        result = evaluate_scale(facts, encoding, cases, unedited=unedited, seed=args.seed)
        results.append(result.row())
        print(json.dumps(results[-1]), flush=True)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
