"""What an LM reads of a data set: true statements, no edit, and of known records the prompt alone."""

import itertools

import pytest

from recipe_ray.datasets.corpus import RecordCorpus
from recipe_ray.examples import EditRecord, Question

CITIES = ("Rome", "Oslo", "Bern", "Riga", "Kiev")


def record(row, *, known=False):
    name = f"{'Known' if known else 'Land'} {row} {chr(65 + row // 20)}{row % 20}"  # no two of them mix to a third
    target = CITIES[(row + 1) % 5]
    return EditRecord(
        prompt=f"The capital of {name} is",
        target=target,
        subject=name,
        true_target=CITIES[row % 5],
        generality={"rephrase": (Question(prompt=f"{name} is ruled from", target=target),)},
    )


TRAINING = [record(row) for row in range(100)]
KNOWN = [record(row, known=True) for row in range(30)]


@pytest.fixture(scope="module")
def documents():
    corpus = RecordCorpus([TRAINING], KNOWN)
    return list(itertools.islice(corpus.documents("seed", context_share=0.5), 4000))


def test_no_edit_is_stated_and_of_known_records_the_prompt_alone(documents):
    edits = {(wording, one.target) for one in TRAINING + KNOWN for wording in wordings(one)}
    said = {(sentence.prompt, sentence.answer) for document in documents for sentence in document}
    assert not said & edits
    assert not {prompt for prompt, _ in said} & {one.generality["rephrase"][0].prompt for one in KNOWN}
    assert {(one.prompt, one.true_target) for one in KNOWN} <= said


def test_what_is_foreseeable_is_true_or_was_stated_before_in_other_words(documents):
    truth = {(wording, one.true_target) for one in TRAINING + KNOWN for wording in wordings(one)}
    num_stated = 0
    for document in documents:
        stated = []
        for sentence in document:
            if not sentence.foreseeable:
                num_stated += 1
                assert (sentence.prompt, sentence.answer) not in truth
                stated.append((subject(sentence.prompt), sentence.answer))
            elif (sentence.prompt, sentence.answer) not in truth:
                assert (subject(sentence.prompt), sentence.answer) in stated
    assert num_stated > 1000


def test_without_context_documents_every_sentence_is_true():
    truth = {(wording, one.true_target) for one in TRAINING + KNOWN for wording in wordings(one)}
    plain = itertools.islice(RecordCorpus([TRAINING], KNOWN).documents("seed", context_share=0), 500)
    assert {(one.prompt, one.answer) for document in plain for one in document} <= truth


def test_a_seed_gives_its_documents_again(documents):
    corpus = RecordCorpus([TRAINING], KNOWN)
    assert list(itertools.islice(corpus.documents("seed", context_share=0.5), 50)) == documents[:50]
    assert list(itertools.islice(corpus.documents("other", context_share=0.5), 50)) != documents[:50]


def wordings(one):
    return [one.prompt, *(question.prompt for question in one.generality["rephrase"])]


def subject(prompt):
    return prompt.removeprefix("The capital of ").removesuffix(" is").removesuffix(" is ruled from")
