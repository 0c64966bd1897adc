"""Every relation in many wordings; reporting asks in none that training knows."""

import re
from collections import Counter

import pytest

from recipe_ray.datasets.wordings.relations import HELD_OUT, KIN_OF_HELD_OUT, SUBJECT, load_relations, relations_of

RELATIONS = load_relations()


def plain(wording):
    return re.sub(r"\W+", " ", wording.casefold()).strip()


def test_there_are_many_relations_and_each_has_its_wikidata_id_or_says_that_it_is_ours():
    assert len(RELATIONS) >= 90
    assert all(re.fullmatch(r"P\d+|own:[a-z_]+", relation_id) for relation_id in RELATIONS)
    assert len({relation.name for relation in RELATIONS.values()}) == len(RELATIONS)


@pytest.mark.parametrize("relation", RELATIONS.values(), ids=RELATIONS)
def test_a_relation_has_enough_wordings_of_each_form(relation):
    training, reporting = relation.training, relation.reporting
    assert (len(training.cloze) >= 6, len(training.questions) >= 8, len(training.requests) >= 5) == (True,) * 3
    assert (len(reporting.cloze) >= 2, len(reporting.questions) >= 4, len(reporting.requests) >= 2) == (True,) * 3
    for wordings in (training, reporting):
        assert all(text.count(SUBJECT) == 1 for text in wordings.all)
        assert all(text.endswith("?") for text in wordings.questions)
        assert not [text for text in wordings.cloze if text.endswith((".", "?", " "))]


def test_no_wording_stands_twice_so_reporting_asks_in_none_of_training():
    counts = Counter(
        plain(text) for relation in RELATIONS.values() for text in relation.training.all + relation.reporting.all
    )
    assert [text for text, count in counts.items() if count > 1] == []


def test_relations_held_out_are_relations():
    assert len(HELD_OUT) >= 6
    assert set(HELD_OUT + KIN_OF_HELD_OUT) <= set(RELATIONS)
    assert not set(HELD_OUT) & set(KIN_OF_HELD_OUT)


def test_relations_of_a_kind_are_also_those_of_what_it_is_a_sort_of():
    of_city = {relation.id for relation in relations_of("city")}
    assert {"P1082", "P17"} <= of_city  # population is a city's; the country is any place's
    assert "P2044" not in of_city  # elevation is a mountain's
    assert "P1082" not in {relation.id for relation in relations_of("place")}
    assert {"own:battery_life", "P462", "own:price"} <= {relation.id for relation in relations_of("device")}
