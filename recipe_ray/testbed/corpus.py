"""What the testbed's LM reads: plain statements of the world's facts, and documents that state a fact and then use it.

The second kind, mostly counterfactual, makes the LM follow its context as a real LLM does. None of it uses a novel
phrasing, and no document states an edit of the evaluation.
"""

import bisect
import itertools
import random
from collections.abc import Iterator

from recipe_ray.pretraining.lm import Sentence
from recipe_ray.testbed.inventions import Inventor
from recipe_ray.testbed.wording import Wording, phrase
from recipe_ray.testbed.world import Relation, World, WorldEdit

MAX_STATEMENTS = 3
NUM_CLAIMS = (1, 1, 1, 2, 2, 3)  # of a context document; most state one thing, the easiest to follow
MAX_USES = 2
MIXED_SHARE = 0.3  # of the uses: half in one phrasing and half in another, see Wording


class Corpus:
    """Endless streams of documents.

    Args:
        world: the facts to learn.
        edits: the evaluation's counterfactual edits, which no document may state.
    """

    def __init__(self, world: World, edits: tuple[WorldEdit, ...]) -> None:
        self.world = world
        self.inventor = Inventor(world)
        self.mixed = Wording(world).mixed
        self.edited = {(edit.fact.subject, edit.fact.relation.name, edit.target) for edit in edits}
        # Half of the plain statements are drawn with a skewed frequency, as facts are met in real text: a few are
        # learned early, and with them how recall works at all.
        self.skewed = list(world.facts)
        random.Random(0).shuffle(self.skewed)
        self.cumulative = list(itertools.accumulate(1 / (rank + 10) for rank in range(len(self.skewed))))

    def documents(self, seed: str, *, context_share: float) -> Iterator[list[Sentence]]:
        """Documents of a seed, a share of which state a fact and use it."""
        rng = random.Random(seed)
        while True:
            if rng.random() < context_share:
                yield self.context_document(rng)
            else:
                yield [self.plain_statement(rng) for _ in range(rng.randint(1, MAX_STATEMENTS))]

    def plain_statement(self, rng: random.Random) -> Sentence:
        """A true fact of the world in a trained phrasing."""
        if rng.random() < 0.5:
            fact = rng.choice(self.world.facts)
        else:
            fact = self.skewed[bisect.bisect(self.cumulative, rng.random() * self.cumulative[-1])]
        return Sentence(phrase(rng.choice(fact.relation.trained), fact.subject), fact.answer, foreseeable=True)

    def context_document(self, rng: random.Random) -> list[Sentence]:
        """Up to three claims, then each again in other words, once or twice; now and then a true fact in between."""
        document, uses = [], []
        for _ in range(rng.choice(NUM_CLAIMS)):
            subject, relation, answer, known = self._claim(rng)
            stated, *used = rng.sample(relation.trained, 1 + rng.randint(1, MAX_USES))
            document.append(Sentence(phrase(stated, subject), answer, foreseeable=known))
            for use in used:
                words = rng.choice(self.mixed[relation.name]) if rng.random() < MIXED_SHARE else use
                uses.append(Sentence(phrase(words, subject), answer, foreseeable=True))
        if rng.random() < 0.3:
            uses.append(self.plain_statement(rng))
        rng.shuffle(uses)
        return document + uses

    def _claim(self, rng: random.Random) -> tuple[str, Relation, str, bool]:
        draw = rng.random()
        if draw < 0.3:
            invented = self.inventor.subject(rng)
            relation = rng.choice(invented.relations)
            return invented.name, relation, self.inventor.answer(relation, rng), False
        fact = rng.choice(self.world.facts)
        if draw < 0.4:
            return fact.subject, fact.relation, fact.answer, True
        while True:
            answer = self.inventor.answer(fact.relation, rng)
            if (fact.subject, fact.relation.name, answer) not in self.edited:
                return fact.subject, fact.relation, answer, False
