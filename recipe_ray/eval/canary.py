"""The canary: questions that a table of facts must answer, or must leave alone, before anyone is served from it."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from recipe_ray.errors import ConfigError, FactError
from recipe_ray.facts import DEFAULT_NAMESPACE, fact_from_record
from recipe_ray.store.files import read_text
from recipe_ray.strict_json import JsonError, decode_flat

Sort = Literal["known", "sampled", "unrelated"]
"""A question of the canary file with its answer; one about a fact of the dump; one on which nothing may fire."""
SORTS: tuple[Sort, ...] = get_args(Sort)
FIELDS = ("prompt", "target", "unrelated", "namespace")
MAX_FAILURES = 100  # that a report holds
_ROUNDING = 1e-9  # of a share times a number


@dataclass(frozen=True, slots=True, kw_only=True)
class CanaryQuestion:
    """One question.

    Attributes:
        sort: what is asked of it.
        place: where it comes from: `file:line`, or the id of a fact.
        prompt: what is asked.
        target: what must be answered; empty where nothing may fire.
        namespace: whose facts.
    """

    sort: Sort
    place: str
    prompt: str
    target: str
    namespace: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What a question got.

    Attributes:
        fact_id, target: of the fact that is applied; None where none is.
        score: of the best fact, applied or not; None in a namespace without facts.
        sentinel: what a score must exceed.
        answer: the LLM's, with that fact applied; None where no LLM was asked.
    """

    fact_id: str | None
    target: str | None
    score: float | None
    sentinel: float
    answer: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CanaryLimits:
    """What is good enough; shares from 0 to 1.

    Attributes:
        min_known: of the known questions, that must be answered.
        min_sampled: of the questions about facts of the dump, that must be answered.
        max_fired: of the unrelated ones, on which a fact may be applied.
    """

    min_known: float = 1.0
    min_sampled: float = 0.9
    max_fired: float = 0.0

    def __post_init__(self) -> None:
        for name in ("min_known", "min_sampled", "max_fired"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; give a share from 0 to 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class CanaryFailure:
    """A question that was not answered, or on which a fact fired that should not have."""

    question: CanaryQuestion
    told: Told


@dataclass(frozen=True, slots=True, kw_only=True)
class CanaryReport:
    """How the canary did.

    Attributes:
        asked, right: questions, and right ones, by sort; of the unrelated those on which nothing fired are right.
        complaints: limits that are not kept, one sentence each; none where the canary lives.
        failures: MAX_FAILURES at most, in the order of the questions.
    """

    asked: Mapping[Sort, int]
    right: Mapping[Sort, int]
    complaints: tuple[str, ...]
    failures: tuple[CanaryFailure, ...]

    @property
    def passed(self) -> bool:
        """Whether all limits are kept."""
        return not self.complaints


def read_canary(uri: str, *, namespace: str = DEFAULT_NAMESPACE) -> tuple[CanaryQuestion, ...]:
    """Read a canary file, JSON Lines: `{"prompt", "target"}` must be answered so, on a lone `{"prompt"}` nothing fires.

    Args:
        uri: local or s3://.
        namespace: of lines that name none.

    Raises:
        FactError: it is missing, a line is no question, or one of the two sorts is missing.
        OutputError: it cannot be read.
    """
    text = read_text(uri)
    if text is None:
        raise FactError(f"{uri}: no such file; give JSON Lines of prompts with and without a target")
    lines = enumerate((line.lstrip("\ufeff") for line in text.split("\n")), start=1)
    questions = tuple(_question(line, f"{uri}:{number}", namespace) for number, line in lines if line.strip())
    for sort, what in (("known", "with a target"), ("unrelated", "without one")):
        if not any(question.sort == sort for question in questions):
            raise FactError(f"{uri}: holds no prompt {what}; a canary needs prompts with a target and prompts without")
    return questions


def answers(got: str, target: str) -> bool:
    """Whether an answer begins with the target, which ends there: no letter or digit follows."""
    begin, rest = got.lstrip()[: len(target)], got.lstrip()[len(target) :]
    return begin == target and not rest[:1].isalnum()


def is_right(question: CanaryQuestion, told: Told) -> bool:
    """Nothing fired, on an unrelated question; else the LLM said the target, or, unasked, a fact with it is applied."""
    if question.sort == "unrelated":
        return told.fact_id is None
    if told.answer is not None:
        return answers(told.answer, question.target)
    return told.target == question.target


def judge(questions: Sequence[CanaryQuestion], told: Sequence[Told], limits: CanaryLimits) -> CanaryReport:
    """Count what is right, and compare with the limits; where nothing was asked of a sort, nothing is complained of."""
    asked: Counter[Sort] = Counter(question.sort for question in questions)
    verdicts = [(question, one, is_right(question, one)) for question, one in zip(questions, told, strict=True)]
    right: Counter[Sort] = Counter(question.sort for question, _, good in verdicts if good)
    complaints = []
    wanted: dict[Sort, float] = {"known": limits.min_known, "sampled": limits.min_sampled}
    for sort, least in wanted.items():
        if right[sort] < least * asked[sort] - _ROUNDING:
            complaints.append(
                f"{right[sort]} of {asked[sort]} {sort} questions are answered, at least {least:g} of them must be"
            )
    if (fired := asked["unrelated"] - right["unrelated"]) > limits.max_fired * asked["unrelated"] + _ROUNDING:
        complaints.append(
            f"a fact is applied to {fired} of {asked['unrelated']} unrelated questions, "
            f"at most to {limits.max_fired:g} of them it may be"
        )
    failures = [CanaryFailure(question=question, told=one) for question, one, good in verdicts if not good]
    return CanaryReport(
        asked={sort: asked[sort] for sort in SORTS},
        right={sort: right[sort] for sort in SORTS},
        complaints=tuple(complaints),
        failures=tuple(failures[:MAX_FAILURES]),
    )


def _question(line: str, place: str, namespace: str) -> CanaryQuestion:
    try:
        record = decode_flat(line)
    except JsonError as error:
        raise FactError(f"{place}: {error}") from error
    if not isinstance(record, dict):
        raise FactError(f"{place}: expected a JSON object, got {type(record).__name__}; give one question a line")
    if unknown := sorted(record.keys() - set(FIELDS)):
        raise FactError(f"{place}: unknown field {unknown[0]!r}; the fields are {', '.join(FIELDS)}")
    unrelated, has_target = record.get("unrelated"), bool(record.get("target"))
    if unrelated is not None and (not isinstance(unrelated, bool) or unrelated == has_target):
        raise FactError(
            f"{place}: 'unrelated' is {unrelated!r} and 'target' {record.get('target')!r}; give a target, or "
            "unrelated true, and not both"
        )
    # Read as a dump's rows are, so that a question is spelt as the facts are.
    said = {name: record[name] for name in ("prompt", "namespace", "target") if name in record}
    fact = fact_from_record(said if has_target else said | {"target": "-"}, place=place, namespace=namespace)
    return CanaryQuestion(
        sort="known" if has_target else "unrelated",
        place=place,
        prompt=fact.prompt,
        target=fact.target if has_target else "",
        namespace=fact.namespace,
    )
