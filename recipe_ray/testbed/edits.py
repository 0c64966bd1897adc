"""Counterfactual edits of invented subjects: what the testbed's editor trains on."""

import random
from collections.abc import Iterator
from dataclasses import dataclass

from recipe_ray.examples import EditExample
from recipe_ray.testbed.inventions import InventedSubject, Inventor
from recipe_ray.testbed.wording import Wording, phrase
from recipe_ray.testbed.world import Relation, World

NEIGHBOUR_SHARE = 0.5  # of subjects that come with a twin whose name differs in one letter
INVENTED_ANSWER_SHARE = 0.25  # of targets; the rest are real answers of the relation, as an editor's users give
GARBLED_SHARE = 0.5  # of questions, but for the statement's own; see Wording


@dataclass(frozen=True, slots=True)
class _Question:
    subject: InventedSubject
    relation: Relation


class EditStream:
    """Batches of edits that are hard to tell apart: several relations of one subject, twins in name.

    The seed may be any text; every worker draws its own batches by its own seed.
    """

    def __init__(self, world: World, *, batch_size: int, seed: str) -> None:
        self.inventor = Inventor(world)
        self.wording = Wording(world)
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
            generality_target=target,
            locality_prompt=self._reworded(spared, rng.choice(spared.relation.trained), rng),
            locality_target=self._answer(spared.relation, rng),
        )

    def _reworded(self, question: _Question, phrasing: str, rng: random.Random) -> str:
        if rng.random() < GARBLED_SHARE:
            phrasing = self.wording.garbled(question.relation, rng)
        return phrase(phrasing, question.subject.name)

    def _answer(self, relation: Relation, rng: random.Random) -> str:
        return self.inventor.answer(relation, rng, invented_share=INVENTED_ANSWER_SHARE)
