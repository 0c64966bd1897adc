"""How the answers to the questions of cases are scored: exact match, tokens, retrieval, and examples of failures."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from recipe_ray.eval.cases import SORTS, Ask, CaseQuestion, EvalCase
from recipe_ray.eval.methods.base import Found
from recipe_ray.eval.protocol import Reader
from recipe_ray.eval.results import CellSettings, Failure
from recipe_ray.eval.statistics import Score, scores_by_name


@dataclass(frozen=True, slots=True)
class Answer:
    """How one question was answered: the text, whether it is right, and the share of right tokens."""

    got: str
    right: bool
    tokens: float


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is right: a text, and it as tokens."""

    text: str
    token_ids: tuple[int, ...]


class Sheet:
    """The questions of cases and what is right, settled before anything is edited.

    Args:
        cases: the edits asked about.
        unedited: the LLM without any editor; its own words are what is right for locality.

    Attributes:
        questions: of all cases in their order.
        prompts: of the questions.
        wanted: of each question.
        case_of: [Q], int64, the case of each question.
    """

    def __init__(self, cases: Sequence[EvalCase], unedited: Reader) -> None:
        self.cases = cases
        self.questions = [question for case in cases for question in case.questions]
        self.prompts = [question.prompt for question in self.questions]
        self.case_of = np.repeat(np.arange(len(cases)), [len(case.questions) for case in cases])
        self.wanted = _wanted(unedited, self.questions)

    def answers(self, reader: Reader, asks: Sequence[Ask], rows: slice) -> list[Answer]:
        """Read the asks of some of the questions, and compare."""
        wanted = self.wanted[rows]
        said = reader.generate(asks)
        shares = reader.token_accuracies(asks, [one.token_ids for one in wanted])
        return [Answer(got, got == want.text, share) for got, want, share in zip(said, wanted, shares, strict=True)]

    def scores(
        self, answers: Sequence[Answer], settings: CellSettings
    ) -> tuple[Mapping[str, Score], Mapping[str, Score]]:
        """By free generation and by teacher forcing; names as in `CellResult`."""
        counted = self._counted()
        free, forced = (
            self.scored([(name, np.array(values, np.float64), counts) for name, counts in counted.items()], settings)
            for values in ([answer.right for answer in answers], [answer.tokens for answer in answers])
        )
        return free, forced

    def _counted(self) -> dict[str, npt.NDArray[np.bool_]]:
        """For each name of a score, which questions count."""
        counted: dict[str, npt.NDArray[np.bool_]] = {}
        for sort in SORTS:
            of_sort = np.array([question.sort == sort for question in self.questions])
            counted[sort] = of_sort
            kinds = dict.fromkeys(question.kind for question in self.questions if question.sort == sort)
            if len(kinds) > 1:
                for kind in kinds:
                    counted[f"{sort}/{kind}"] = of_sort & np.array(
                        [question.kind == kind for question in self.questions]
                    )
        return counted

    def failures(self, answers: Sequence[Answer], settings: CellSettings) -> tuple[Failure, ...]:
        """Examples of what was answered otherwise than wanted, of each sort the same number, drawn by seed."""
        chosen: list[Failure] = []
        for sort in SORTS:
            failed = [row for row, one in enumerate(self.questions) if one.sort == sort and not answers[row].right]
            rng = random.Random(f"{settings.seed}/{sort}")
            for row in sorted(rng.sample(failed, min(settings.num_failures, len(failed)))):
                question = self.questions[row]
                chosen.append(
                    Failure(
                        sort=sort,
                        kind=question.kind,
                        edit=self.cases[self.case_of[row]].statement,
                        question=question.prompt,
                        wanted=self.wanted[row].text,
                        got=answers[row].got,
                    )
                )
        return tuple(chosen)

    def scored(
        self, measures: Sequence[tuple[str, npt.NDArray[np.float64], npt.NDArray[np.bool_]]], settings: CellSettings
    ) -> dict[str, Score]:
        """Scores of measures over all questions, each with the questions that count to it."""
        return scores_by_name(
            self.case_of,
            measures,
            num_cases=len(self.cases),
            seed=settings.seed,
            num_resamples=settings.num_resamples,
        )


class Lookups:
    """What was found for all questions of a sheet, beside what is right.

    Args:
        sheet: the questions.
        found: what was found for them, in their order, in pieces.
    """

    def __init__(self, sheet: Sheet, found: Sequence[Found]) -> None:
        self._sheet = sheet
        self._unrelated = np.array([question.sort == "locality" for question in sheet.questions])
        nearest = [fact_id for one in found for fact_id in one.fact_ids_B]
        own = [sheet.cases[number].fact_id for number in sheet.case_of.tolist()]
        self._right = np.array([one == right for one, right in zip(nearest, own, strict=True)])
        self._applied = np.concatenate([one.applied_B for one in found])
        self._margins = np.concatenate([one.score_B - one.threshold_B for one in found])

    def scores(self, settings: CellSettings) -> dict[str, Score]:
        """See `CellResult.retrieval`."""
        sorts = np.array([question.sort for question in self._sheet.questions])
        decision = np.where(self._unrelated, ~self._applied, self._applied & self._right)
        measures = [
            ("right_fact", self._right, ~self._unrelated),
            ("right_decision", decision, np.ones(len(sorts), np.bool_)),
            ("false_fire", self._applied, self._unrelated),
            ("missed", ~self._applied, ~self._unrelated),
            ("wrong_fact", self._applied & ~self._right, ~self._unrelated),
        ]
        for sort in SORTS:
            if sort != "locality":
                measures.append((f"right_fact_{sort}", self._right, sorts == sort))
            measures.append((f"right_decision_{sort}", decision, sorts == sort))
        return self._sheet.scored(
            [(name, values.astype(np.float64), counts) for name, values, counts in measures], settings
        )

    def margins(self, *, related: bool) -> tuple[float, ...]:
        """Score minus threshold of the questions that an edit answers, or of the others."""
        return tuple(self._margins[self._unrelated != related].tolist())


def _wanted(unedited: Reader, questions: Sequence[CaseQuestion]) -> list[Wanted]:
    spared = [Ask(question.prompt) for question in questions if question.sort == "locality"]
    own = iter(zip(unedited.generate(spared), unedited.generated_ids(spared), strict=True))
    targets = [question.target for question in questions if question.sort != "locality"]
    given = iter(zip(targets, unedited.answer_ids(targets), strict=True))
    return [Wanted(*next(own if question.sort == "locality" else given)) for question in questions]
