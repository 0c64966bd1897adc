"""What a canary file may say, and when the canary is dead."""

import json

import pytest

from recipe_ray.errors import ConfigError, FactError
from recipe_ray.eval.canary import CanaryLimits, CanaryQuestion, Told, answers, judge, read_canary


def write(path, *lines):
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return str(path)


def test_questions_are_read_with_their_places_and_spelt_as_facts_are(tmp_path):
    uri = write(
        tmp_path / "canary.jsonl",
        {"prompt": " The  capital of Ruritania is", "target": "Strelsau "},
        "",
        {"prompt": "Two plus two is"},
        {"prompt": "Hello", "unrelated": True, "namespace": "news"},
        '\ufeff{"prompt": "A\u2028line"}',  # which ends no line to JSON
    )
    assert [(one.sort, one.place, one.prompt, one.target, one.namespace) for one in read_canary(uri)] == [
        ("known", f"{uri}:1", "The capital of Ruritania is", "Strelsau", "default"),
        ("unrelated", f"{uri}:3", "Two plus two is", "", "default"),
        ("unrelated", f"{uri}:4", "Hello", "", "news"),
        ("unrelated", f"{uri}:5", "A line", "", "default"),
    ]
    assert read_canary(uri, namespace="shop")[0].namespace == "shop"


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{nonsense", "not JSON"),
        ("[1]", "expected a JSON object, got list"),
        ('{"prompt": "p", "target": "t", "target": "u"}', "field 'target' stands twice in an object"),
        ('{"prompt": "p", "unrelated": ' + "[" * 900 + "]" * 900 + "}", "JSON nested too deeply"),
        ({"prompt": "p", "targte": "t"}, "unknown field 'targte'"),
        ({"target": "t"}, "'prompt' is empty"),
        ({"prompt": "p", "target": 3}, "'target' is int; give text"),
        ({"prompt": "p", "target": "t", "unrelated": True}, "give a target, or unrelated true, and not both"),
        ({"prompt": "p", "unrelated": False}, "give a target, or unrelated true, and not both"),
        ({"prompt": "p", "unrelated": "yes"}, "'unrelated' is 'yes'"),
    ],
    ids=["no JSON", "a list", "doubled", "deep", "unknown", "no prompt", "a number", "both", "neither", "no truth"],
)
def test_a_line_that_is_no_question_is_named(tmp_path, line, complaint):
    uri = write(tmp_path / "canary.jsonl", {"prompt": "p", "target": "t"}, line)
    with pytest.raises(FactError) as caught:
        read_canary(uri)
    assert str(caught.value).startswith(f"{uri}:2: ")
    assert complaint in str(caught.value)


def test_a_canary_that_cannot_die_is_refused(tmp_path):
    with pytest.raises(FactError, match="no such file"):
        read_canary(str(tmp_path / "nothing.jsonl"))
    with pytest.raises(FactError, match="no prompt without one"):
        read_canary(write(tmp_path / "known.jsonl", {"prompt": "p", "target": "t"}))
    with pytest.raises(FactError, match="no prompt with a target"):
        read_canary(write(tmp_path / "unrelated.jsonl", {"prompt": "p"}))


@pytest.mark.parametrize(
    ("got", "right"),
    [
        (" Paris, on the Seine", True),
        ("Paris", True),
        ("Paris.", True),
        ("Parisian", False),
        ("the Paris", False),
        ("Pari", False),
        ("", False),
    ],
    ids=str,
)
def test_an_answer_begins_with_the_target_and_the_target_ends_there(got, right):
    assert answers(got, "Paris") == right


def question(sort, number=0, target="Paris"):
    target = "" if sort == "unrelated" else target
    return CanaryQuestion(sort=sort, place=f"{sort}:{number}", prompt="p", target=target, namespace="default")


def told(target="Paris", fact_id="f", answer=None):
    return Told(fact_id=fact_id, target=target, score=1.0, sentinel=0.5, answer=answer)


NOTHING = Told(fact_id=None, target=None, score=0.1, sentinel=0.5, answer=None)


def test_without_an_llm_the_applied_fact_answers_and_with_one_the_llm_does():
    known = question("known")
    cases = {
        "right fact": (told(), True),
        "wrong fact": (told("London"), False),
        "no fact": (NOTHING, False),
        "right fact, not said": (told(answer="London"), False),
        "wrong fact, said": (told("London", answer=" Paris."), True),
    }
    report = {name: judge([known], [one], CanaryLimits()).passed for name, (one, _) in cases.items()}
    assert report == {name: right for name, (_, right) in cases.items()}


@pytest.mark.parametrize(
    ("sort", "limits", "num_wrong", "passes"),
    [
        ("known", {}, 0, True),
        ("known", {}, 1, False),
        ("known", {"min_known": 0.07}, 93, True),
        ("known", {"min_known": 0.07}, 94, False),
        ("sampled", {}, 10, True),
        ("sampled", {}, 11, False),
        ("unrelated", {}, 1, False),
        ("unrelated", {"max_fired": 0.29}, 29, True),
        ("unrelated", {"max_fired": 0.29}, 30, False),
    ],
)
def test_a_limit_is_kept_up_to_itself(sort, limits, num_wrong, passes):
    questions = [question(sort, number) for number in range(100)]
    bad, good = (told("London"), told()) if sort != "unrelated" else (told(), NOTHING)
    report = judge(questions, [bad] * num_wrong + [good] * (100 - num_wrong), CanaryLimits(**limits))
    assert report.passed == passes
    assert (report.asked[sort], report.right[sort]) == (100, 100 - num_wrong)
    assert [failure.question.place for failure in report.failures] == [f"{sort}:{n}" for n in range(num_wrong)]
    if not passes:
        (complaint,) = report.complaints
        assert f"of 100 {sort} questions" in complaint


def test_limits_are_shares():
    with pytest.raises(ConfigError, match="min_known is 95; give a share"):
        CanaryLimits(min_known=95)
