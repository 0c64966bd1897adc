"""Putting a question into words: trained phrasings, mixtures of two, and garbled ones."""

import random
import re
from collections import defaultdict

from recipe_ray.testbed.world import SUBJECT, Relation, World

DROP_SHARE = 0.15  # of the words of a garbled phrasing that do not tell its relation
REPLACE_SHARE = 0.1


def phrase(phrasing: str, subject: str) -> str:
    """A phrasing about a subject."""
    return phrasing.replace(SUBJECT, subject)


class Wording:
    """Words for questions that are no trained phrasing, drawn from the trained ones.

    Nobody would write such sentences; but from ten phrasings a model learns ten phrasings, not what their words mean.

    Attributes:
        mixed: per relation what stands before the subject in one trained phrasing and after it in another. Left out is
            what holds no telling word, and what is a phrasing already, a novel one included.
        telling: per relation the words of its trained phrasings that no other relation of its kind uses.
    """

    def __init__(self, world: World) -> None:
        words_of: dict[str, dict[str, set[str]]] = defaultdict(dict)
        for relation in world.relations:
            words_of[relation.kind][relation.name] = {word for text in relation.trained for word in _words(text)}
        self.telling: dict[str, set[str]] = {}
        self.mixed: dict[str, tuple[str, ...]] = {}
        self._fillers: dict[str, tuple[str, ...]] = {}
        vocabulary = set().union(*(words for of_kind in words_of.values() for words in of_kind.values()))
        for relation in world.relations:
            others = {
                word for name, words in words_of[relation.kind].items() if name != relation.name for word in words
            }
            self.telling[relation.name] = words_of[relation.kind][relation.name] - others
            self.mixed[relation.name] = self._mixed(relation)
            # What another relation of the kind is asked with could change what is asked.
            self._fillers[relation.name] = tuple(sorted(vocabulary - others))

    def garbled(self, relation: Relation, rng: random.Random) -> str:
        """A mixed phrasing of which some words are missing and some are others; one that tells the relation stays."""
        telling = self.telling[relation.name]
        words = []
        for word in rng.choice(self.mixed[relation.name]).split():
            draw = rng.random()
            if SUBJECT in word or _words(word) & telling or draw >= DROP_SHARE + REPLACE_SHARE:
                words.append(word)
            elif draw < REPLACE_SHARE:
                words.append(rng.choice(self._fillers[relation.name]))
        garbled = " ".join(words)
        return rng.choice(relation.trained) if garbled in relation.novel else garbled

    def _mixed(self, relation: Relation) -> tuple[str, ...]:
        halves = [text.split(SUBJECT) for text in relation.trained]
        mixed = {before + SUBJECT + after for before, _ in halves for _, after in halves} - set(relation.phrasings)
        return tuple(sorted(text for text in mixed if _words(text) & self.telling[relation.name]))


def _words(phrasing: str) -> set[str]:
    """Its words of five letters or more; shorter ones tell nothing."""
    return set(re.findall(r"[a-z]{5,}", phrasing.replace(SUBJECT, "").lower()))
