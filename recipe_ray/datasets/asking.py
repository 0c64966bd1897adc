"""How an edit is asked in training: in its own words or in others, as a text to go on with or in a chat."""

import dataclasses
import random
from collections.abc import Sequence
from dataclasses import dataclass

from recipe_ray.config import INVENTED
from recipe_ray.datasets.forms import DEFAULT_LOCALITY_KIND
from recipe_ray.datasets.wordings.dressing import dressed
from recipe_ray.datasets.wordings.inventions import invented, invented_target
from recipe_ray.datasets.wordings.recognition import may_be_held_out, relation_of
from recipe_ray.datasets.wordings.relations import (
    HELD_OUT,
    KIN_OF_HELD_OUT,
    SUBJECT,
    Relation,
    load_relations,
    relations_of,
)
from recipe_ray.examples import EditRecord, Question

DATA_SHARE = 0.5  # of the questions in other words: as the data set has them, where a relation has wordings of its own
QUESTION_IN_TEXT_SHARE = 0.1  # of the questions that are no beginnings: to go on with all the same, as zsRE asks
SPARED_DATA_SHARE = 0.4  # of the questions to leave alone: as the data set has them


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """Draws the questions of an edit.

    Attributes:
        chat_share: chance that a question is asked in a chat.
        wordings: whether questions are reworded beyond what the data set has, where a relation is known.
        without: relations that no question may ask for.
    """

    chat_share: float = 0.0
    wordings: bool = False
    without: tuple[str, ...] = ()

    def own(self, record: EditRecord, rng: random.Random) -> Question:
        """The edit's own prompt."""
        return self._in_form(Question(prompt=record.prompt, target=record.target), record.subject, rng)

    def reworded(self, record: EditRecord, question: Question, rng: random.Random) -> Question:
        """The edit in other words: those of the data set, or of its relation, where only its own target answers."""
        relation = load_relations().get(record.relation) if self.wordings else None
        if relation and question.target == record.target and rng.random() >= DATA_SHARE:
            words = _filled(rng.choice(relation.training.all), record.subject)
            question = Question(prompt=words, target=record.target)
        return self._in_form(question, record.subject, rng)

    def spared(self, record: EditRecord, question: Question, rng: random.Random) -> Question:
        """What the edit leaves alone: the data set's, another subject's, or something else about its subject."""
        relation = load_relations().get(record.relation) if self.wordings else None
        if relation and rng.random() >= SPARED_DATA_SHARE:
            question = self._near(relation, record.subject, rng) or question
        return self._in_form(question, record.subject, rng)

    def _near(self, relation: Relation, subject: str, rng: random.Random) -> Question | None:
        """Another subject of the relation, or something of another kind about this one; its answer is made up."""
        if rng.random() < 0.5:
            other, target = invented(relation, rng)
            return Question(prompt=_filled(rng.choice(relation.training.all), other), target=target)
        others = [
            one
            for one in relations_of(relation.subject_kind)
            if one.target_kind != relation.target_kind and one.id not in self.without
        ]
        if not others:
            return None
        asked = rng.choice(others)
        words = _filled(rng.choice(asked.training.all), subject)
        return Question(prompt=words, target=invented_target(asked.target_kind, rng))

    def _in_form(self, question: Question, subject: str, rng: random.Random) -> Question:
        if question.messages:  # the data set says how
            return question
        chance = self.chat_share
        if chance and _is_whole(question.prompt):
            chance = 1 - QUESTION_IN_TEXT_SHARE
        if rng.random() >= chance:
            return question
        chat = dressed(question.prompt, rng, "training", subject=subject)
        return Question(prompt=chat.query, target=question.target, messages=chat.messages)


PLAINLY = Asking()


def _is_whole(prompt: str) -> bool:
    return prompt.endswith(("?", ".", "!"))


def _filled(wording: str, subject: str) -> str:
    return wording.replace(SUBJECT, subject)


def with_relation(record: EditRecord) -> EditRecord:
    """The record with the relation that its prompt asks for, where that is known."""
    found = relation_of(record.prompt, record.subject, record.true_target or record.target) if record.subject else None
    return record if found is None else dataclasses.replace(record, relation=found)


def is_held_out(record: EditRecord) -> bool:
    """Whether a record is, or may be, of one of the relations held out."""
    if record.relation:
        return record.relation in HELD_OUT + KIN_OF_HELD_OUT
    return may_be_held_out(record.prompt)


def without_held_out(record: EditRecord) -> EditRecord:
    """The record without questions to leave alone that ask, or may ask, for a relation held out."""
    locality = {
        kind: left
        for kind, questions in record.locality.items()
        if (left := tuple(one for one in questions if not may_be_held_out(one.prompt)))
    }
    return dataclasses.replace(record, locality=locality)


def invented_records(num_records: int, seed: str, *, without: Sequence[str] = ()) -> tuple[EditRecord, ...]:
    """Facts about subjects that do not exist, of every relation with equal chance."""
    rng = random.Random(seed)
    relations = [relation for relation in load_relations().values() if relation.id not in without]
    records = []
    for number in range(num_records):
        relation = rng.choice(relations)
        (subject, target), (other, others_target) = invented(relation, rng), invented(relation, rng)
        cloze = rng.choice(relation.training.cloze)
        spared = Question(prompt=_filled(rng.choice(relation.training.cloze), other), target=others_target)
        records.append(
            EditRecord(
                prompt=_filled(cloze, subject),
                target=target,
                subject=subject,
                name=f"{INVENTED} {number}",
                relation=relation.id,
                locality={DEFAULT_LOCALITY_KIND: (spared,)},
            )
        )
    return tuple(records)
