"""What is asked of an edited model."""

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from recipe_ray.errors import ConfigError
from recipe_ray.examples import EditRecord
from recipe_ray.facts import DEFAULT_NAMESPACE, default_fact_id

Sort = Literal["reliability", "generality", "generality_novel", "locality"]
SORTS: tuple[Sort, ...] = get_args(Sort)


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseQuestion:
    """One question of a case.

    Attributes:
        sort: what it measures. `reliability` is the edit's own question; `generality` follows from the edit, worded as
            training may word it; `generality_novel` in words that no training uses; `locality` is answered by no edit.
        kind: the data set's own name of it, such as `rephrase` or `Compositionality_I`.
        prompt: the words that the LLM completes, and all that a method sees of it; in a chat the last message.
        target: what the edited LLM must say; empty for locality, where the unedited LLM's own output is what counts.
        messages: of a chat, role and content, the last one of the user; empty for a text.
        rivals: of a chat, other answers, which it must not give.
        subject: of a chat, whom or what it asks about.
    """

    sort: Sort
    kind: str
    prompt: str
    target: str = ""
    messages: tuple[tuple[str, str], ...] = ()
    rivals: tuple[str, ...] = ()
    subject: str = ""

    @property
    def ask(self) -> "Ask":
        """What the unedited LLM reads."""
        return Ask(self.prompt, messages=self.messages)


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalCase:
    """One edit and the questions around it.

    Attributes:
        fact_id: the edit's id in the table of facts.
        prompt, target: the edit.
        subject: whom or what the edit is about, standing in `prompt`; empty where the data set does not say.
        others: questions beside the edit's own; none twice.
        true_target: what is true without the edit; empty where the data set does not say.
        relation: what is said of the subject, as wordings for chats call it; empty where unknown.
    """

    fact_id: str
    prompt: str
    target: str
    subject: str = ""
    others: tuple[CaseQuestion, ...] = ()
    true_target: str = ""
    relation: str = ""

    @property
    def statement(self) -> str:
        """The edit as a sentence without its full stop."""
        return f"{self.prompt} {self.target}"

    @property
    def questions(self) -> tuple[CaseQuestion, ...]:
        """All questions, the edit's own first."""
        own = CaseQuestion(sort="reliability", kind="reliability", prompt=self.prompt, target=self.target)
        return (own, *self.others)

    def prompts(self, sort: Sort) -> list[str]:
        """The prompts of one sort."""
        return [question.prompt for question in self.questions if question.sort == sort]


@dataclass(frozen=True, slots=True)
class Ask:
    """What the LLM reads for one question: a text or a chat, with the continuous prompt of a fact or none.

    Attributes:
        text: to go on with; of a chat the words that are looked up, which the LLM reads among its messages.
        fact: number of the fact whose continuous prompt is read, -1 for none.
        messages: of a chat, role and content; empty for a text.
    """

    text: str
    fact: int = -1
    messages: tuple[tuple[str, str], ...] = ()


def sorts_of(cases: Iterable[EvalCase]) -> tuple[Sort, ...]:
    """The sorts of questions that any case has."""
    found = {question.sort for case in cases for question in case.questions}
    return tuple(sort for sort in SORTS if sort in found)


