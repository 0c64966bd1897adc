"""A cell's numbers are those a person would count by what the LLM really says."""

import json

import numpy as np
import pytest
import torch
from tiny_models import tiny_editor, tiny_llm

from recipe_ray.errors import ConfigError, EditorError
from recipe_ray.eval import protocol
from recipe_ray.eval.cases import Ask, CaseQuestion, EvalCase, facts_of_prompts
from recipe_ray.eval.evaluation import edit_of, evaluate_cell, evaluate_counts
from recipe_ray.eval.methods.base import Found
from recipe_ray.eval.methods.recipe import OraclePrompt, Recipe
from recipe_ray.eval.methods.unedited import Unedited
from recipe_ray.eval.protocol import plain_reader
from recipe_ray.eval.results import CellSettings, cell_result_from_dict

NAMES = ("ant", "bee", "cat", "dog")


def case_of(name, *, kinds=("rephrase",)):
    return EvalCase(
        fact_id=name,
        prompt=f"{name} is",
        target=f"new {name}",
        subject=name,
        others=(
            *(
                CaseQuestion(sort="generality", kind=kind, prompt=f"{kind} {name} is", target=f"new {name}")
                for kind in kinds
            ),
            CaseQuestion(sort="locality", kind="near", prompt=f"not {name} is"),
        ),
    )


CASES = [case_of(name) for name in NAMES]


class Talker:
    """A reader that says what a function of the ask says; teacher forcing gives the length of the answer's tokens."""

    def __init__(self, say, llm):
        self.say = say
        self.llm = llm
        self.num_batches = 0

    def reads_as(self, plain):
        pass

    def complete(self, asks, *, max_new_tokens, stop=()):
        return self.llm.generate([ask.text for ask in asks], [None] * len(asks), max_new_tokens=max_new_tokens)

    def generate(self, asks):
        self.num_batches += 1
        return [self.say(ask.text) for ask in asks]

    def generated_ids(self, asks):
        return [tuple(said.encode()) for said in self.generate(asks)]

    def answer_ids(self, answers):
        return [tuple(answer.encode()) for answer in answers]

    def token_accuracies(self, asks, answers):
        return [
            float(np.mean([a == b for a, b in zip(said.encode().ljust(len(ids)), ids, strict=False)]))
            for said, ids in zip(map(self.say, [ask.text for ask in asks]), answers, strict=True)
        ]


class Parrot:
    """Changes what is said of the edits in force, and of everything once more than `breaks_at` are."""

    name = "parrot"

    def __init__(self, llm, *, changes_llm=True, breaks_at=99, refused=None):
        self.changes_llm = changes_llm
        self.breaks_at = breaks_at
        self.refused = refused
        self.reader = Talker(self.say, llm)
        self.edits = []
        self.calls = []
        self.num_undone = 0

    def say(self, text):
        if len(self.edits) > self.breaks_at:
            return "rubbish"
        for edit in self.edits:
            if text in (edit.prompt, f"rephrase {edit.prompt}"):
                return edit.target
        return f"old {text}"

    def apply(self, edits):
        self.calls.append([edit.fact_id for edit in edits])
        if self.refused in self.calls[-1]:
            raise EditorError(f"edit {self.refused}: cannot be made")
        self.edits += edits

    def undo(self):
        self.edits.clear()
        self.num_undone += 1

    def asks(self, prompts):
        return [Ask(prompt) for prompt in prompts]

    def state_bytes(self):
        return 8 * len(self.edits)


@pytest.fixture(scope="module")
def llm():
    return tiny_llm()


def settings(num_edits, mode="batch", **more):
    return CellSettings(
        **{"data": "animals", "num_edits": num_edits, "mode": mode, "num_resamples": 50, "num_speed_prompts": 0, **more}
    )


def unedited_of(llm):
    return Talker(lambda text: f"old {text}", llm)


def values(scores):
    return {name: score.value for name, score in scores.items()}


def test_each_group_is_edited_apart_and_undone_in_calls_as_the_mode_says(llm):
    for num_edits, mode, calls in (
        (1, "single", [["ant"], ["bee"], ["cat"], ["dog"]]),
        (2, "batch", [["ant", "bee"], ["cat", "dog"]]),
        (2, "lifelong", [["ant"], ["bee"], ["cat"], ["dog"]]),
        (4, "batch", [list(NAMES)]),
    ):
        method = Parrot(llm, breaks_at=2)
        result = evaluate_cell(method, CASES, settings(num_edits, mode), unedited=unedited_of(llm))
        assert method.calls == calls
        assert method.num_undone == 4 // num_edits
        right = float(num_edits <= 2)
        assert values(result.free) == {"reliability": right, "generality": right, "locality": right}
        assert result.efficiency.state_bytes == 8 * num_edits
        assert (result.num_cases, result.free["generality"].n) == (4, 4)


