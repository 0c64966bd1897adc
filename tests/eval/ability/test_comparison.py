"""Counts are those a person would make."""

from recipe_ray.eval.ability.comparison import Prompt, TaskResult, compared


def choice(*scores, fired=False):
    return Prompt(scores=list(scores), said=[""] * len(scores), fired=fired)


def result(*prompts, **metrics):
    return TaskResult(task="csqa", metrics=metrics, prompts=prompts)


BEFORE = result(
    choice(-1.0, -2.0), choice(-3.0, -1.0), choice(-1.0, -4.0), Prompt(said=["red"]), acc=0.5, acc_stderr=0.1
)
AFTER = result(
    choice(-1.0, -2.0),
    choice(-0.5, -1.0, fired=True),
    choice(-1.0, -4.000001),
    Prompt(said=["blue"], fired=True, truncated=True),
    acc=0.25,
    acc_stderr=0.2,
)


def test_of_an_editor_that_looks_edits_up():
    assert compared(AFTER, BEFORE, looks_up=True) == {
        "task": "csqa",
        "acc_before": 0.5,
        "acc": 0.25,
        "acc_stderr": 0.2,
        "n": 4,
        "fired": 2,
        "fired_share": 0.5,
        "changed": 3,
        "answers_changed": 2,
        "unfired_changed": 1,
        "truncated": 1,
    }


def test_of_an_editor_of_weights_firing_is_missing_and_not_0():
    row = compared(AFTER, BEFORE, looks_up=False)
    assert (row["fired"], row["fired_share"], row["unfired_changed"]) == (None, None, None)
    assert (row["changed"], row["answers_changed"]) == (3, 2)


def test_an_llm_compared_with_itself_changes_nothing():
    row = compared(BEFORE, BEFORE, looks_up=True)
    assert (row["fired"], row["changed"], row["answers_changed"], row["unfired_changed"]) == (0, 0, 0, 0)
    assert row["acc"] == row["acc_before"] == 0.5