def record_cases(
    records: Sequence[EditRecord],
    num_edits: int | None = None,
    *,
    name: str,
    seed: int = 0,
    allow_missing: bool = False,
) -> tuple[EvalCase, ...]:
    """Cases of a data set's edits, drawn at random; of several questions of one kind one is drawn.

    Args:
        records: edits, as `clean` leaves them.
        num_edits: how many, or as many as there are; None for all.
        name: of the data set, for complaints.
        seed: of what is drawn.
        allow_missing: take edits without a question of generality or of locality too; what is missing is then missing
            in the results. Otherwise they are left out, so that every number is over the same edits.

    Raises:
        ConfigError: no edit of the data set has questions of both sorts.
    """
    rng = random.Random(seed)
    cases: list[EvalCase] = []
    for record in rng.sample(list(records), len(records)):
        # Drawn for every record, taken or not: a larger sample begins with a smaller one.
        asked = [
            CaseQuestion(sort="generality", kind=kind, prompt=one.prompt, target=one.target, messages=one.messages)
            for kind, questions in record.generality.items()
            for one in rng.sample(questions, min(1, len(questions)))
        ]
        spared = [
            CaseQuestion(sort="locality", kind=kind, prompt=one.prompt, messages=one.messages)
            for kind, questions in record.locality.items()
            for one in rng.sample(questions, min(1, len(questions)))
        ]
        if (asked and spared) or allow_missing:
            cases.append(
                EvalCase(
                    fact_id=default_fact_id(DEFAULT_NAMESPACE, record.prompt),
                    prompt=record.prompt,
                    target=record.target,
                    subject=record.subject,
                    others=(*asked, *spared),
                    true_target=record.true_target,
                    relation=record.relation,
                )
            )
    if not cases:
        lacking = (
            "generality (a rephrasing)" if not any(one.generality for one in records) else "generality and locality"
        )
        raise ConfigError(
            f"{name}: none of its {len(records)} edits has questions of {lacking}; give some, or allow rows without"
        )
    return tuple(cases[:num_edits])


def num_sampled(num_cases: int, num_edits: int | None, *, least: int = 200) -> int:
    """How many cases a cell with T edits in force at once takes, the same for every editor.

    At least `least`, so that a number at T = 1 is no accident, and at least T; whole groups of T.

    Args:
        num_cases: that there are.
        num_edits: T; None for all cases at once.
        least: cases wanted where T is smaller.

    Raises:
        ConfigError: there are fewer cases than T.
    """
    if num_edits is None:
        return num_cases
    if not 1 <= num_edits <= num_cases:
        raise ConfigError(
            f"{num_edits} edits at once are asked for and the data has {num_cases} cases; give 1 to those"
        )
    return min(num_cases, max(num_edits, least)) // num_edits * num_edits


def cases_in_groups(
    records: Sequence[EditRecord], max_cases: int, num_edits: Sequence[int], *, name: str
) -> tuple[tuple[EvalCase, ...], list[int]]:
    """Cases that fall into whole groups of each number of simultaneous edits, and those numbers.

    A number above what there is stands for all cases there are; the numbers divide each other.

    Args:
        records: edits, as `clean` leaves them.
        max_cases: at most so many.
        num_edits: simultaneous edits wanted.
        name: of the data set, for complaints.
    """
    return in_groups(record_cases(records, max_cases, name=name), num_edits)


def in_groups(cases: tuple[EvalCase, ...], num_edits: Sequence[int]) -> tuple[tuple[EvalCase, ...], list[int]]:
    """As many of the first cases as fall into whole groups; see `cases_in_groups`."""
    step = max((num for num in num_edits if num < len(cases)), default=1)
    cases = cases[: len(cases) // step * step]
    return cases, sorted({min(num, len(cases)) for num in num_edits})


def facts_of_prompts(
    cases: Iterable[EvalCase],
    *,
    neighbours: bool = False,
    questions_of: Callable[[EvalCase], Sequence[CaseQuestion]] = lambda case: case.questions,
) -> Mapping[str, tuple[str, ...]]:
    """For each prompt that an edit answers, the ids of the facts that do: what an oracle of retrieval is given.

    Args:
        cases: the edits.
        neighbours: whether a locality question gets the fact that it lies next to: one who always pastes, and is wrong
            there.
        questions_of: the questions of a case.
    """
    found: dict[str, dict[str, None]] = {}
    for case in cases:
        for question in questions_of(case):
            if neighbours or question.sort != "locality":
                found.setdefault(question.prompt, {})[case.fact_id] = None
    return {prompt: tuple(ids) for prompt, ids in found.items()}
