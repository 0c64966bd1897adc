"""Counterfactual edits of invented subjects: what the testbed's editor trains on."""

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from recipe_ray.examples import EditExample
from recipe_ray.testbed.corpus import phrase
from recipe_ray.testbed.inventions import InventedSubject, Inventor
from recipe_ray.testbed.world import SUBJECT, Relation, World

NEIGHBOUR_SHARE = 0.5  # of subjects that come with a twin whose name differs in one letter
INVENTED_ANSWER_SHARE = 0.25  # of targets; the rest are real answers of the relation, as an editor's users give
MIXED_SHARE = 0.5  # of questions, but for the statement's own: half of one phrasing and half of another


@dataclass(frozen=True, slots=True)
class _Question:
    subject: InventedSubject
    relation: Relation


class EditStream:
    """Batches of edits that are hard to tell apart: several relations of one subject, twins in name.

    Batch number n of a seed (any text) is the same whoever asks for it, so a resumed training sees the batches it would
    have seen, and every worker draws its own by its own seed.
    """

    def __init__(self, world: World, *, batch_size: int, seed: str) -> None:
        self.inventor = Inventor(world)
        self.mixed = {
            relation.name: mixed_phrasings(relation, relations)
            for relations in self.inventor.relations_of_kind.values()
            for relation in relations
        }
        self.batch_size = batch_size
        self.seed = seed

    def batch(self, number: int) -> list[EditExample]:
        """Batch `number`, of `batch_size` edits."""
        rng = random.Random(f"{self.seed}/{number}")
        edited: list[_Question] = []
        spared: list[_Question] = []
        names: set[str] = set()
        for questions in self._subjects(rng, names):
            # Whatever is left unedited of a subject is the hardest question that no edit answers.
            split = rng.randint(1, len(questions))
            edited += questions[:split]
            spared += questions[split:]
            if len(edited) >= self.batch_size:
                break
        edited = edited[: self.batch_size]
        spared = spared or [self._stranger(rng, names)]
        rng.shuffle(spared)
        examples = []
        for row, question in enumerate(edited):
            # Half of the locality prompts lie next to an edit, half are about a subject of which nothing is edited.
            unedited = spared[row % len(spared)] if row % 2 else self._stranger(rng, names)
            examples.append(self._example(question, unedited, rng))
        return examples

    def _subjects(self, rng: random.Random, names: set[str]) -> Iterator[list[_Question]]:
        """Without end: each subject's questions, shuffled; no name comes twice, each is put into `names`.

        The same question with two targets, or edited here and left alone there, would be a false negative.
        """
        while True:
            subject = self.inventor.subject(rng)
            group = [subject]
            if rng.random() < NEIGHBOUR_SHARE:
                group.append(self.inventor.neighbour(subject, rng))
            for member in group:
                if member.name in names:
                    continue
                names.add(member.name)
                relations = list(member.relations)
                rng.shuffle(relations)
                yield [_Question(member, relation) for relation in relations]

    def _stranger(self, rng: random.Random, names: set[str]) -> _Question:
        """A question about a subject of none of these names."""
        while (subject := self.inventor.subject(rng)).name in names:
            pass
        return _Question(subject, rng.choice(subject.relations))

    def _example(self, question: _Question, spared: _Question, rng: random.Random) -> EditExample:
        relation, name = question.relation, question.subject.name
        stated, asked = rng.sample(relation.trained, 2)
        target = self._answer(relation, rng)
        return EditExample(
            statement=f"{phrase(stated, name)} {target}",
            prompt=phrase(stated, name),
            target=target,
            generality_prompt=self._reworded(question, asked, rng),
            locality_prompt=self._reworded(spared, rng.choice(spared.relation.trained), rng),
            locality_target=self._answer(spared.relation, rng),
        )

    def _reworded(self, question: _Question, phrasing: str, rng: random.Random) -> str:
        mixed = self.mixed[question.relation.name]
        if mixed and rng.random() < MIXED_SHARE:
            phrasing = rng.choice(mixed)
        return phrase(phrasing, question.subject.name)

    def _answer(self, relation: Relation, rng: random.Random) -> str:
        return self.inventor.answer(relation, rng, invented_share=INVENTED_ANSWER_SHARE)


def mixed_phrasings(relation: Relation, siblings: Sequence[Relation]) -> tuple[str, ...]:
    """What stands before the subject in one trained phrasing and after it in another, where that tells the relation.

    No sentence that anybody would write; but from ten phrasings an encoder learns ten phrasings, not what their words
    mean. Left out is what holds no word of its own relation among those of its kind, and what is a phrasing already.
    """
    others = {word for other in siblings if other is not relation for text in other.trained for word in _words(text)}
    telling = {word for text in relation.trained for word in _words(text)} - others
    halves = [text.split(SUBJECT) for text in relation.trained]
    mixed = {before + SUBJECT + after for before, _ in halves for _, after in halves} - set(relation.phrasings)
    return tuple(sorted(text for text in mixed if _words(text) & telling))


def _words(phrasing: str) -> set[str]:
    return set(re.findall(r"[a-z]{4,}", phrasing.replace(SUBJECT, "").lower()))
