import re
from collections import Counter, defaultdict

import pytest

from recipe_ray.errors import ConfigError, FactError
from recipe_ray.testbed.world import (
    NUM_PHRASINGS,
    SUBJECT,
    Relation,
    counterfactual_edits,
    load_world,
    locality_prompts,
    parse_relations,
    parse_table,
)

SEEDS = (0, 1, 2)
FIRST_EDIT = ("Russia", "country_currency", "denar")

SPOT_CHECKS = {
    ("France", "country_capital"): "Paris",
    ("Kenya", "country_continent"): "Africa",
    ("Japan", "country_currency"): "yen",
    ("Brazil", "country_language"): "Portuguese",
    ("Iceland", "country_domain"): "is",
    ("Gold", "element_symbol"): "Au",
    ("Uranium", "element_number"): "92",
    ("Neon", "element_family"): "noble gas",
    ("Nevada", "state_capital"): "Carson City",
    ("Texas", "state_largest_city"): "Houston",
    ("Alaska", "state_postal_code"): "AK",
    ("Utah", "state_nickname"): "Beehive",
    ("Frankenstein", "book_author"): "Mary Shelley",
    ("Candide", "book_language"): "French",
    ("Dracula", "book_year"): "1897",
    ("Marie Curie", "person_birth_country"): "Poland",
    ("Edvard Grieg", "person_profession"): "composer",
    ("Niels Bohr", "person_birth_year"): "1885",
    ("frog", "animal_class"): "amphibian",
    ("kangaroo", "animal_young"): "joey",
    ("dynamite", "invention_inventor"): "Alfred Nobel",
    ("hot", "word_opposite"): "cold",
}


def words(phrasing: str) -> set[str]:
    return set(re.findall(r"[a-z]+(?:-[a-z]+)*", phrasing.replace(SUBJECT, "").lower()))


def key(fact):
    return fact.subject, fact.relation.name


def test_the_world_is_large_enough_to_measure_on():
    world = load_world()
    editable = [fact for fact in world.facts if fact.relation.editable]
    relations = {fact.relation.name for fact in editable}
    assert len(editable) >= 1_600
    assert len(relations) >= 16
    assert len(world.facts) - len(editable) >= 200
    assert len(world.relations) - len(relations) == 4
    per_subject = Counter(fact.subject for fact in editable)
    assert sum(count >= 3 for count in per_subject.values()) > 0.9 * len(per_subject)
    assert sum(" " in fact.answer for fact in editable) >= 150


def test_a_question_has_one_answer():
    world = load_world()
    assert len({key(fact) for fact in world.facts}) == len(world.facts)
    assert len({relation.name for relation in world.relations}) == len(world.relations)
    kinds = defaultdict(set)
    for fact in world.facts:
        kinds[fact.subject.casefold()].add(fact.relation.kind)
    assert all(len(of_subject) == 1 for of_subject in kinds.values())


def test_no_two_questions_read_alike():
    world = load_world()
    prompts = [fact.prompt(number).casefold() for fact in world.facts for number in range(NUM_PHRASINGS)]
    assert len(set(prompts)) == len(prompts)


@pytest.mark.parametrize("asked", SPOT_CHECKS, ids=" ".join)
def test_facts_are_true(asked):
    assert {key(fact): fact.answer for fact in load_world().facts}[asked] == SPOT_CHECKS[asked]


def test_a_prompt_is_a_phrasing_with_the_subject_in_it():
    fact = next(fact for fact in load_world().facts if key(fact) == ("France", "country_capital"))
    assert fact.prompt(0) == "The capital of France is"
    assert fact.prompt(6) == "What is the capital of France? Answer:"


@pytest.mark.parametrize("relation", load_world().relations, ids=lambda relation: relation.name)
def test_phrasings_are_short_and_ten_of_twelve_are_trained(relation):
    assert relation.trained + relation.novel == relation.phrasings
    assert (len(relation.trained), len(relation.novel)) == (10, 2)
    assert all(4 <= len(phrasing.split()) <= 12 for phrasing in relation.phrasings)


def test_phrasings_are_distinct_over_all_relations():
    phrasings = [phrasing.lower() for relation in load_world().relations for phrasing in relation.phrasings]
    assert len(set(phrasings)) == len(phrasings)


@pytest.mark.parametrize("relation", load_world().relations, ids=lambda relation: relation.name)
def test_novel_phrasings_are_new_sentences_in_known_words(relation):
    world = load_world()
    known = set().union(*(words(phrasing) for other in world.relations for phrasing in other.trained))
    for novel in relation.novel:
        assert words(novel) <= known
        # Not a trained sentence with one word put for another.
        for trained in relation.trained:
            assert len(words(novel) ^ words(trained)) >= 3, (novel, trained)


@pytest.mark.parametrize("seed", SEEDS)
def test_edits_are_counterfactual_and_plausible(seed):
    world = load_world()
    edits = counterfactual_edits(world, seed=seed)
    answers = defaultdict(set)
    for fact in world.facts:
        answers[fact.relation.name].add(fact.answer)
    assert len({key(edit.fact) for edit in edits}) == len(edits) == 1000
    assert all(edit.fact.relation.editable for edit in edits)
    assert all(edit.target != edit.fact.answer for edit in edits)
    assert all(edit.target in answers[edit.fact.relation.name] for edit in edits)


