"""Batches of edits drawn from data sets."""

import random
from collections.abc import Mapping, Sequence

from recipe_ray.errors import ConfigError
from recipe_ray.examples import EditExample, EditRecord, Question


class EditBatches:
    """Batches drawn at random, each edit from any source with equal chance, none twice in a batch.

    Of an edit's questions of generality one is drawn, first its kind, then the question; an edit that has none is asked
    in its own words again. Likewise for locality; an edit that has none gets one of `spared`.

    Args:
        sources: edits by source, as `clean` leaves them: no locality question is edited.
        spared: locality questions for edits that have none.
        batch_size: edits a batch.
        seed: any text.

    Raises:
        ConfigError: a batch is larger than the sources together.
    """

    def __init__(
        self, sources: Sequence[Sequence[EditRecord]], *, spared: Sequence[Question], batch_size: int, seed: str
    ) -> None:
        num_edits = sum(map(len, sources))
        if batch_size > num_edits:
            raise ConfigError(
                f"batch_size is {batch_size}, but the data holds {num_edits} edits; give fewer, or more data"
            )
        self._sources = [tuple(source) for source in sources if source]
        self._spared = spared
        self.batch_size = batch_size
        self.seed = seed

    def batch(self, number: int) -> list[EditExample]:
        """Batch `number`, of `batch_size` edits; the same for everyone who asks for it."""
        rng = random.Random(f"{self.seed}/{number}")
        left = [list(range(len(source))) for source in self._sources]
        examples = []
        for _ in range(self.batch_size):
            source = rng.choice([place for place, rows in enumerate(left) if rows])
            rows = left[source]
            place = rng.randrange(len(rows))
            rows[place], rows[-1] = rows[-1], rows[place]
            examples.append(self._example(self._sources[source][rows.pop()], rng))
        return examples

    def _example(self, record: EditRecord, rng: random.Random) -> EditExample:
        asked = (
            _draw(record.generality, rng) if record.generality else Question(prompt=record.prompt, target=record.target)
        )
        spared = _draw(record.locality, rng) if record.locality else rng.choice(self._spared)
        return EditExample(
            statement=record.statement,
            prompt=record.prompt,
            target=record.target,
            generality_prompt=asked.prompt,
            generality_target=asked.target,
            locality_prompt=spared.prompt,
            locality_target=spared.target,
        )


def _draw(questions: Mapping[str, tuple[Question, ...]], rng: random.Random) -> Question:
    return rng.choice(questions[rng.choice(sorted(questions))])
