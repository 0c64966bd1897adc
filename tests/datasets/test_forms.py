"""Each data set's form, field by field, and complaints that name record and field."""

import pytest

from recipe_ray.datasets.forms import FORMS, Fields
from recipe_ray.datasets.split import to_edits_form
from recipe_ray.errors import FactError
from recipe_ray.examples import EditRecord, Question

COUNTERFACT = {
    "case_id": 10,
    "prompt": "BBC One, by",
    "target_new": "Sega",
    "subject": "BBC One",
    "ground_truth": "BBC",
    "rephrase_prompt": "BBC One is owned by",
    "locality_prompt": "BBC Radio, by",
    "locality_ground_truth": "BBC",
}
ZSRE = {
    "subject": "UniFirst",
    "src": "What is made by UniFirst?",
    "pred": "uniform",
    "rephrase": "What does UniFirst make?",
    "alt": "aircraft",
    "answers": ["uniform"],
    "loc": "nq question: who sang it",
    "loc_ans": "Nobody",
}
RIPE = {
    "prompt": "The mother of Ann is",
    "target_new": "Eve",
    "subject": "Ann",
    "example_type": "popular",
    "Logical_Generalization": [{"prompt": "A child of Eve is", "targets": ["Ann", "Annie"]}],
    "Compositionality_I": [{"prompt": "The mother of Ann was born in", "targets": []}],
    "Compositionality_II": [],
    "Subject_Aliasing": [{"prompt": "The mother of Annie is", "targets": ["Eve"]}],
    "Relation_Specificity": [{"prompt": "The father of Ann is", "targets": ["Bob"]}],
    "Forgetfulness": [],
}
OWN = {
    "prompt": "法国的首都是",
    "target": " 里昂 ",
    "generality": [
        {"prompt": "法国首都为"},
        {"kind": "hop", "prompt": "A city of France is", "target": "Lyon"},
        {"prompt": "法国的首都叫"},
    ],
    "locality": [{"prompt": "德国的首都是", "target": "柏林"}],
}


def read(form, values):
    return FORMS[form](Fields("f.json: record 7", values))


def one(prompt, target):
    return (Question(prompt=prompt, target=target),)


@pytest.mark.parametrize(
    ("form", "values", "expected"),
    [
        (
            "counterfact",
            COUNTERFACT,
            EditRecord(
                prompt="BBC One, by",
                target="Sega",
                subject="BBC One",
                true_target="BBC",
                generality={"rephrase": one("BBC One is owned by", "Sega")},
                locality={"neighbour": one("BBC Radio, by", "BBC")},
            ),
        ),
        (
            "zsre",
            ZSRE,
            EditRecord(
                prompt="What is made by UniFirst?",
                target="aircraft",
                subject="UniFirst",
                true_target="uniform",
                generality={"rephrase": one("What does UniFirst make?", "aircraft")},
                locality={"neighbour": one("nq question: who sang it", "Nobody")},
            ),
        ),
        (
            "ripe",
            RIPE,
            EditRecord(
                prompt="The mother of Ann is",
                target="Eve",
                subject="Ann",
                generality={
                    "Logical_Generalization": one("A child of Eve is", "Ann"),
                    "Subject_Aliasing": one("The mother of Annie is", "Eve"),
                },
                locality={"Relation_Specificity": one("The father of Ann is", "Bob")},
            ),
        ),
        (
            "edits",
            OWN,
            EditRecord(
                prompt="法国的首都是",
                target="里昂",
                generality={
                    "rephrase": (*one("法国首都为", "里昂"), *one("法国的首都叫", "里昂")),
                    "hop": one("A city of France is", "Lyon"),
                },
                locality={"neighbour": one("德国的首都是", "柏林")},
            ),
        ),
        ("edits", {"prompt": "a", "target": "b", "locality": None}, EditRecord(prompt="a", target="b")),
    ],
)
def test_a_record_of_each_form(form, values, expected):
    assert read(form, values) == expected


@pytest.mark.parametrize(
    ("form", "values", "complaint"),
    [
        ("counterfact", {**COUNTERFACT, "target_new": None}, "'target_new' is missing; it has 'case_id', 'prompt'"),
        ("counterfact", {**COUNTERFACT, "rephrase_prompt": 5}, "'rephrase_prompt' is 5; give a text"),
        ("counterfact", ZSRE, "'prompt' is missing; it has 'subject', 'src'"),
        ("zsre", {**ZSRE, "alt": " "}, "'alt' is empty; give a text"),
        ("zsre", {**ZSRE, "alt": "\u200b\ufeff"}, "'alt' is empty; give a text"),
        ("zsre", {**ZSRE, "alt": "\ud800"}, "'alt' holds half of a surrogate pair; give valid Unicode"),
        ("zsre", {**ZSRE, "answers": ["\udfff"]}, "'answers' holds half of a surrogate pair; give valid Unicode"),
        ("zsre", {}, "'src' is missing; it has no field"),
        ("ripe", {**RIPE, "Forgetfulness": "x"}, "'Forgetfulness' is no list of objects"),
        (
            "ripe",
            {**RIPE, "Forgetfulness": [{"prompt": "x", "targets": "y"}]},
            "'Forgetfulness', item 1: 'targets' is no list",
        ),
        ("ripe", {**RIPE, "Forgetfulness": [{"targets": ["y"]}]}, "'Forgetfulness', item 1: 'prompt' is missing"),
        ("edits", {**OWN, "locality": [{"prompt": "x"}]}, "'locality', item 1: 'target' is missing"),
        ("edits", {**OWN, "generality": [1]}, "'generality' is no list of objects"),
        ("edits", {**OWN, "subject": ["x"]}, r"'subject' is \[\"x\"\]; give a text"),
    ],
)
def test_a_complaint_names_record_and_field(form, values, complaint):
    with pytest.raises(FactError, match=f"f.json: record 7: {complaint}"):
        read(form, values)


CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi! France's capital, please?"}]
TURNS = (("system", "Be brief."), ("user", "Hi! France's capital, please?"))


def test_a_chat_says_what_the_llm_reads_and_its_last_message_or_the_prompt_what_is_looked_up():
    own = {"prompt": "The capital of France is", "target": "Lyon"}
    record = read(
        "edits", {**own, "generality": [{"messages": CHAT}, {"messages": CHAT, "prompt": "capital of France"}]}
    )
    first, second = record.generality["rephrase"]
    assert first == Question(prompt=TURNS[-1][1], target="Lyon", messages=TURNS)
    assert second == Question(prompt="capital of France", target="Lyon", messages=TURNS)
    assert read("edits", to_edits_form(record)) == record


@pytest.mark.parametrize(
    ("messages", "complaint"),
    [
        ([{"role": "assistant", "content": "Yes."}], "'generality', item 1: 'messages' end with one of assistant"),
        ([{"role": "bot", "content": "x"}], "'messages', item 1: 'role' is 'bot'; give one of system, user, assistant"),
        ([{"role": "user"}], "'messages', item 1: 'content' is missing"),
        ([{"role": "user", "content": "x", "name": "y"}], "unknown field 'name'"),
        ("Where?", "'messages' is no list of objects"),
    ],
)
def test_a_chat_of_another_shape_is_refused_by_place(messages, complaint):
    values = {"prompt": "a", "target": "b", "generality": [{"messages": messages}]}
    with pytest.raises(FactError, match=complaint):
        read("edits", values)
