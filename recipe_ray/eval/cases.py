"""What is asked of an edited model."""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from recipe_ray.examples import EditRecord, Question
from recipe_ray.facts import DEFAULT_NAMESPACE, default_fact_id

Kind = Literal["reliability", "generality", "generality_novel", "locality"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalCase:
    """One edit and the questions around it.

    Attributes:
        fact_id: the edit's id in the table of facts.
        statement, prompt, target: the edit.
        generality_prompt: the question in other words, of a sort that training uses.
        novel_prompt: the question in words that no training uses; None where there are none such.
        locality_prompt: a question that neither this nor any other edit answers.
    """

    fact_id: str
    statement: str
    prompt: str
    target: str
    generality_prompt: str
    novel_prompt: str | None = None
    locality_prompt: str

    def question(self, kind: Kind) -> str:
        """The prompt of one kind; the query is never more than this."""
        found = {
            "reliability": self.prompt,
            "generality": self.generality_prompt,
            "generality_novel": self.novel_prompt,
            "locality": self.locality_prompt,
        }[kind]
        assert found is not None  # `kinds_of` names those that there are
        return found


def kinds_of(cases: Sequence[EvalCase]) -> tuple[Kind, ...]:
    """The kinds of questions that every case has."""
    has_novel = all(case.novel_prompt is not None for case in cases)
    return tuple(kind for kind in KINDS if has_novel or kind != "generality_novel")


def record_cases(records: Sequence[EditRecord], num_edits: int, *, seed: int = 0) -> tuple[EvalCase, ...]:
    """Cases of a data set's edits, drawn at random; of several questions of a sort one is drawn.

    Edits that lack a question of generality with the edit's own target, or one of locality, are left out.

    Args:
        records: edits, as `clean` leaves them.
        num_edits: how many, or as many as there are.
        seed: of what is drawn.
    """
    rng = random.Random(seed)
    cases: list[EvalCase] = []
    for record in rng.sample(list(records), len(records)):
        asked = _questions(record.generality.values(), target=record.target)
        spared = _questions(record.locality.values())
        if asked and spared and len(cases) < num_edits:
            cases.append(
                EvalCase(
                    fact_id=default_fact_id(DEFAULT_NAMESPACE, record.prompt),
                    statement=record.statement,
                    prompt=record.prompt,
                    target=record.target,
                    generality_prompt=rng.choice(asked).prompt,
                    locality_prompt=rng.choice(spared).prompt,
                )
            )
    return tuple(cases)


def cases_in_groups(
    records: Sequence[EditRecord], max_cases: int, num_edits: Sequence[int]
) -> tuple[tuple[EvalCase, ...], list[int]]:
    """Cases that fall into whole groups of each number of simultaneous edits, and those numbers.

    A number above what there is stands for all cases there are; the numbers divide each other.

    Args:
        records: edits, as `clean` leaves them.
        max_cases: at most so many.
        num_edits: simultaneous edits wanted.
    """
    cases = record_cases(records, max_cases)
    step = max((num for num in num_edits if num < len(cases)), default=1)
    cases = cases[: len(cases) // step * step]
    return cases, sorted({min(num, len(cases)) for num in num_edits})


def _questions(kinds: Iterable[tuple[Question, ...]], *, target: str | None = None) -> list[Question]:
    return [one for questions in kinds for one in questions if target in (None, one.target)]


@dataclass(frozen=True, slots=True)
class Ask:
    """What the LLM reads for one question: a text, behind the continuous prompt of fact `fact`, or of none (-1)."""

    text: str
    fact: int = -1
