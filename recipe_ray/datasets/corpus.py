"""What an LM reads to know a data set's true facts: plain statements, and documents that state something and use it."""

import bisect
import itertools
import math
import random
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from recipe_ray.examples import EditRecord, Question
from recipe_ray.pretraining.lm import Sentence

MAX_STATEMENTS = 3
NUM_CLAIMS = (1, 1, 1, 2, 2, 3)  # of a context document; most state one thing, the easiest to follow
SKEWED_SHARE = 0.3  # of the statements: a few facts, often, as in real text; they are how recall begins
RENAMED_SHARE = 0.3  # of the claims: about a subject that nothing else is known of
TRUE_SHARE = 0.1  # of the claims


class RecordCorpus:
    """Endless streams of documents about the edits of data sets, none of which states an edit.

    Args:
        training: by source, edits whose prompts and questions of generality are stated with their true answers, and
            which context documents are about, with answers that other edits of the same wording have, or else of the
            same source.
        known: edits of which the prompt alone is stated, with its true answer.
    """

    def __init__(self, training: Sequence[Sequence[EditRecord]], known: Sequence[EditRecord]) -> None:
        sources = [[record for record in source if record.true_target] for source in training]
        self.training = [record for source in sources for record in source]
        self.known = [record for record in known if record.true_target]
        self.facts = [(wording, record.true_target) for record in self.training for wording in wordings(record)]
        self.facts += [(record.prompt, record.true_target) for record in self.known]
        self.skewed = list(self.facts)
        random.Random(0).shuffle(self.skewed)
        self.cumulative = list(itertools.accumulate(1 / (rank + 10) for rank in range(len(self.skewed))))
        self.subjects = [record.subject.split() for record in self.training if record.subject]
        self.real_subjects = {record.subject for record in [*self.training, *self.known]}
        self.claimable = [[record for record in source if len(wordings(record)) > 1] for source in sources]
        # A small source is read about more often than its size says, a large one less.
        self.source_weights = [math.sqrt(len(source)) for source in self.claimable]
        self.pools = [_pools(source) for source in sources]

    def documents(self, seed: str, *, context_share: float) -> Iterator[list[Sentence]]:
        """Documents of a seed, a share of which state something and use it."""
        rng = random.Random(seed)
        while True:
            if rng.random() < context_share:
                yield self.context_document(rng)
            else:
                yield [self.plain_statement(rng) for _ in range(rng.randint(1, MAX_STATEMENTS))]

    def plain_statement(self, rng: random.Random) -> Sentence:
        """A true fact."""
        if rng.random() < SKEWED_SHARE:
            place = bisect.bisect(self.cumulative, rng.random() * self.cumulative[-1])
            prompt, answer = self.skewed[min(place, len(self.skewed) - 1)]
        else:
            prompt, answer = rng.choice(self.facts)
        return Sentence(prompt, answer, foreseeable=True)

    def context_document(self, rng: random.Random) -> list[Sentence]:
        """Up to three claims, then each again in other words; now and then a true fact in between."""
        document, uses = [], []
        for _ in range(rng.choice(NUM_CLAIMS)):
            (source,) = rng.choices(range(len(self.claimable)), self.source_weights)
            record = rng.choice(self.claimable[source])
            stated, used = rng.sample(wordings(record), 2)
            draw = rng.random()
            if draw < TRUE_SHARE:
                answer, known = record.true_target, True
            else:
                answer, known = self._other_answer(record, self.pools[source], rng), False
                name = self._invented_name(rng)
                if draw < TRUE_SHARE + RENAMED_SHARE and record.subject and name not in self.real_subjects:
                    stated, used = (text.replace(record.subject, name) for text in (stated, used))
            document.append(Sentence(stated, answer, foreseeable=known))
            uses.append(Sentence(used, answer, foreseeable=True))
        if rng.random() < 0.3:
            uses.append(self.plain_statement(rng))
        rng.shuffle(uses)
        return document + uses

    def _other_answer(self, record: EditRecord, pools: Mapping[str, list[str]], rng: random.Random) -> str:
        """Neither the true one nor the edit's."""
        pool = pools[record.template]
        while (answer := rng.choice(pool)) in (record.true_target, record.target):
            continue
        return answer

    def _invented_name(self, rng: random.Random) -> str:
        """The beginning of one subject and the end of another."""
        first, second = rng.choice(self.subjects), rng.choice(self.subjects)
        return " ".join([*first[: max(1, len(first) // 2)], *second[len(second) // 2 :]])


def wordings(record: EditRecord) -> list[str]:
    """The ways to ask for the edit's answer."""
    return list(dict.fromkeys([record.prompt, *(question.prompt for question in _rephrasings(record))]))


def _rephrasings(record: EditRecord) -> list[Question]:
    return [one for kind in record.generality.values() for one in kind if one.target == record.target]


def _pools(records: Sequence[EditRecord]) -> dict[str, list[str]]:
    """For each template of prompts the answers that may stand behind it: more than one record can rule out."""
    by_template: dict[str, list[str]] = defaultdict(list)
    for record in records:
        by_template[record.template].append(record.true_target)
    everything = [record.true_target for record in records]
    return {name: pool if len(set(pool)) > 2 else everything for name, pool in by_template.items()}