def test_edits_that_nothing_is_asked_about_are_in_force_beside_each_group(llm):
    ant, bee, *others = CASES
    method = Parrot(llm)
    result = evaluate_cell(method, [ant, bee], settings(3), unedited=unedited_of(llm), bystanders=others)
    assert method.calls == [["ant", "cat", "dog"], ["bee", "cat", "dog"]]
    assert (result.num_cases, result.settings.num_edits, result.free["reliability"].n) == (2, 3, 2)
    with pytest.raises(ConfigError, match="2 cases cannot be taken in groups of 0"):
        evaluate_cell(method, [ant, bee], settings(2), unedited=unedited_of(llm), bystanders=others)


def test_only_what_is_exactly_right_counts_and_locality_is_what_the_unedited_llm_says(llm):
    class Sloppy(Parrot):
        def say(self, text):
            said = {"ant is": "new ant", "bee is": "new bee, I think", "cat is": "New cat", "not ant is": "other"}
            return said.get(text, f"old {text}")

    result = evaluate_cell(Sloppy(llm), CASES, settings(4, num_failures=2), unedited=unedited_of(llm))
    assert values(result.free) == {"reliability": 0.25, "generality": 0.0, "locality": 0.75}
    # "New cat" has six of seven bytes right; the Talker's tokens are bytes.
    forced = [1.0, 1.0, 6 / 7, np.mean([a == b for a, b in zip(b"old dog", b"new dog", strict=True)])]
    assert result.teacher_forced["reliability"].value == pytest.approx(np.mean(forced))
    wrong = {failure.question: (failure.wanted, failure.got) for failure in result.failures}
    assert wrong["not ant is"] == ("old not ant is", "other")
    assert sum(failure.sort == "generality" for failure in result.failures) == 2
    assert all(failure.wanted != failure.got for failure in result.failures)
    again = evaluate_cell(Sloppy(llm), CASES, settings(4, num_failures=2), unedited=unedited_of(llm))
    assert again.failures == result.failures


def test_kinds_of_a_sort_are_told_apart_and_what_a_case_lacks_is_not_counted(llm):
    cases = [case_of("ant", kinds=("rephrase", "hop")), case_of("bee", kinds=("rephrase",))]
    result = evaluate_cell(Parrot(llm), cases, settings(2), unedited=unedited_of(llm))
    free = result.free
    assert (free["generality/rephrase"].value, free["generality/hop"].value) == (1.0, 0.0)
    assert (free["generality/rephrase"].n, free["generality/hop"].n, free["generality"].n) == (2, 1, 3)
    assert free["generality"].value == pytest.approx(2 / 3)
    missing = evaluate_cell(
        Parrot(llm), [EvalCase(fact_id="a", prompt="a", target="b")], settings(1), unedited=unedited_of(llm)
    )
    row = missing.rows()[0]
    assert (row["reliability"], row["generality"], row["generality_ci_low"], row["locality"]) == (1.0, None, None, None)


def test_answers_of_a_method_that_leaves_the_llm_alone_are_read_together(llm):
    method = Parrot(llm, changes_llm=False)
    method.asks = lambda prompts: [
        Ask(f"{prompt}!{'+'.join(edit.fact_id for edit in method.edits)}") for prompt in prompts
    ]
    read = []
    method.reader.generate = lambda asks: read.append(asks) or ["x"] * len(asks)
    evaluate_cell(method, CASES, settings(2), unedited=unedited_of(llm))
    (asks,) = read
    assert [ask.text for ask in asks if not ask.text.startswith(("not", "re"))] == [
        "ant is!ant+bee", "bee is!ant+bee", "cat is!cat+dog", "dog is!cat+dog",
    ]  # fmt: skip


def test_an_edit_that_cannot_be_made_ends_the_cell_with_its_reason_and_nothing_in_force(llm):
    method = Parrot(llm, refused="cat")
    with pytest.raises(EditorError, match="edit cat: cannot be made"):
        evaluate_cell(method, CASES, settings(2, "lifelong"), unedited=unedited_of(llm))
    assert method.edits == []


@pytest.mark.parametrize("num_edits", [3, 5, 8])
def test_groups_that_do_not_come_out_even_are_refused(num_edits, llm):
    with pytest.raises(ConfigError, match=f"4 cases cannot be taken in groups of {num_edits}; give a divisor"):
        evaluate_cell(Parrot(llm), CASES, settings(num_edits), unedited=unedited_of(llm))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_edits": 2, "mode": "single"}, "mode is single and num_edits is 2"),
        ({"num_edits": 0, "mode": "batch"}, "num_edits is 0; give 1 or more"),
        ({"num_edits": 1, "mode": "sometimes"}, "mode is 'sometimes'; give one of single, batch, lifelong"),
    ],
)
def test_settings_that_cannot_be_are_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        CellSettings(data="x", **fields)


