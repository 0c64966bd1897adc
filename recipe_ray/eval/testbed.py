"""The testbed's evaluation: 1,000 counterfactual edits of the world's facts, and what lies next to them."""

import random
from typing import Any

from recipe_ray.eval.cases import EvalCase
from recipe_ray.facts import DEFAULT_NAMESPACE, default_fact_id
from recipe_ray.testbed.world import counterfactual_edits, load_world, locality_prompts

SOURCE = "testbed/counterfactual"


def testbed_cases(num_edits: int = 1000, *, seed: int = 0) -> tuple[EvalCase, ...]:
    """Edits in random order, each with a question of every kind; half of the locality questions are hard ones."""
    world = load_world()
    edits = counterfactual_edits(world, num_edits)
    rng = random.Random(seed)
    cases = []
    for edit, spared in zip(edits, locality_prompts(world, edits, num_edits), strict=True):
        trained = range(len(edit.fact.relation.trained))
        stated, asked = rng.sample(trained, 2)
        novel = rng.randrange(len(trained), len(edit.fact.relation.phrasings))
        prompt = edit.fact.prompt(stated)
        cases.append(
            EvalCase(
                fact_id=default_fact_id(DEFAULT_NAMESPACE, prompt),
                statement=f"{prompt} {edit.target}",
                prompt=prompt,
                target=edit.target,
                generality_prompt=edit.fact.prompt(asked),
                novel_prompt=edit.fact.prompt(novel),
                locality_prompt=spared.prompt,
            )
        )
    return tuple(cases)


def dump_records(cases: tuple[EvalCase, ...]) -> list[dict[str, Any]]:
    """The edits as records of a dump of facts."""
    return [{"prompt": case.prompt, "target": case.target, "source": SOURCE} for case in cases]
