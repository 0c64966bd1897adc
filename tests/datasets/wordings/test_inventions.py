"""Subjects without end that exist nowhere, and targets of the kind that is asked for."""

import functools
import math
import random
import re

import pytest

from recipe_ray.datasets.wordings.inventions import fixed_targets, invented, invented_subject
from recipe_ray.datasets.wordings.relations import kinds_in, load_relations, read_data, wider_kinds
from recipe_ray.testbed.world import load_world

RELATIONS = load_relations()
FEW = {"element_group": 20, "gender": 2, "continent": 7, "conservation": 15, "voice": 15, "religion": 30, "planet": 30}
NAME = re.compile(r"[^\s{}](?:[^{}]*[^\s{}])?")


SUBJECT_KINDS = sorted(
    set().union(*(kinds_in(relation.subject_kind) for relation in RELATIONS.values())) - {*wider_kinds()}
)


def num_inventions(kind, file="subjects.json"):
    grammar = read_data("parts.json") | read_data(file)

    @functools.cache
    def size(name):
        return sum(math.prod(size(part) for part in re.findall(r"\{(\w+)\}", pattern)) for pattern in grammar[name])

    return size(kind)


@pytest.mark.parametrize("relation", RELATIONS.values(), ids=RELATIONS)
def test_every_relation_has_subjects_and_targets(relation):
    rng = random.Random(1)
    for _ in range(50):
        for name in invented(relation, rng):
            assert NAME.fullmatch(name), name
            assert "  " not in name


@pytest.mark.parametrize("kind", SUBJECT_KINDS)
def test_a_kind_has_more_subjects_than_a_training_meets(kind):
    assert num_inventions(kind) > 100_000
    rng = random.Random(2)
    assert len({invented_subject(kind, rng) for _ in range(500)}) > 470


@pytest.mark.parametrize("kind", sorted({relation.target_kind for relation in RELATIONS.values()}))
def test_a_kind_has_many_targets(kind):
    assert num_inventions(kind, file="targets.json") >= FEW.get(kind, 45)


@pytest.mark.parametrize("kind", SUBJECT_KINDS)
def test_no_subject_can_be_one_of_the_testbeds_world(kind):
    grammar = read_data("parts.json") | read_data("subjects.json")

    @functools.cache
    def expression(name):
        pieces = ((re.split(r"\{(\w+)\}", pattern)) for pattern in grammar[name])
        texts = ("".join(expression(p) if odd % 2 else re.escape(p) for odd, p in enumerate(of)) for of in pieces)
        return f"(?:{'|'.join(texts)})"

    possible = re.compile(expression(kind), re.IGNORECASE)
    assert [fact.subject for fact in load_world().facts if possible.fullmatch(fact.subject)] == []


def test_the_same_stream_gives_the_same_facts():
    relation = RELATIONS["P19"]
    assert invented(relation, random.Random(4)) == invented(relation, random.Random(4))


def test_real_targets_are_told_from_made_up_ones():
    assert "Asia" in fixed_targets("continent")
    assert fixed_targets("price") == ()
