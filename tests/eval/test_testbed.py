"""The evaluation behind the published numbers: what is edited, what is asked, and that no question is a trap."""

from recipe_ray.eval import testbed
from recipe_ray.testbed.world import load_world

WORLD = load_world()
CASES = testbed.testbed_cases(1000)
# Whose fact a prompt asks, and whether in a phrasing that training uses.
ASKED = {
    fact.prompt(phrasing): (fact, phrasing < len(fact.relation.trained))
    for fact in WORLD.facts
    for phrasing in range(len(fact.relation.phrasings))
}


def test_each_case_asks_one_fact_in_a_trained_another_trained_and_a_novel_phrasing():
    for case in CASES:
        own, trained = ASKED[case.prompt]
        assert trained
        (reworded,), (novel,) = case.prompts("generality"), case.prompts("generality_novel")
        assert ASKED[reworded] == (own, True)
        assert reworded != case.prompt
        assert ASKED[novel] == (own, False)
        assert case.subject == own.subject
        assert case.subject in case.prompt
        assert case.statement == f"{case.prompt} {case.target}"


def test_every_edit_is_counterfactual_and_edits_a_fact_of_its_own():
    facts = [ASKED[case.prompt][0] for case in CASES]
    assert len({(fact.subject, fact.relation.name) for fact in facts}) == 1000
    assert all(case.target != fact.answer for case, fact in zip(CASES, facts, strict=True))
    answers = {(fact.relation.name, fact.answer) for fact in WORLD.facts}
    assert all((fact.relation.name, case.target) in answers for case, fact in zip(CASES, facts, strict=True))


def test_no_locality_question_is_edited_and_half_lie_next_to_an_edit():
    edited = {(fact.subject, fact.relation.name) for fact in (ASKED[case.prompt][0] for case in CASES)}
    subjects, relations = ({pair[place] for pair in edited} for place in (0, 1))
    spared = [ASKED[case.prompts("locality")[0]][0] for case in CASES]
    assert not edited & {(fact.subject, fact.relation.name) for fact in spared}
    hard = [fact.subject in subjects or fact.relation.name in relations for fact in spared]
    assert sum(hard) == 500


def test_the_cases_are_the_same_every_time_and_the_dump_holds_them():
    assert testbed.testbed_cases(1000) == CASES
    assert [record["prompt"] for record in testbed.dump_records(CASES)] == [case.prompt for case in CASES]


def test_what_is_tuned_on_is_no_fact_of_the_report_neither_edited_nor_asked():
    tuning = testbed.testbed_tuning_cases(500)
    reported = {ASKED[case.prompt][0] for case in CASES}
    asked = {ASKED[question.prompt][0] for case in tuning for question in case.questions}
    assert not reported & asked
    assert len({case.fact_id for case in tuning}) == 500
    assert all(case.target != ASKED[case.prompt][0].answer for case in tuning)
    assert testbed.testbed_tuning_cases(500) == tuning
