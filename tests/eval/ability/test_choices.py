"""CommonsenseQA's form, and what is wrong with a record that is not of it."""

import json

import pytest

from recipe_ray.errors import FactError
from recipe_ray.eval.ability.choices import choice_question, write_task

RECORD = {
    "id": "1",
    "question": "Where do fish live? ",
    "question_concept": "fish",
    "choices": {"label": ["A", "B", "C"], "text": ["sea", "sky", "sand"]},
    "answerKey": "B",
}


def test_a_record():
    one = choice_question("csqa.json: record 1", RECORD)
    assert (one.question, one.choices, one.answer) == ("Where do fish live?", ("sea", "sky", "sand"), 1)
    assert one.text("letters") == "Question: Where do fish live?\nA. sea\nB. sky\nC. sand\nAnswer:"
    assert one.text("text") == "Where do fish live?"
    with_passage = choice_question("", {**RECORD, "passage": "Fish swim."})
    assert with_passage.text("text") == "Fish swim.\nWhere do fish live?"


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"question": " "}, "'question' is ' '"),
        ({"passage": 3}, "'passage' is 3"),
        ({"choices": ["sea", "sky"]}, "'choices' lacks 'label' and 'text'"),
        ({"choices": {"label": ["A", "B"], "text": ["sea"]}}, "'choices' lacks"),
        ({"choices": {"label": ["A"], "text": ["sea"]}}, "'choices' lacks"),
        ({"choices": {"label": ["A", "B"], "text": ["sea", ""]}}, "'choices' lacks"),
        ({"choices": {"label": ["B", "B"], "text": ["sea", "sky"]}}, "a label twice"),
        ({"answerKey": "D"}, "'answerKey' is 'D'; give one of A, B, C"),
        ({"answerKey": None}, "'answerKey' is None"),
    ],
)
def test_a_record_of_another_form_is_named(changes, complaint):
    with pytest.raises(FactError, match=complaint) as caught:
        choice_question("csqa.json: record 7", {**RECORD, **changes})
    assert str(caught.value).startswith("csqa.json: record 7: ")


@pytest.mark.parametrize(("style", "choices"), [("letters", ["A", "B", "C"]), ("text", ["sea", "sky", "sand"])])
def test_a_task_never_shows_the_answer_in_its_question(tmp_path, style, choices):
    write_task(tmp_path, "fish", [choice_question("", RECORD)], style)
    (line,) = (tmp_path / "fish.jsonl").read_text().splitlines()
    row = json.loads(line)
    assert (row["choices"], row["answer"], row["question"]) == (choices, 1, "Where do fish live?")
    assert "task: fish" in (tmp_path / "fish.yaml").read_text()
