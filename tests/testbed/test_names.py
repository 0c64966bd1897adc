import random
import string

import pytest

from recipe_ray.testbed.inventions import Inventor
from recipe_ray.testbed.names import MAX_LETTERS, NameModel
from recipe_ray.testbed.world import load_world

CODES = [first + second for first in "ABC" for second in "DEF"]


@pytest.mark.parametrize("names", [["France", "Finland", "Fiji", "Greece", "Guatemala"], CODES], ids=["names", "codes"])
def test_an_invented_name_is_new_and_of_a_names_length(names):
    model = NameModel(names, min_letters=2)
    rng = random.Random(0)
    invented = [model.invent(rng) for _ in range(500)]
    assert not set(invented) & set(names)
    assert all(2 <= len(name) <= MAX_LETTERS and name == name.strip() for name in invented)
    assert not any(set(name) & set("^$") for name in invented)
    assert len(set(invented)) > 20


def test_invented_names_are_made_of_the_pieces_of_real_ones():
    world = load_world()
    names = {fact.subject for fact in world.facts if fact.relation.kind == "country"}
    pairs = {name[place : place + 2] for name in names for place in range(len(name) - 1)}
    rng = random.Random(0)
    model = NameModel(names)
    invented = [model.invent(rng) for _ in range(300)]
    known = [name[place : place + 2] in pairs for name in invented for place in range(len(name) - 1)]
    assert sum(known) > 0.95 * len(known)


def test_a_neighbour_differs_in_one_letter_or_digit_of_the_same_kind():
    model = NameModel(["Mary Shelley", "1897", "Au"])
    rng = random.Random(0)
    for name in ("Mary Shelley", "1897", "Au"):
        for _ in range(200):
            other = model.neighbour(name, rng)
            ((old, new),) = [pair for pair in zip(name, other, strict=True) if pair[0] != pair[1]]
            assert old.isdigit() == new.isdigit()
            assert old.isupper() == new.isupper()
            assert new in string.ascii_letters + string.digits


def test_an_invented_subject_is_no_real_one_and_has_the_relations_of_its_kind():
    world = load_world()
    inventor = Inventor(world)
    rng = random.Random(0)
    for _ in range(1000):
        subject = inventor.subject(rng)
        neighbour = inventor.neighbour(subject, rng)
        assert not {subject.name, neighbour.name} & inventor.real_subjects
        assert neighbour.name != subject.name
        assert len({relation.kind for relation in subject.relations}) == 1
        assert neighbour.relations == subject.relations
    assert {fact.subject for fact in world.facts} == inventor.real_subjects


def test_answers_are_half_invented_and_half_real_answers_of_the_relation():
    world = load_world()
    inventor = Inventor(world)
    rng = random.Random(0)
    for relation in world.relations:
        real = {fact.answer for fact in world.facts if fact.relation is relation}
        answers = [inventor.answer(relation, rng) for _ in range(400)]
        assert 0.4 < sum(answer in real for answer in answers) / 400 < 0.6
        # Sentences are the answer and a full stop: where a generated answer ends must be plain.
        assert not any("." in answer or answer != answer.strip() or not answer for answer in answers)


def test_the_same_seed_invents_the_same():
    inventor = Inventor(load_world())

    def draw(seed):
        rng = random.Random(seed)
        return [inventor.subject(rng).name for _ in range(20)]

    assert (
        draw(1)
        == draw(1)
        == [Inventor(load_world()).subject(rng).name for rng in [random.Random(1)] for _ in range(20)]
    )
    assert draw(1) != draw(2)
