"""Reads prompts of the testbed back: which question they ask, and in which words."""

import functools

from recipe_ray.testbed.edits import mixed_phrasings
from recipe_ray.testbed.world import SUBJECT, load_world

WORLD = load_world()
TRAINED = [(relation.name, *text.split(SUBJECT)) for relation in WORLD.relations for text in relation.trained]
MIXED = [
    (relation.name, *text.split(SUBJECT))
    for relation in WORLD.relations
    for text in mixed_phrasings(relation, [other for other in WORLD.relations if other.kind == relation.kind])
]
NOVEL = [(relation.name, *text.split(SUBJECT)) for relation in WORLD.relations for text in relation.novel]


@functools.cache
def questions(prompt):
    """All (subject, relation) that a prompt can be read as; a name may begin or end with words of a phrasing."""
    return frozenset(read_in(prompt, TRAINED + MIXED))


def is_novel(prompt):
    """Whether the prompt is in words that are kept for the evaluation."""
    return bool(read_in(prompt, NOVEL))


def read_in(prompt, phrasings):
    """All (subject, relation) that a prompt can be in these phrasings."""
    return {
        (prompt[len(before) : len(prompt) - len(after)], name)
        for name, before, after in phrasings
        if prompt.startswith(before) and prompt.endswith(after) and len(prompt) > len(before) + len(after)
    }
