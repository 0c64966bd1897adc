"""A question in a chat: what is looked up is what the user typed, and reporting's surroundings are its own."""

import random
import re

import pytest

from recipe_ray.datasets.wordings.dressing import dressed, load_pools

QUESTION = "Which city was Aurelio Quist born in?"
SUBJECT = "Aurelio Quist"


def many(part="training", question=QUESTION, num=2000):
    rng = random.Random(7)
    return [dressed(question, rng, part, subject=SUBJECT) for _ in range(num)]


@pytest.mark.parametrize("part", ["training", "reporting"])
def test_the_last_message_is_what_is_looked_up_and_roles_alternate(part):
    for one in many(part):
        assert one.messages[-1] == ("user", one.query)
        roles = [role for role, _ in one.messages]
        turns = roles[1:] if roles[0] == "system" else roles
        assert turns == ["user", "assistant"] * (len(turns) // 2) + ["user"]


def test_the_same_stream_gives_the_same_dressings():
    assert many() == many()


def test_a_third_is_plain_and_the_others_show_everything():
    dressings = many()
    plain = [one for one in dressings if one.messages == (("user", QUESTION),)]
    assert 0.33 < len(plain) / len(dressings) < 0.5
    pools = load_pools("training")
    queries = [one.query for one in dressings]
    assert any(one.messages[0][0] == "system" for one in dressings)
    assert any(len(one.messages) > 4 for one in dressings)
    assert any(query.startswith(pools.openings) for query in queries)
    assert any(query.endswith(pools.closings) for query in queries)
    assert any(query == QUESTION.lower() for query in queries)
    assert any(query == QUESTION.removesuffix("?") for query in queries)


def test_a_typo_touches_one_letter_and_spares_subject_and_digits():
    question = "Which city was Aurelio Quist born in, before 12345678?"
    misspelt = [one.query for one in many(question=question) if "Which city was Aurelio Quist born in" not in one.query]
    assert misspelt
    for query in misspelt:
        assert SUBJECT.lower() in query.lower()
        assert "12345678" in query
        assert any(typo_of(question.removesuffix("?").lower(), query.lower(), at) for at in range(len(question)))


def typo_of(question, query, at):
    a, b = question[at : at + 1], question[at + 1 : at + 2]
    return any(question[:at] + change + question[at + 2 :] in query for change in (b + a, b, a + a + b))


def test_reporting_shares_no_surroundings_with_training():
    training, reporting = (texts(load_pools(part)) for part in ("training", "reporting"))
    assert not training & reporting


def test_the_pools_are_wide():
    sizes = {
        part: [len(pool) for pool in (pools.systems, pools.turns, pools.openings, pools.closings)]
        for part, pools in (("training", load_pools("training")), ("reporting", load_pools("reporting")))
    }
    assert all(size >= least for size, least in zip(sizes["training"], (25, 40, 40, 15), strict=True))
    assert all(size >= least for size, least in zip(sizes["reporting"], (8, 10, 12, 5), strict=True))


def texts(pools):
    turns = [text for turn in pools.turns for text in turn]
    return {
        re.sub(r"\W+", " ", text.casefold()).strip()
        for text in (*pools.systems, *turns, *pools.openings, *pools.closings)
    }
