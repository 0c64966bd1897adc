"""Reads prompts of the testbed back: which question they ask, and in which words."""

import functools
from collections import defaultdict

from recipe_ray.testbed.wording import Wording
from recipe_ray.testbed.world import SUBJECT, load_world

WORLD = load_world()


def _by_beginning(phrasings_of):
    """What stands before the subject, to what stands after it and the relation."""
    by_beginning = defaultdict(list)
    for name, phrasings in phrasings_of.items():
        for text in phrasings:
            before, after = text.split(SUBJECT)
            by_beginning[before].append((after, name))
    return by_beginning


TRAINED = _by_beginning({relation.name: relation.trained for relation in WORLD.relations})
NOVEL = _by_beginning({relation.name: relation.novel for relation in WORLD.relations})
ANY = _by_beginning(
    {relation.name: (*relation.trained, *Wording(WORLD).mixed[relation.name]) for relation in WORLD.relations}
)


@functools.cache
def questions(prompt):
    """All (subject, relation) that a prompt can be read as; a name may begin or end with words of a phrasing."""
    return frozenset(read_in(prompt, ANY))


def is_novel(prompt):
    """Whether the prompt is in words that are kept for the evaluation."""
    return bool(read_in(prompt, NOVEL))


def read_in(prompt, phrasings):
    """All (subject, relation) that a prompt can be in these phrasings."""
    return {
        (prompt[len(before) : len(prompt) - len(after)], name)
        for before, afters in phrasings.items()
        if prompt.startswith(before)
        for after, name in afters
        if prompt.endswith(after) and len(prompt) > len(before) + len(after)
    }
