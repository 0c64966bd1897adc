"""How edits are asked in training."""

import dataclasses
import random

import pytest

from recipe_ray.config import INVENTED, DataConfig
from recipe_ray.datasets.asking import (
    PLAINLY,
    Asking,
    invented_records,
    is_held_out,
    with_relation,
    without_held_out,
)
from recipe_ray.datasets.sources import open_training_data
from recipe_ray.datasets.wordings.relations import HELD_OUT, KIN_OF_HELD_OUT, load_relations
from recipe_ray.examples import EditRecord, Question

RECORD = with_relation(
    EditRecord(prompt="The mother tongue of Ada Byron is", target="Finnish", subject="Ada Byron", true_target="English")
)
REPHRASED = Question(prompt="Ada Byron spoke, from childhood on,", target="Finnish")
SPARED = Question(prompt="The mother tongue of Victor Hugo is", target="French")
LEFT_OUT = HELD_OUT + KIN_OF_HELD_OUT


def drawn(asking, ask, times=300):
    rng = random.Random(1)
    return [getattr(asking, ask[0])(RECORD, *ask[1:], rng) for _ in range(times)]


def test_plain_asking_changes_nothing():
    assert drawn(PLAINLY, ["own"], 5) == [Question(prompt=RECORD.prompt, target="Finnish")] * 5
    assert drawn(PLAINLY, ["reworded", REPHRASED], 5) == [REPHRASED] * 5
    assert drawn(PLAINLY, ["spared", SPARED], 5) == [SPARED] * 5


def test_in_a_chat_the_users_words_are_looked_up_and_the_conversation_is_read():
    asked = drawn(Asking(chat_share=0.5), ["own"])
    chats = [one for one in asked if one.messages]
    assert 0.4 < len(chats) / len(asked) < 0.6
    assert all(one.messages[-1] == ("user", one.prompt) for one in chats)
    assert {role for one in chats for role, _ in one.messages} == {"system", "user", "assistant"}
    assert all(one.target == "Finnish" for one in asked)


def test_whole_questions_are_asked_in_chats_nearly_always():
    asking, rng = Asking(chat_share=0.4), random.Random(2)
    question = Question(prompt="What does Ada Byron speak?", target="Finnish")
    asked = [asking.reworded(RECORD, question, rng) for _ in range(300)]
    assert 0.8 < sum(bool(one.messages) for one in asked) / len(asked) < 1


def test_an_edit_is_reworded_in_the_training_words_of_its_relation():
    relation = load_relations()[RECORD.relation]
    own = {text.replace("[X]", "Ada Byron") for text in relation.training.all}
    prompts = {one.prompt for one in drawn(Asking(wordings=True), ["reworded", REPHRASED])}
    assert prompts - own == {REPHRASED.prompt}
    assert len(prompts & own) > 10
    reporting = {text.replace("[X]", "Ada Byron") for text in relation.reporting.all}
    assert not prompts & reporting


def test_a_consequence_of_an_edit_keeps_its_own_question():
    follows = Question(prompt="Ada Byron grew up in a country where people speak", target="Estonian")
    assert set(drawn(Asking(wordings=True), ["reworded", follows])) == {follows}


def test_left_alone_are_others_of_the_relation_and_other_facts_of_the_subject_but_never_the_edit():
    asked = drawn(Asking(wordings=True), ["spared", SPARED])
    relation = load_relations()[RECORD.relation]
    own = {text.replace("[X]", "Ada Byron") for text in relation.training.all + relation.reporting.all}
    assert not {one.prompt for one in asked} & own
    assert SPARED in asked
    assert sum("Ada Byron" in one.prompt for one in asked) > 30
    assert sum("Ada Byron" not in one.prompt and one != SPARED for one in asked) > 30


@pytest.mark.parametrize("relation", LEFT_OUT)
def test_no_question_asks_for_a_relation_that_is_left_out(relation):
    wordings = load_relations()[relation].training.all
    records = invented_records(200, "seed", without=LEFT_OUT)
    assert relation not in {one.relation for one in records}
    asking, rng = Asking(wordings=True, without=LEFT_OUT), random.Random(3)
    for record in records:
        words = asking.spared(record, SPARED, rng).prompt
        assert words not in {text.replace("[X]", record.subject) for text in wordings}


def test_records_of_relations_held_out_are_known_by_prompt():
    held = EditRecord(prompt="The twin city of Lyon is", target="Bergen", subject="Lyon")
    assert is_held_out(with_relation(held))
    assert not is_held_out(RECORD)


def test_questions_to_leave_alone_that_ask_for_relations_held_out_are_left_out():
    twin = Question(prompt="nq question: what is the twin city of Lyon", target="Bergen")
    record = dataclasses.replace(RECORD, locality={"neighbour": (twin, SPARED), "nq": (twin,)})
    assert without_held_out(record).locality == {"neighbour": (SPARED,)}


def test_invented_facts_are_training_data_by_themselves():
    config = DataConfig(sources=(INVENTED,), wordings=True, chat_share=0.5, held_out=True, swapped_targets=0.5)
    data = open_training_data(config)
    first, again = (data.training(16, "seed").batch(3) for _ in range(2))
    assert first == again
    assert len({one.statement for one in first}) == 16
    assert any(one.messages for one in first)
    assert data.tuning(16, "seed").batch(0) != first