def test_retrieval_is_counted_apart_from_what_is_said(llm):
    nearest = {
        "ant is": ("ant", 2.0),
        "bee is": ("ant", 2.0),
        "cat is": ("cat", 0.5),
        "dog is": ("dog", 2.0),
        "not ant is": ("ant", 3.0),
    }

    class Finder(Parrot):
        def retrieve(self, prompts):
            found = [nearest.get(prompt, (None, -1.0)) for prompt in prompts]
            score = np.array([score for _, score in found], np.float32)
            return Found(
                fact_ids_B=tuple(fact_id for fact_id, _ in found),
                applied_B=score > 1,
                score_B=score,
                threshold_B=np.ones(len(score), np.float32),
            )

    result = evaluate_cell(Finder(llm), CASES, settings(2), unedited=unedited_of(llm))
    found = values(result.retrieval)
    assert found["right_fact_reliability"] == 0.75
    assert found["right_decision_reliability"] == 0.5
    assert found["right_fact_generality"] == 0.0
    assert (found["right_fact"], found["missed"], found["wrong_fact"]) == (3 / 8, 5 / 8, 1 / 8)
    assert (found["false_fire"], found["right_decision_locality"]) == (0.25, 0.75)
    assert found["right_decision"] == pytest.approx((2 + 3) / 12)
    assert sorted(result.unrelated_margins) == [-2.0, -2.0, -2.0, 2.0]
    assert sorted(result.related_margins) == [-2.0, -2.0, -2.0, -2.0, -0.5, 1.0, 1.0, 1.0]


def test_a_result_is_the_same_after_json_and_its_rows_are_flat(llm):
    result = evaluate_cell(Parrot(llm), CASES, settings(2, num_speed_prompts=2), unedited=unedited_of(llm))
    assert cell_result_from_dict(json.loads(json.dumps(result.to_dict()))) == result
    free, forced = result.rows()
    assert (free["editor"], free["data"], free["T"], free["mode"], free["measure"], free["n"]) == (
        "parrot", "animals", 2, "batch", "free", 4,
    )  # fmt: skip
    assert forced["measure"] == "teacher_forced"
    assert free["reliability_ci_low"] <= free["reliability"] <= free["reliability_ci_high"]
    assert free["tokens_per_s"] > 0 < free["unedited_ttft_s"]
    assert free["state_bytes_per_fact"] == 8.0
    assert all(value is None or isinstance(value, str | int | float) for value in free.values())


def test_the_unedited_llm_keeps_to_itself_token_by_token(llm):
    """Whatever it says: words that no text gives back as the same tokens, or nothing but an end."""
    result = evaluate_cell(Unedited(llm), CASES, settings(4), unedited=plain_reader(llm))
    assert result.free["locality"].value == result.teacher_forced["locality"].value == 1.0


def test_batching_of_asks_changes_no_number_and_the_llm_is_untouched(llm, monkeypatch):
    editor = tiny_editor(similarity="cosine")
    before = [parameter.clone() for parameter in llm.model.parameters()]

    def scores(num_edits):
        result = evaluate_cell(Recipe(llm, editor), CASES, settings(num_edits), unedited=plain_reader(llm))
        return result.free, result.teacher_forced, result.retrieval, result.failures

    together = [scores(num) for num in (1, 4)]
    monkeypatch.setattr(protocol, "BATCH_SIZE", 1)
    assert [scores(num) for num in (1, 4)] == together
    assert all(torch.equal(was, now) for was, now in zip(before, llm.model.parameters(), strict=True))


def test_an_oracle_decides_rightly_always(llm):
    """With the right prompt handed over, what is asked of an edit is read behind it and nothing else is."""
    editor = tiny_editor(similarity="cosine")
    oracle = OraclePrompt(llm, editor, facts_of_prompts(CASES))
    result = evaluate_cell(oracle, CASES, settings(4), unedited=plain_reader(llm))
    assert result.free["locality"].value == 1.0
    assert result.retrieval == {}
    _, prompts = editor.encode_facts([case.statement for case in CASES])
    oracle.apply([edit_of(case) for case in CASES])
    for case, prompt in zip(CASES, prompts, strict=True):
        (ask,) = oracle.asks(case.prompts("generality"))
        np.testing.assert_allclose(oracle.reader.prompts_NPD[ask.fact], prompt, rtol=1e-4, atol=1e-5)
        assert oracle.asks(case.prompts("locality")) == [Ask(case.prompts("locality")[0])]


def test_scores_come_by_the_number_of_edits_at_once(llm):
    answers, retrieval = evaluate_counts(
        Recipe(llm, tiny_editor()), CASES, [1, 2, 4], data="animals", unedited=plain_reader(llm)
    )
    assert list(answers) == list(retrieval) == ["1", "2", "4"]
    assert retrieval["1"]["right_fact"] == 1.0
    assert all(set(one["free"]) == {"reliability", "generality", "locality"} for one in answers.values())