@pytest.mark.parametrize("seed", SEEDS)
def test_edits_spare_relations_of_edited_subjects_and_whole_subjects(seed):
    world = load_world()
    edits = counterfactual_edits(world, seed=seed)
    edited = {key(edit.fact) for edit in edits}
    edited_subjects = {edit.fact.subject for edit in edits}
    spared = [fact for fact in world.facts if fact.subject in edited_subjects and key(fact) not in edited]
    assert len(spared) >= 500
    subjects = defaultdict(set)
    for fact in world.facts:
        if fact.relation.editable:
            subjects[fact.relation.kind].add(fact.subject)
    for of_kind in subjects.values():
        assert len(of_kind - edited_subjects) >= round(0.08 * len(of_kind)) > 0


def test_a_prefix_of_the_edits_is_a_mixture():
    world = load_world()
    relations = {edit.fact.relation.name for edit in counterfactual_edits(world)[:100]}
    assert len(relations) >= 14


def test_the_split_is_decided_by_its_seed():
    world = load_world()
    edits = counterfactual_edits(world, seed=3)
    assert edits == counterfactual_edits(world, seed=3)
    assert edits != counterfactual_edits(world, seed=4)
    assert locality_prompts(world, edits, seed=3) == locality_prompts(world, edits, seed=3)
    assert locality_prompts(world, edits, seed=3) != locality_prompts(world, edits, seed=4)


def test_the_default_split_is_the_one_that_published_numbers_were_measured_on():
    first = counterfactual_edits(load_world())[0]
    assert (*key(first.fact), first.target) == FIRST_EDIT


@pytest.mark.parametrize("seed", SEEDS)
def test_locality_prompts_lie_next_to_their_edit_and_ask_nothing_edited(seed):
    world = load_world()
    edits = counterfactual_edits(world, seed=seed)
    edited = {key(edit.fact) for edit in edits}
    prompts = locality_prompts(world, edits, seed=seed)
    assert Counter(prompt.kind for prompt in prompts) == {"hard_subject": 250, "hard_relation": 250, "easy": 500}
    assert len({prompt.prompt for prompt in prompts}) == 1000
    assert [prompt.edit for prompt in prompts] == list(edits)
    for prompt in prompts:
        fact, neighbour = prompt.fact, prompt.edit.fact
        assert key(fact) not in edited
        assert prompt.prompt in {phrasing.replace(SUBJECT, fact.subject) for phrasing in fact.relation.trained}
        assert (fact.subject == neighbour.subject) == (prompt.kind == "hard_subject")
        assert (fact.relation == neighbour.relation) == (prompt.kind == "hard_relation")
        assert fact.relation.editable == (prompt.kind != "easy")


def test_locality_prompts_use_a_fact_again_only_in_other_words():
    world = load_world()
    edits = counterfactual_edits(world, 20)
    prompts = locality_prompts(world, edits, count=100)
    assert Counter(prompt.kind for prompt in prompts)["hard_subject"] == 25
    assert len({prompt.prompt for prompt in prompts}) == 100


def test_too_many_edits_or_prompts_are_refused():
    world = load_world()
    with pytest.raises(ConfigError, match="num_edits is 5000; give 1 to"):
        counterfactual_edits(world, 5000)
    with pytest.raises(ConfigError, match="hard_subject prompts too few"):
        locality_prompts(world, counterfactual_edits(world, 1), count=1000)


RELATION = Relation("country_capital", "country", True, (f"The capital of {SUBJECT} is",) * NUM_PHRASINGS)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", r"countries\.tsv:1: columns \[\]"),
        ("country\tcountry_capitol\n", r"countries\.tsv:1: .*'country_capital'"),
        ("country\tcountry_capital\nFrance\tParis\nSpain\n", r"countries\.tsv:3: 0 cells after 'Spain'; give 1"),
        ("country\tcountry_capital\nFrance\tParis\teuro\n", r"countries\.tsv:2: 2 cells after 'France'; give 1"),
        ("country\tcountry_capital\nFrance\tParis \n", r"countries\.tsv:2: country_capital is 'Paris '"),
        ("country\tcountry_capital\nFrance\tParis.\n", r"countries\.tsv:2: country_capital is 'Paris\.'"),
        ("country\tcountry_capital\nFrance\tParis\nfrance\tLyon\n", r"countries\.tsv:3: 'france' again, as in line 2"),
    ],
    ids=[
        "empty file",
        "unknown column",
        "cell missing",
        "cell too many",
        "trailing blank",
        "full stop",
        "subject twice",
    ],
)
def test_a_malformed_table_is_refused_by_file_and_line(text, complaint):
    with pytest.raises(FactError, match=complaint):
        parse_table(text, file="countries.tsv", relations=[RELATION])


def test_an_empty_cell_is_no_fact():
    text = "country\tcountry_capital\nIsrael\t\nFrance\tParis\n"
    assert [fact.subject for fact in parse_table(text, file="countries.tsv", relations=[RELATION])] == ["France"]


@pytest.mark.parametrize(
    ("texts", "complaint"),
    [
        (["The capital of {subject} is"] * 11, "country_capital has 11 phrasings; give 12"),
        (["The capital of {subject} is "] * 12, "none at the ends"),
        (["The capital is"] * 12, "once"),
    ],
    ids=["eleven", "trailing blank", "no subject"],
)
def test_malformed_phrasings_are_refused(texts, complaint):
    with pytest.raises(FactError, match=complaint):
        parse_relations("country", editable=True, phrasings={"country_capital": texts})
