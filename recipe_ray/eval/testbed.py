"""The testbed's evaluation: 1,000 counterfactual edits of the world's facts, and what lies next to them."""

import random
from typing import Any

from recipe_ray.eval.cases import CaseQuestion, EvalCase
from recipe_ray.facts import DEFAULT_NAMESPACE, default_fact_id
from recipe_ray.testbed.world import World, counterfactual_edits, load_world, locality_prompts

SOURCE = "testbed/counterfactual"
NUM_REPORTED = 1000
NUM_TUNING = 300


def testbed_cases(num_edits: int = NUM_REPORTED, *, seed: int = 0) -> tuple[EvalCase, ...]:
    """Edits in random order, each with a question of every sort; half of the locality questions are hard ones."""
    return _cases(load_world(), num_edits, drawn=0, seed=seed)


def testbed_tuning_cases(num_edits: int = NUM_TUNING, *, seed: int = 0) -> tuple[EvalCase, ...]:
    """The same of facts that no case of the report edits, to tune on; the edited facts of the report are not asked.

    Raises:
        ConfigError: the facts that are left do not give as many edits and unrelated questions.
    """
    world = load_world()
    reported = {(edit.fact.subject, edit.fact.relation.name) for edit in counterfactual_edits(world, NUM_REPORTED)}
    left = tuple(fact for fact in world.facts if (fact.subject, fact.relation.name) not in reported)
    return _cases(World(left, world.relations), num_edits, drawn=1, seed=seed)


def _cases(world: World, num_edits: int, *, drawn: int, seed: int) -> tuple[EvalCase, ...]:
    """Cases of a world's edits; `drawn` is the seed of the edits, `seed` that of the wordings."""
    edits = counterfactual_edits(world, num_edits, seed=drawn)
    rng = random.Random(seed)
    cases = []
    for edit, spared in zip(edits, locality_prompts(world, edits, num_edits), strict=True):
        trained = range(len(edit.fact.relation.trained))
        stated, asked = rng.sample(trained, 2)
        novel = rng.randrange(len(trained), len(edit.fact.relation.phrasings))
        prompt, target = edit.fact.prompt(stated), edit.target
        cases.append(
            EvalCase(
                fact_id=default_fact_id(DEFAULT_NAMESPACE, prompt),
                prompt=prompt,
                target=target,
                subject=edit.fact.subject,
                true_target=edit.fact.answer,
                relation=edit.fact.relation.name,
                others=(
                    CaseQuestion(sort="generality", kind="rephrase", prompt=edit.fact.prompt(asked), target=target),
                    CaseQuestion(sort="generality_novel", kind="novel", prompt=edit.fact.prompt(novel), target=target),
                    CaseQuestion(sort="locality", kind=spared.kind, prompt=spared.prompt),
                ),
            )
        )
    return tuple(cases)


def dump_records(cases: tuple[EvalCase, ...]) -> list[dict[str, Any]]:
    """The edits as records of a dump of facts."""
    return [{"prompt": case.prompt, "target": case.target, "source": SOURCE} for case in cases]
