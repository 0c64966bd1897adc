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
        assert ASKED[case.generality_prompt] == (own, True)
        assert case.generality_prompt != case.prompt
        assert ASKED[case.novel_prompt] == (own, False)
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
    spared = [ASKED[case.locality_prompt][0] for case in CASES]
    assert not edited & {(fact.subject, fact.relation.name) for fact in spared}
    hard = [fact.subject in subjects or fact.relation.name in relations for fact in spared]
    assert sum(hard) == 500


def test_the_cases_are_the_same_every_time_and_the_dump_holds_them():
    assert testbed.testbed_cases(1000) == CASES
    assert [record["prompt"] for record in testbed.dump_records(CASES)] == [case.prompt for case in CASES]
