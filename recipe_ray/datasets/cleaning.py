"""What a data set may not hold: edits that contradict each other, and questions to leave alone that are edited."""

import dataclasses
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from recipe_ray.examples import EditRecord, Question
from recipe_ray.text import canonical


@dataclass(frozen=True, slots=True, kw_only=True)
class Cleaned:
    """Records that may be trained on, and what was dropped.

    Attributes:
        records: in the order in which they came, by source.
        num_read: records before cleaning, all sources together.
        num_empty: records left out because a text that they need is empty.
        num_contradictory: records dropped because another record gives the same prompt another target; none of them is
            kept, since nothing says which is right.
        num_repeated: records dropped because one with the same prompt and target came before.
        num_edited_locality: locality questions dropped because they are the prompt of an edit, or are a question of
            generality of one; their records stay.
    """

    records: tuple[tuple[EditRecord, ...], ...]
    num_read: int
    num_empty: int
    num_contradictory: int
    num_repeated: int
    num_edited_locality: int

    def __str__(self) -> str:
        kept = sum(map(len, self.records))
        return (
            f"{self.num_read} edits read, {kept} kept; dropped {self.num_empty} with an empty text, "
            f"{self.num_contradictory} that contradict each other, {self.num_repeated} that repeat one, and "
            f"{self.num_edited_locality} locality questions that are edited"
        )


def clean(sources: Sequence[Sequence[EditRecord]], *, num_empty: int = 0) -> Cleaned:
    """Clean several sources as one: an edit of one may be a question to leave alone of another.

    Args:
        sources: records by source.
        num_empty: records that were left out before.
    """
    targets: dict[str, set[str]] = defaultdict(set)
    for records in sources:
        for record in records:
            targets[_same(record.prompt)].add(_same(record.target))
    contradictory = {prompt for prompt, found in targets.items() if len(found) > 1}
    seen: set[str] = set()
    num_contradictory = num_repeated = num_edited_locality = 0
    kept: list[list[EditRecord]] = []
    for records in sources:
        kept.append([])
        for record in records:
            prompt = _same(record.prompt)
            if prompt in contradictory:
                num_contradictory += 1
            elif prompt in seen:
                num_repeated += 1
            else:
                seen.add(prompt)
                kept[-1].append(record)
    asked = seen | {
        _same(question.prompt)
        for records in kept
        for record in records
        for questions in record.generality.values()
        for question in questions
    }
    cleaned = []
    for records in kept:
        spared = [_without(record.locality, asked) for record in records]
        num_edited_locality += sum(
            _count(record.locality) - _count(locality) for record, locality in zip(records, spared, strict=True)
        )
        cleaned.append(
            tuple(
                dataclasses.replace(record, locality=locality) for record, locality in zip(records, spared, strict=True)
            )
        )
    return Cleaned(
        records=tuple(cleaned),
        num_read=sum(map(len, sources)) + num_empty,
        num_empty=num_empty,
        num_contradictory=num_contradictory,
        num_repeated=num_repeated,
        num_edited_locality=num_edited_locality,
    )


def _same(text: str) -> str:
    """Equal for texts that differ in case alone, or are the same."""
    return canonical(text).casefold()


def _without(locality: Mapping[str, tuple[Question, ...]], asked: set[str]) -> dict[str, tuple[Question, ...]]:
    left = {
        kind: tuple(question for question in questions if _same(question.prompt) not in asked)
        for kind, questions in locality.items()
    }
    return {kind: questions for kind, questions in left.items() if questions}


def _count(questions: Mapping[str, tuple[Question, ...]]) -> int:
    return sum(map(len, questions.values()))
