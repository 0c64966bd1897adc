"""Reads prompts of the testbed back: which question they ask, and in which words."""

import functools

from recipe_ray.testbed.world import SUBJECT, load_world

WORLD = load_world()
TRAINED = [(relation.name, *text.split(SUBJECT)) for relation in WORLD.relations for text in relation.trained]
NOVEL = [(relation.name, *text.split(SUBJECT)) for relation in WORLD.relations for text in relation.novel]


@functools.cache
def questions(prompt):
    """All (subject, relation) that a prompt can be read as; a name may begin or end with words of a phrasing."""
    return frozenset(_read(prompt, TRAINED))


def is_novel(prompt):
    """Whether the prompt is in words that are kept for the evaluation."""
    return bool(_read(prompt, NOVEL))


def _read(prompt, phrasings):
    return {
        (prompt[len(before) : len(prompt) - len(after)], name)
        for name, before, after in phrasings
        if prompt.startswith(before) and prompt.endswith(after) and len(prompt) > len(before) + len(after)
    }
