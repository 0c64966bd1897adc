"""The measurement: one editor on one data set, with T edits in force at once.

Cases are taken in groups of T, each group edited apart from the others; every editor gets the same cases. The query is
always the prompt alone. How answers are compared: `protocol`.
"""

import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from recipe_ray.errors import ConfigError
from recipe_ray.eval.cases import SORTS, Ask, CaseQuestion, EvalCase
from recipe_ray.eval.efficiency import clock, peak_memory_bytes, reading_speed, start_peak_memory
from recipe_ray.eval.methods.base import Edit, Found, Method, Retrieves
from recipe_ray.eval.protocol import Reader
from recipe_ray.eval.results import CellResult, CellSettings, Efficiency, Failure, Mode
from recipe_ray.eval.statistics import Score, scores_by_name


@dataclass(frozen=True, slots=True)
class _Answer:
    """How one question was answered: the text, whether it is right, and the share of right tokens."""

    got: str
    right: bool
    tokens: float


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What is right: a text, and it as tokens."""

    text: str
    token_ids: tuple[int, ...]


def edit_of(case: EvalCase) -> Edit:
    """What a method may see of a case."""
    return Edit(fact_id=case.fact_id, prompt=case.prompt, target=case.target, subject=case.subject)


def evaluate_cell(method: Method, cases: Sequence[EvalCase], settings: CellSettings, *, unedited: Reader) -> CellResult:
    """Measure one editor with `settings.num_edits` edits in force at once.

    Args:
        method: the editor, with no edit in force; left so, whatever happens.
        cases: all are asked about, in whole groups of T, in their order.
        settings: what is measured.
        unedited: the LLM without any editor, for what locality is held to. It may be the LLM that the method changes:
            it is asked before.

    Raises:
        ConfigError: the cases are no whole groups of T.
        EditorError: the method cannot make one of the edits.
    """
    num_edits = settings.num_edits
    if not cases or len(cases) % num_edits:
        raise ConfigError(f"{len(cases)} cases cannot be taken in groups of {num_edits}; give a divisor")
    device = unedited.llm.device
    start_peak_memory(device)
    asked = [(number, question) for number, case in enumerate(cases) for question in case.questions]
    wanted = _wanted(unedited, [question for _, question in asked])
    speed_prompts = _speed_prompts(cases[:num_edits], settings.num_speed_prompts)
    unedited_speed = reading_speed(unedited, lambda prompts: [Ask(prompt) for prompt in prompts], speed_prompts)

    seconds: list[float] = []
    asks: list[Ask] = []
    answers: list[_Answer] = []
    found: list[Found] = []
    edited_speed: tuple[float | None, float | None] = (None, None)
    state_bytes = 0
    for start in range(0, len(cases), num_edits):
        group = cases[start : start + num_edits]
        rows = slice(len(asks), len(asks) + sum(len(case.questions) for case in group))
        prompts = [question.prompt for _, question in asked[rows]]
        try:
            seconds += _apply(method, group, settings.mode)
            asks += method.asks(prompts)
            if isinstance(method, Retrieves):
                found.append(method.retrieve(prompts))
            if start == 0:
                state_bytes = method.state_bytes()
                edited_speed = reading_speed(method.reader, method.asks, speed_prompts)
            if method.changes_llm:
                answers += _answers(method.reader, asks[rows], wanted[rows])
        finally:
            method.undo()
    if not method.changes_llm:
        answers = _answers(method.reader, asks, wanted)

    case_of = np.array([number for number, _ in asked], np.int64)
    questions = [question for _, question in asked]
    counted = _counted(questions)
    scores = {
        measure: scores_by_name(
            case_of,
            [(name, np.array(values, np.float64), counts) for name, counts in counted.items()],
            num_cases=len(cases),
            seed=settings.seed,
            num_resamples=settings.num_resamples,
        )
        for measure, values in (
            ("free", [answer.right for answer in answers]),
            ("teacher_forced", [answer.tokens for answer in answers]),
        )
    }
    lookups = _Lookups(cases, case_of, questions, found) if found else None
    return CellResult(
        editor=method.name,
        llm=unedited.llm.name,
        settings=settings,
        num_cases=len(cases),
        free=scores["free"],
        teacher_forced=scores["teacher_forced"],
        retrieval={} if lookups is None else lookups.scores(settings),
        related_margins=() if lookups is None else lookups.margins(related=True),
        unrelated_margins=() if lookups is None else lookups.margins(related=False),
        efficiency=Efficiency(
            seconds_per_edit=statistics.median(seconds),
            ttft_s=edited_speed[0],
            tokens_per_s=edited_speed[1],
            unedited_ttft_s=unedited_speed[0],
            unedited_tokens_per_s=unedited_speed[1],
            state_bytes=state_bytes,
            peak_memory_bytes=peak_memory_bytes(device),
        ),
        failures=_failures(cases, asked, wanted, answers, settings),
    )


def _wanted(unedited: Reader, questions: Sequence[CaseQuestion]) -> list[_Wanted]:
    spared = [Ask(question.prompt) for question in questions if question.sort == "locality"]
    own = iter(zip(unedited.generate(spared), unedited.generated_ids(spared), strict=True))
    targets = [question.target for question in questions if question.sort != "locality"]
    given = iter(zip(targets, unedited.answer_ids(targets), strict=True))
    return [_Wanted(*next(own if question.sort == "locality" else given)) for question in questions]


def _apply(method: Method, group: Sequence[EvalCase], mode: Mode) -> list[float]:
    """Seconds an edit of each call."""
    edits = [edit_of(case) for case in group]
    device = method.reader.llm.device
    seconds = []
    for call in [[edit] for edit in edits] if mode == "lifelong" else [edits]:
        begun = clock(device)
        method.apply(call)
        seconds.append((clock(device) - begun) / len(call))
    return seconds


def _answers(reader: Reader, asks: Sequence[Ask], wanted: Sequence[_Wanted]) -> list[_Answer]:
    said = reader.generate(asks)
    shares = reader.token_accuracies(asks, [one.token_ids for one in wanted])
    return [_Answer(got, got == want.text, share) for got, want, share in zip(said, wanted, shares, strict=True)]


def _speed_prompts(group: Sequence[EvalCase], num: int) -> list[str]:
    """Questions of a group, those that its edits answer first."""
    questions = [question for case in group for question in case.questions]
    questions.sort(key=lambda question: SORTS.index(question.sort))
    return [question.prompt for question in questions[:num]]


def _counted(questions: Sequence[CaseQuestion]) -> dict[str, npt.NDArray[np.bool_]]:
    """For each name of a score, which questions count."""
    counted: dict[str, npt.NDArray[np.bool_]] = {}
    for sort in SORTS:
        of_sort = np.array([question.sort == sort for question in questions])
        counted[sort] = of_sort
        kinds = dict.fromkeys(question.kind for question in questions if question.sort == sort)
        if len(kinds) > 1:
            for kind in kinds:
                counted[f"{sort}/{kind}"] = of_sort & np.array([question.kind == kind for question in questions])
    return counted


def _failures(
    cases: Sequence[EvalCase],
    asked: Sequence[tuple[int, CaseQuestion]],
    wanted: Sequence[_Wanted],
    answers: Sequence[_Answer],
    settings: CellSettings,
) -> tuple[Failure, ...]:
    chosen: list[Failure] = []
    for sort in SORTS:
        failed = [row for row, (_, question) in enumerate(asked) if question.sort == sort and not answers[row].right]
        rng = random.Random(f"{settings.seed}/{sort}")
        for row in sorted(rng.sample(failed, min(settings.num_failures, len(failed)))):
            number, question = asked[row]
            chosen.append(
                Failure(
                    sort=sort,
                    kind=question.kind,
                    edit=cases[number].statement,
                    question=question.prompt,
                    wanted=wanted[row].text,
                    got=answers[row].got,
                )
            )
    return tuple(chosen)


class _Lookups:
    """What was found for all questions, beside what is right."""

    def __init__(
        self,
        cases: Sequence[EvalCase],
        case_of: npt.NDArray[np.int64],
        questions: Sequence[CaseQuestion],
        found: Sequence[Found],
    ) -> None:
        self._num_cases = len(cases)
        self._case_of = case_of
        self._sorts = np.array([question.sort for question in questions])
        nearest = [fact_id for one in found for fact_id in one.fact_ids_B]
        own = [cases[number].fact_id for number in case_of]
        self._right = np.array([one == right for one, right in zip(nearest, own, strict=True)])
        self._applied = np.concatenate([one.applied_B for one in found])
        self._margins = np.concatenate([one.score_B - one.threshold_B for one in found])

    def scores(self, settings: CellSettings) -> dict[str, Score]:
        """See `CellResult.retrieval`."""
        unrelated = self._sorts == "locality"
        decision = np.where(unrelated, ~self._applied, self._applied & self._right)
        everywhere = np.ones(len(self._sorts), np.bool_)
        measures = [
            ("right_fact", self._right, ~unrelated),
            ("right_decision", decision, everywhere),
            ("false_fire", self._applied, unrelated),
            ("missed", ~self._applied, ~unrelated),
            ("wrong_fact", self._applied & ~self._right, ~unrelated),
        ]
        for sort in SORTS:
            if sort != "locality":
                measures.append((f"right_fact_{sort}", self._right, self._sorts == sort))
            measures.append((f"right_decision_{sort}", decision, self._sorts == sort))
        return scores_by_name(
            self._case_of,
            [(name, values.astype(np.float64), counted) for name, values, counted in measures],
            num_cases=self._num_cases,
            seed=settings.seed,
            num_resamples=settings.num_resamples,
        )

    def margins(self, *, related: bool) -> tuple[float, ...]:
        """Score minus threshold of the questions that an edit answers, or of the others."""
        return tuple(self._margins[(self._sorts != "locality") == related].tolist())
