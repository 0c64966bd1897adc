"""Invented subjects and answers for the relations of the world: what the models of the testbed are trained on.

The world's own facts are learned by the LM alone, as plain statements; the editor never meets their subjects.
"""

import random
from dataclasses import dataclass

from recipe_ray.testbed.names import NameModel
from recipe_ray.testbed.world import Relation, World


@dataclass(frozen=True, slots=True)
class InventedSubject:
    """A subject that does not exist, with the relations that its kind has."""

    name: str
    relations: tuple[Relation, ...]


class Inventor:
    """Draws subjects and answers; the stream of a `random.Random` decides everything."""

    def __init__(self, world: World) -> None:
        self.relations_of_kind: dict[str, tuple[Relation, ...]] = {}
        for relation in world.relations:
            self.relations_of_kind[relation.kind] = (*self.relations_of_kind.get(relation.kind, ()), relation)
        self.kinds = tuple(self.relations_of_kind)
        subjects: dict[str, set[str]] = {kind: set() for kind in self.kinds}
        answers: dict[str, set[str]] = {relation.name: set() for relation in world.relations}
        for fact in world.facts:
            subjects[fact.relation.kind].add(fact.subject)
            answers[fact.relation.name].add(fact.answer)
        self.real_subjects = frozenset().union(*subjects.values())
        self.real_answers = {name: tuple(sorted(given)) for name, given in answers.items()}
        self._subject_names = {kind: NameModel(names) for kind, names in subjects.items()}
        self._any_name = NameModel(self.real_subjects)
        self._answer_names = {
            name: NameModel(given, min_letters=min(map(len, given))) for name, given in answers.items()
        }

    def subject(self, rng: random.Random) -> InventedSubject:
        """A new subject: named in the style of its kind or, as often, of any."""
        kind = rng.choice(self.kinds)
        names = self._subject_names[kind] if rng.random() < 0.5 else self._any_name
        return InventedSubject(self._unreal(names, rng), self.relations_of_kind[kind])

    def neighbour(self, subject: InventedSubject, rng: random.Random) -> InventedSubject:
        """A subject of the same kind whose name differs in one letter."""
        while (name := self._any_name.neighbour(subject.name, rng)) in self.real_subjects:
            pass
        return InventedSubject(name, subject.relations)

    def answer(self, relation: Relation, rng: random.Random, *, invented_share: float = 0.5) -> str:
        """A target: invented in the style of the relation's answers, or one of them."""
        if rng.random() < invented_share:
            return self._answer_names[relation.name].invent(rng)
        return rng.choice(self.real_answers[relation.name])

    def _unreal(self, names: NameModel, rng: random.Random) -> str:
        while (name := names.invent(rng)) in self.real_subjects:
            pass
        return name
