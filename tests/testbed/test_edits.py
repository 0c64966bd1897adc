"""What the editor trains on holds nothing of what it is evaluated on."""

import random
import re
from collections import Counter

import pytest
from reading import TRAINED, WORLD, is_novel, questions, read_in

from recipe_ray.testbed.edits import EditStream
from recipe_ray.testbed.wording import Wording
from recipe_ray.testbed.world import SUBJECT

NUM_BATCHES = 150
BATCH_SIZE = 32


def read_stream():
    stream = EditStream(WORLD, batch_size=BATCH_SIZE, seed="7/0")
    return [stream.batch(number) for number in range(NUM_BATCHES)]


@pytest.fixture(scope="module")
def batches():
    """With every word in its place, so that questions can be read back."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("recipe_ray.testbed.wording.DROP_SHARE", 0.0)
        patch.setattr("recipe_ray.testbed.wording.REPLACE_SHARE", 0.0)
        return read_stream()


@pytest.fixture(scope="module")
def garbled_batches():
    return read_stream()


def test_a_batch_has_its_size_and_each_example_says_what_it_is(batches):
    for batch in batches:
        assert len(batch) == BATCH_SIZE
        for one in batch:
            assert one.statement == f"{one.prompt} {one.target}"
            assert one.prompt != one.generality_prompt
            assert questions(one.prompt) & questions(one.generality_prompt)


def test_no_example_names_a_real_subject(batches):
    real = {fact.subject for fact in WORLD.facts}
    for batch in batches:
        for one in batch:
            for prompt in (one.prompt, one.generality_prompt, one.locality_prompt):
                read = questions(prompt)
                assert read
                assert not {subject for subject, _ in read} & real, prompt


def test_no_example_is_in_a_novel_phrasing(batches):
    for batch in batches:
        for one in batch:
            for prompt in (one.prompt, one.generality_prompt, one.locality_prompt):
                assert not is_novel(prompt), prompt


def test_no_question_of_a_batch_is_edited_twice(batches):
    for batch in batches:
        edited = [frozenset(questions(one.prompt) & questions(one.generality_prompt)) for one in batch]
        assert len(set(edited)) == BATCH_SIZE


def test_no_locality_prompt_asks_what_its_batch_edits(batches):
    for batch in batches:
        edited = set().union(*(questions(one.prompt) & questions(one.generality_prompt) for one in batch))
        for one in batch:
            assert not questions(one.locality_prompt) & edited, one.locality_prompt


def test_a_mixed_phrasing_tells_its_relation_and_is_no_phrasing_already():
    phrasings = {text for relation in WORLD.relations for text in relation.phrasings}
    mixed_of = Wording(WORLD).mixed
    assert set(mixed_of) == {relation.name for relation in WORLD.relations}
    assert all(len(mixed) > 30 for mixed in mixed_of.values())
    everything = [text for mixed in mixed_of.values() for text in mixed]
    assert not set(everything) & phrasings
    assert "In {subject} is called" not in everything  # of a capital, a currency, a language?
    assert "What is the capital of {subject} is called" in mixed_of["country_capital"]


def test_a_garbled_phrasing_keeps_subject_and_relation_and_borrows_no_sibling_s_words():
    wording, rng = Wording(WORLD), random.Random(0)
    for relation in WORLD.relations:
        siblings = [other for other in WORLD.relations if other.kind == relation.kind and other is not relation]
        foreign = set().union(*(wording.telling[other.name] for other in siblings))
        mixed = set(wording.mixed[relation.name])
        garbled = [wording.garbled(relation, rng) for _ in range(200)]
        assert sum(text not in mixed for text in garbled) / len(garbled) > 0.2
        assert not set(garbled) & set(relation.novel)
        for text in garbled:
            words = set(re.findall("[a-z]+", text.lower()))
            assert text.count(SUBJECT) == 1
            assert words & wording.telling[relation.name], text
            assert not words & foreign, text


def test_no_garbled_question_is_novel_and_no_statement_is_garbled(garbled_batches):
    for batch in garbled_batches:
        for one in batch:
            assert read_in(one.prompt, TRAINED)
            assert not is_novel(one.generality_prompt)
            assert not is_novel(one.locality_prompt)


def test_many_rephrasings_are_mixed_and_no_statement_is(batches):
    examples = [one for batch in batches for one in batch]
    assert all(read_in(one.prompt, TRAINED) for one in examples)
    for name in ("generality_prompt", "locality_prompt"):
        mixed = sum(not read_in(getattr(one, name), TRAINED) for one in examples)
        assert 0.3 < mixed / len(examples) < 0.6


def test_many_edits_are_hard_to_tell_apart(batches):
    """Subjects with several edits, locality prompts about an edited subject, and names one letter apart."""
    several = spared = twins = 0
    for batch in batches:
        subjects = Counter(subject for one in batch for subject, _ in questions(one.prompt))
        several += sum(num > 1 for num in subjects.values())
        spared += sum(any(subject in subjects for subject, _ in questions(one.locality_prompt)) for one in batch)
        names = sorted(subjects)
        twins += sum(
            len(one) == len(other) and sum(a != b for a, b in zip(one, other, strict=True)) == 1
            for one in names
            for other in names
        )
    assert several > 2 * NUM_BATCHES
    assert spared > 0.2 * NUM_BATCHES * BATCH_SIZE
    assert twins > NUM_BATCHES


def test_a_batch_depends_on_seed_and_number_alone(garbled_batches):
    batches = garbled_batches
    again = EditStream(WORLD, batch_size=BATCH_SIZE, seed="7/0")
    assert again.batch(5) == batches[5]
    assert again.batch(0) == batches[0]
    assert again.batch(5) == batches[5]
    assert EditStream(WORLD, batch_size=BATCH_SIZE, seed="7/1").batch(5) != batches[5]
    assert batches[0] != batches[1]


def test_a_batch_of_one_size_may_be_of_another():
    for batch_size in (2, 7):
        stream = EditStream(WORLD, batch_size=batch_size, seed="x")
        assert {len(stream.batch(number)) for number in range(50)} == {batch_size}
