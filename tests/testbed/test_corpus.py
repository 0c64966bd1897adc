"""What the testbed's LM reads gives away nothing of its evaluation, and what it states it uses."""

import itertools
import random
from collections import Counter, defaultdict

import pytest
from reading import WORLD, is_novel, questions

from recipe_ray.testbed.corpus import Corpus
from recipe_ray.testbed.inventions import Inventor
from recipe_ray.testbed.tokenizer import world_tokenizer
from recipe_ray.testbed.world import SUBJECT, counterfactual_edits

EDITS = counterfactual_edits(WORLD)
NUM_DOCUMENTS = 6000
TRUE = {(fact.subject, fact.relation.name): fact.answer for fact in WORLD.facts}


def read_corpus(num_documents, *, edits=EDITS, seed=3):
    documents = Corpus(WORLD, edits).documents(str(seed), context_share=0.5)
    return list(itertools.islice(documents, num_documents))


@pytest.fixture(scope="module")
def documents():
    return read_corpus(NUM_DOCUMENTS)


def test_no_document_is_in_a_novel_phrasing(documents):
    for document in documents:
        for sentence in document:
            assert questions(sentence.prompt)
            assert not is_novel(sentence.prompt), sentence.prompt


def test_no_document_states_an_edit_of_the_evaluation(documents):
    edits = {(edit.fact.subject, edit.fact.relation.name, edit.target) for edit in EDITS}
    for document in documents:
        for sentence in document:
            said = {(*question, sentence.answer) for question in questions(sentence.prompt)}
            assert not said & edits, sentence


def test_edits_left_out_are_those_that_would_be_drawn():
    """Without the list of edits a corpus does state some: the test above can fail."""
    edits = {(edit.fact.subject, edit.fact.relation.name, edit.target) for edit in EDITS}
    found = 0
    for document in read_corpus(NUM_DOCUMENTS, edits=()):
        for sentence in document:
            found += any((*question, sentence.answer) in edits for question in questions(sentence.prompt))
    assert found


def test_what_nothing_foretells_is_stated_once_and_then_restated_in_other_words(documents):
    counterfactual = 0
    for document in documents:
        for place, sentence in enumerate(document):
            if sentence.foreseeable:
                continue
            counterfactual += 1
            uses = [
                later
                for later in document[place + 1 :]
                if later.answer == sentence.answer and questions(later.prompt) & questions(sentence.prompt)
            ]
            assert uses
            assert all(use.foreseeable and use.prompt != sentence.prompt for use in uses)
    assert counterfactual > 0.1 * NUM_DOCUMENTS


def test_what_is_foreseeable_is_true_or_was_stated_before(documents):
    for document in documents:
        stated = defaultdict(set)
        for sentence in document:
            read = questions(sentence.prompt)
            if sentence.foreseeable:
                assert any(TRUE.get(one) == sentence.answer or sentence.answer in stated[one] for one in read), sentence
            for one in read:
                stated[one].add(sentence.answer)


def test_every_fact_of_the_world_is_read_in_many_words():
    corpus, rng = Corpus(WORLD, EDITS), random.Random(0)
    seen = Counter()
    for _ in range(40_000):
        sentence = corpus.plain_statement(rng)
        assert sentence.foreseeable
        seen[sentence.prompt] += 1
    fact_of = {fact.prompt(number): fact for fact in WORLD.facts for number in range(len(fact.relation.trained))}
    assert set(seen) <= set(fact_of)
    times = Counter(fact_of[prompt] for prompt in seen)
    assert set(times) == set(WORLD.facts)
    assert sum(num >= 3 for num in times.values()) > 0.9 * len(times)


def test_the_same_seed_gives_the_same_documents(documents):
    assert read_corpus(50) == documents[:50]
    assert read_corpus(50, seed=4) != documents[:50]


def test_the_tokenizer_reads_no_real_subject_and_no_novel_phrasing(monkeypatch):
    read = []

    class Stop(Exception):  # noqa: N818
        pass

    def record(self, texts, trainer):
        read.extend(texts)
        raise Stop

    monkeypatch.setattr("recipe_ray.pretraining.tokenizer.Tokenizer.train_from_iterator", record, raising=False)
    monkeypatch.setattr("recipe_ray.testbed.tokenizer.NUM_INVENTED_NAMES", 2000)
    with pytest.raises(Stop):
        world_tokenizer(WORLD, seed=0, max_length=32)
    # A text with a full stop is an answer; a few subjects are answers too (`French`, `Thomas Edison`).
    assert not {text.strip() for text in read} & Inventor(WORLD).real_subjects
    novel = {text.replace(SUBJECT, "") for relation in WORLD.relations for text in relation.novel}
    assert not set(read) & novel
    assert {text.replace(SUBJECT, "") for relation in WORLD.relations for text in relation.trained} <= set(read)
