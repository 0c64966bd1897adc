"""The testbed's questions are answerable, and edits do not touch them."""

from recipe_ray.eval import testbed
from recipe_ray.eval.ability.world import world_questions
from recipe_ray.testbed.world import load_world


def test_the_right_choice_is_the_true_one_and_no_edit_changes_it():
    edited = {case.prompt for case in testbed.testbed_cases()}
    spared, touched = {}, set()
    for fact in load_world().facts:
        prompts = {fact.prompt(number) for number in range(len(fact.relation.phrasings))}
        if prompts & edited:
            touched.add(fact.prompt(0))
        else:
            spared[fact.prompt(0)] = fact.answer
    questions = world_questions()
    assert len(questions) > 200
    assert len(touched) == len(edited)
    for one in questions:
        assert one.question not in touched
        assert one.choices[one.answer] == spared[one.question]
        assert len(set(one.choices)) == 4


def test_the_same_seed_asks_the_same():
    assert world_questions(20, seed=3) == world_questions(20, seed=3) != world_questions(20, seed=4)
    assert len(world_questions(20)) == 20
    assert len(world_questions(edited=True)) > len(world_questions())
