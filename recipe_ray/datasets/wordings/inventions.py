"""Subjects that do not exist, and targets of the kind that a relation asks for.

Both come from a grammar: a kind is a list of patterns, in which `{name}` stands for one of another list.
"""

import functools
import random
import re
from collections.abc import Mapping, Sequence

from recipe_ray.datasets.wordings.relations import Relation, read_data, wider_kinds

HOLE = re.compile(r"\{(\w+)\}")


def invented(relation: Relation, rng: random.Random) -> tuple[str, str]:
    """A subject and a target for a relation; the stream of `rng` decides both."""
    return invented_subject(relation.subject_kind, rng), invented_target(relation.target_kind, rng)


def invented_subject(kind: str, rng: random.Random) -> str:
    """The name of a subject of a kind, one of more than a hundred thousand."""
    while narrower := wider_kinds().get(kind):
        kind = rng.choice(narrower)
    return _expanded(f"{{{kind}}}", _grammar("subjects.json"), rng)


def invented_target(kind: str, rng: random.Random) -> str:
    """A target of a kind: a real one where they can be listed (languages), else a made-up one (persons, prices)."""
    return _expanded(f"{{{kind}}}", _grammar("targets.json"), rng)


def fixed_targets(kind: str) -> tuple[str, ...]:
    """The targets of a kind that are listed as they are."""
    return tuple(pattern for pattern in _grammar("targets.json")[kind] if not HOLE.search(pattern))


def _expanded(pattern: str, grammar: Mapping[str, Sequence[str]], rng: random.Random) -> str:
    return HOLE.sub(lambda hole: _expanded(rng.choice(grammar[hole[1]]), grammar, rng), pattern)


@functools.cache
def _grammar(file: str) -> Mapping[str, Sequence[str]]:
    return read_data("parts.json") | read_data(file)
