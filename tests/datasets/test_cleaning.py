"""What is dropped and counted."""

from recipe_ray.datasets.cleaning import clean
from recipe_ray.examples import EditRecord, Question


def record(prompt, target, *, asked=(), spared=()):
    return EditRecord(
        prompt=prompt,
        target=target,
        generality={"rephrase": tuple(Question(prompt=one, target=target) for one in asked)} if asked else {},
        locality={"neighbour": tuple(Question(prompt=one, target="x") for one in spared)} if spared else {},
    )


def test_contradictions_go_whole_repetitions_but_for_the_first_and_both_are_counted_over_all_sources():
    cleaned = clean(
        [
            [record("A is", "1"), record("B is", "1"), record("b  IS", "1 ")],
            [record("a is", "2"), record("C is", "3"), record("B is", "1")],
        ]
    )
    assert [[(one.prompt, one.target) for one in part] for part in cleaned.records] == [
        [("B is", "1")],
        [("C is", "3")],
    ]
    assert (cleaned.num_read, cleaned.num_contradictory, cleaned.num_repeated) == (6, 2, 2)


def test_locality_questions_that_any_kept_edit_answers_go_and_their_records_stay():
    cleaned = clean(
        [
            [record("A is", "1", spared=("B is", "so B is", "free"))],
            [record("B is", "2", asked=("So B is",), spared=("d is",)), record("D is", "1"), record("D is", "2")],
        ]
    )
    (first,), (second,) = cleaned.records
    assert [one.prompt for one in first.locality["neighbour"]] == ["free"]
    # D contradicts itself, so it is not edited, and may be asked.
    assert [one.prompt for one in second.locality["neighbour"]] == ["d is"]
    assert cleaned.num_edited_locality == 2


def test_a_record_left_without_a_question_has_no_empty_kind():
    cleaned = clean([[record("A is", "1", spared=("a is",)), record("B is", "2", spared=("c",))]])
    assert cleaned.records[0][0].locality == {}
    assert str(cleaned).startswith("2 edits read, 2 kept; dropped 0")


def test_another_spelling_of_a_text_is_no_other_text():
    cleaned = clean(
        [
            [
                record("Perú is", "1", spared=("Bogotá\u00a0is",)),
                record("Peru\u0301 \u200bis", "1"),
                record("Bogota\u0301 is", "2"),
            ],
        ]
    )
    (kept,) = cleaned.records
    assert [(one.prompt, dict(one.locality)) for one in kept] == [("Perú is", {}), ("Bogota\u0301 is", {})]
    assert (cleaned.num_repeated, cleaned.num_edited_locality) == (1, 1)
