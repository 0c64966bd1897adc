"""What is asked of an edited model, of every form of data."""

import pytest

from recipe_ray.datasets.forms import RIPE_GENERALITY, RIPE_LOCALITY
from recipe_ray.errors import ConfigError
from recipe_ray.eval.cases import CaseQuestion, EvalCase, cases_in_groups, facts_of_prompts, num_sampled, record_cases
from recipe_ray.examples import EditRecord, Question


def record(row, *, generality=(), locality=(), **more):
    return EditRecord(
        prompt=f"p{row}",
        target=f"t{row}",
        subject=f"s{row}",
        generality={kind: (Question(prompt=f"{kind}{row}", target=f"of {kind}"),) for kind in generality},
        locality={kind: (Question(prompt=f"{kind}{row}", target="true"),) for kind in locality},
        **more,
    )


def test_every_kind_of_a_data_set_is_asked_once_with_its_own_target():
    """RIPE's six kinds, some of which an edit may lack."""
    records = [
        record(0, generality=RIPE_GENERALITY, locality=RIPE_LOCALITY),
        record(1, generality=RIPE_GENERALITY[:1], locality=RIPE_LOCALITY[1:]),
    ]
    by_prompt = {case.prompt: case for case in record_cases(records, name="ripe")}
    for one in records:
        case = by_prompt[one.prompt]
        assert (case.target, case.subject, case.statement) == (one.target, one.subject, one.statement)
        own, *others = case.questions
        assert own == CaseQuestion(sort="reliability", kind="reliability", prompt=one.prompt, target=one.target)
        expected = {("generality", kind, one.generality[kind][0].prompt, f"of {kind}") for kind in one.generality}
        expected |= {("locality", kind, one.locality[kind][0].prompt, "") for kind in one.locality}
        assert {(q.sort, q.kind, q.prompt, q.target) for q in others} == expected


def test_of_several_questions_of_a_kind_one_is_drawn_by_seed_and_a_sample_begins_a_larger_one():
    several = {"rephrase": tuple(Question(prompt=f"g{number}", target="t") for number in range(5))}
    spared = {"near": (Question(prompt="n", target="u"),)}
    records = [EditRecord(prompt=f"p{row}", target="t", generality=several, locality=spared) for row in range(30)]
    cases = record_cases(records, name="many", seed=3)
    assert cases[:7] == record_cases(records, 7, name="many", seed=3)
    assert cases != record_cases(records, name="many", seed=4)
    assert len({case.prompts("generality")[0] for case in cases}) > 1
    assert all(len(case.prompts("generality")) == 1 for case in cases)


def test_edits_that_lack_a_sort_are_left_out_and_data_without_rephrasings_is_refused_or_taken_if_asked():
    lacking = [record(0, locality=("near",)), record(1, locality=("near",))]
    full = record(2, generality=("rephrase",), locality=("near",))
    assert [case.prompt for case in record_cases([*lacking, full], name="some")] == ["p2"]
    with pytest.raises(ConfigError, match=r"zsre:x\.json: none of its 2 edits has questions of generality \(a rephras"):
        record_cases(lacking, name="zsre:x.json")
    taken = record_cases(lacking, name="zsre:x.json", allow_missing=True)
    assert {case.prompt for case in taken} == {"p0", "p1"}
    assert all(case.prompts("generality") == [] and case.prompts("locality") for case in taken)


@pytest.mark.parametrize(
    ("num_cases", "num_edits", "expected"),
    [
        (1000, 1, 200),
        (1000, 10, 200),
        (1000, 150, 150),
        (1000, 1000, 1000),
        (1000, 300, 300),
        (50, 20, 40),
        (7, None, 7),
    ],
)
def test_a_cell_takes_whole_groups_no_fewer_cases_than_it_can(num_cases, num_edits, expected):
    assert num_sampled(num_cases, num_edits) == expected


@pytest.mark.parametrize("num_edits", [0, 51])
def test_more_edits_than_cases_are_refused(num_edits):
    with pytest.raises(ConfigError, match=f"{num_edits} edits at once are asked for and the data has 50 cases"):
        num_sampled(50, num_edits)


@pytest.mark.parametrize(
    ("num_records", "num_edits", "expected"),
    [
        (7, [1, 3, 100], (6, [1, 3, 6])),
        (9, [1, 3, 9], (9, [1, 3, 9])),
        (2, [10], (2, [2])),
        (50, [1, 5], (20, [1, 5])),
    ],
)
def test_cases_fall_into_whole_groups(num_records, num_edits, expected):
    records = [record(row, generality=("r",), locality=("n",)) for row in range(num_records)]
    cases, counts = cases_in_groups(records, 20, num_edits, name="some")
    assert (len(cases), counts) == expected


def test_an_oracle_is_told_the_facts_of_a_prompt_and_of_no_locality_question_unless_wanted():
    spared = CaseQuestion(sort="locality", kind="near", prompt="l")
    asked = CaseQuestion(sort="generality", kind="r", prompt="both", target="x")
    cases = [EvalCase(fact_id=name, prompt=name, target="x", others=(asked, spared)) for name in "ab"]
    assert facts_of_prompts(cases) == {"a": ("a",), "b": ("b",), "both": ("a", "b")}
    assert facts_of_prompts(cases, neighbours=True)["l"] == ("a", "b")
