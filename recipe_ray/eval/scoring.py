"""How the answers to the questions of cases are scored: exact match, tokens, retrieval, and examples of failures."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from recipe_ray.eval.assertion import asserts
from recipe_ray.eval.cases import SORTS, Ask, CaseQuestion, EvalCase, Sort
from recipe_ray.eval.chats import chat_questions
from recipe_ray.eval.methods.base import Found
from recipe_ray.eval.protocol import Reader
from recipe_ray.eval.results import ENDED, CellSettings, Failure
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
        of_cases = [self.questions_of(case) for case in cases]
        self.questions = [question for questions in of_cases for question in questions]
        self.prompts = [question.prompt for question in self.questions]
        self.case_of = np.repeat(np.arange(len(cases)), [len(questions) for questions in of_cases])
        self.wanted = _wanted(unedited, self.questions)

    def questions_of(self, case: EvalCase) -> Sequence[CaseQuestion]:
        """The questions of one case."""
        return case.questions

    def rows_of(self, start: int, stop: int) -> slice:
        """Where the questions of some cases stand."""
        first, last = np.searchsorted(self.case_of, [start, stop]).tolist()
        return slice(first, last)

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
        counted = self.counted()
        free, forced = (
            self.scored([(name, np.array(values, np.float64), counts) for name, counts in counted.items()], settings)
            for values in ([answer.right for answer in answers], [answer.tokens for answer in answers])
        )
        return free, forced

    def counted(self) -> dict[str, npt.NDArray[np.bool_]]:
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


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatAnswer:
    """A chat, how it was answered, and what is said of the answer.

    Attributes:
        sort: of the question.
        edit: the statement of its case's edit.
        relation: of the edit; empty where unknown.
        messages: what the LLM was asked.
        wanted: the target, or for locality what the unedited LLM says.
        rivals: other answers, which must not be asserted.
        got: what was said.
        right: whether the first sentence asserts the target; for locality, whether all tokens are the unedited LLM's.
        ended: whether the LLM ended the answer by itself.
    """

    sort: Sort
    edit: str
    relation: str
    messages: tuple[tuple[str, str], ...]
    wanted: str
    rivals: tuple[str, ...]
    got: str
    right: bool
    ended: bool


class ChatSheet(Sheet):
    """The chats of cases: see `chat_questions`."""

    def questions_of(self, case: EvalCase) -> Sequence[CaseQuestion]:
        """The chats of one case."""
        return chat_questions(case)

    def chat_answers(self, reader: Reader, asks: Sequence[Ask], rows: slice) -> list[ChatAnswer]:
        """Read the asks of some of the chats, and judge."""
        said = reader.generations(asks)
        answers = []
        for one, question, want, case in zip(
            said, self.questions[rows], self.wanted[rows], self.case_of[rows].tolist(), strict=True
        ):
            if question.sort == "locality":
                right = tuple(one.token_ids) == want.token_ids
            else:
                right = asserts(one.text, want.text, rivals=question.rivals, subject=question.subject)
            answers.append(
                ChatAnswer(
                    sort=question.sort,
                    edit=self.cases[case].statement,
                    relation=self.cases[case].relation,
                    messages=question.messages,
                    wanted=want.text,
                    rivals=question.rivals,
                    got=one.text,
                    right=right,
                    ended=one.finish_reason == "stop",
                )
            )
        return answers

    def chat_failures(self, answers: Sequence[ChatAnswer], settings: CellSettings) -> tuple[Failure, ...]:
        """As `failures`, of chats: their kind is `chat`, their question the last message."""
        chosen = []
        for sort in SORTS:
            failed = [one for one in answers if one.sort == sort and not one.right]
            rng = random.Random(f"{settings.seed}/chat/{sort}")
            for one in rng.sample(failed, min(settings.num_failures, len(failed))):
                _, question = one.messages[-1]
                chosen.append(
                    Failure(sort=sort, kind="chat", edit=one.edit, question=question, wanted=one.wanted, got=one.got)
                )
        return tuple(chosen)

    def chat_scores(self, answers: Sequence[ChatAnswer], settings: CellSettings) -> dict[str, Score]:
        """Shares of right answers by sort, and as `ended` that of answers to edits which ended by themselves."""
        right = np.array([answer.right for answer in answers], np.float64)
        ended = np.array([answer.ended for answer in answers], np.float64)
        counted = self.counted()
        return self.scored(
            [*((name, right, counts) for name, counts in counted.items()), (ENDED, ended, ~counted["locality"])],
            settings,
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
    spared = [question.ask for question in questions if question.sort == "locality"]
    own = iter(zip(unedited.generate(spared), unedited.generated_ids(spared), strict=True))
    targets = [question.target for question in questions if question.sort != "locality"]
    given = iter(zip(targets, unedited.answer_ids(targets), strict=True))
    return [Wanted(*next(own if question.sort == "locality" else given)) for question in questions]
