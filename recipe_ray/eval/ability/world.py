"""The testbed's own multiple-choice questions: what its small LM knows, where CommonsenseQA is beyond it."""

import random

from recipe_ray.eval.ability.choices import ChoiceQuestion
from recipe_ray.eval.testbed import NUM_REPORTED
from recipe_ray.testbed.world import WorldFact, counterfactual_edits, load_world

NUM_CHOICES = 4


def world_questions(num_questions: int | None = None, *, edited: bool = False, seed: int = 0) -> list[ChoiceQuestion]:
    """A question about each fact: its true answer among those of three other facts of its relation, in random order.

    Args:
        num_questions: so many, drawn at random, or as many as there are; None for all.
        edited: take facts that the testbed's report edits too. Otherwise every true answer stays right after the edits.
        seed: of what is drawn.
    """
    rng = random.Random(seed)
    world = load_world()
    spared = set() if edited else {_place(edit.fact) for edit in counterfactual_edits(world, NUM_REPORTED)}
    answers: dict[str, set[str]] = {}
    for fact in world.facts:
        answers.setdefault(fact.relation.name, set()).add(fact.answer)
    facts = [
        fact for fact in world.facts if len(answers[fact.relation.name]) >= NUM_CHOICES and _place(fact) not in spared
    ]
    questions = []
    for fact in rng.sample(facts, min(num_questions or len(facts), len(facts))):
        others = sorted(answers[fact.relation.name] - {fact.answer})
        choices = [fact.answer, *rng.sample(others, NUM_CHOICES - 1)]
        rng.shuffle(choices)
        questions.append(
            ChoiceQuestion(
                question=fact.prompt(0),
                choices=tuple(choices),
                labels=tuple("ABCD"),
                answer=choices.index(fact.answer),
            )
        )
    return questions


def _place(fact: WorldFact) -> tuple[str, str]:
    return fact.subject, fact.relation.name
