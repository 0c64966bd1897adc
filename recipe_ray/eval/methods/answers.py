"""Targets as tokens that an edit is learnt with."""

from recipe_ray.eval.protocol import STOP
from recipe_ray.model.llm import FrozenLLM


def answer_ids(llm: FrozenLLM, target: str, end: str = STOP) -> list[int]:
    """Tokens of a target as it continues its prompt, and of the text that ends it.

    The papers learn the target alone; whether the edited LLM then stops is chance, and free generation counts it.
    """
    ids = llm.tokenize_answer(f" {target}")
    ended = llm.tokenize_answer(f" {target}{end}")
    # Where the end merges with the target's last letters, the target's own tokens go before: they are what is scored.
    return ended if ended[: len(ids)] == ids else ids + llm.tokenize_answer(end)
