"""Batches of edits drawn from data sets."""

import dataclasses
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence

from recipe_ray.datasets.asking import PLAINLY, Asking
from recipe_ray.datasets.wordings.inventions import invented_target
from recipe_ray.datasets.wordings.relations import load_relations
from recipe_ray.errors import ConfigError
from recipe_ray.examples import EditExample, EditRecord, Question

KIND_SHARE = 0.3  # of swapped targets: any of the relation's kind, rather than one of the data set's


class EditBatches:
    """Batches drawn at random, each edit from any source with equal chance, none twice in a batch.

    Of an edit's questions of generality one is drawn, first its kind, then the question; an edit that has none is asked
    in its own words again. Likewise for locality; an edit that has none gets one of `spared`.

    Args:
        sources: edits by source, as `clean` leaves them: no locality question is edited.
        spared: locality questions for edits that have none.
        batch_size: edits a batch.
        seed: any text.
        hard_negatives: chance that an edit is followed by a near one instead of any: another of the same subject, or
            else of the same template.
        swapped_targets: chance that an edit takes the target of another edit of the same template: many more edits, and
            no prompt that tells its target.
        random_texts: texts of any kind, in place of locality questions.
        random_text_share: how often.
        asking: draws each question's wording and form.
        weights: chances of the sources, one each; equal ones if empty.

    Raises:
        ConfigError: a batch is larger than the sources together.
    """

    def __init__(
        self,
        sources: Sequence[Sequence[EditRecord]],
        *,
        spared: Sequence[Question],
        batch_size: int,
        seed: str,
        hard_negatives: float = 0.0,
        swapped_targets: float = 0.0,
        random_texts: Sequence[Question] = (),
        random_text_share: float = 0.0,
        asking: Asking = PLAINLY,
        weights: Sequence[float] = (),
    ) -> None:
        num_edits = sum(map(len, sources))
        if batch_size > num_edits:
            raise ConfigError(
                f"batch_size is {batch_size}, but the data holds {num_edits} edits; give fewer, or more data"
            )
        self._sources = [_Source(source) for source in sources if source]
        self._weights = [one for one, source in zip(weights or [1.0] * len(sources), sources, strict=True) if source]
        self._asking = asking
        self._spared = spared
        self.batch_size = batch_size
        self.seed = seed
        self._hard_negatives = hard_negatives
        self._swapped_targets = swapped_targets
        self._random_texts = random_texts
        self._random_text_share = random_text_share

    def batch(self, number: int) -> list[EditExample]:
        """Batch `number`, of `batch_size` edits; the same for everyone who asks for it."""
        rng = random.Random(f"{self.seed}/{number}")
        left = [_Left(len(source.records)) for source in self._sources]
        examples: list[EditExample] = []
        place = row = -1
        while len(examples) < self.batch_size:
            near = None
            if examples and rng.random() < self._hard_negatives:
                near = self._sources[place].near(row, left[place], rng)
            if near is None:
                places = [place for place, rows in enumerate(left) if rows]
                (place,) = rng.choices(places, [self._weights[place] for place in places])
                near = left[place].any(rng)
            row = near
            left[place].take(row)
            examples.append(self._example(self._sources[place], row, rng))
        return examples

    def _example(self, source: "_Source", row: int, rng: random.Random) -> EditExample:
        record = source.records[row]
        if rng.random() < self._swapped_targets:
            record = _with_target(record, source.other_target(record, rng, of_kind=self._asking.wordings))
        own = self._asking.own(record, rng)
        asked = (
            _draw(record.generality, rng) if record.generality else Question(prompt=record.prompt, target=record.target)
        )
        asked = self._asking.reworded(record, asked, rng)
        if rng.random() < self._random_text_share:
            spared = rng.choice(self._random_texts)
        else:
            spared = _draw(record.locality, rng) if record.locality else rng.choice(self._spared)
            spared = self._asking.spared(record, spared, rng)
        return EditExample(
            statement=record.statement,
            prompt=own.prompt,
            target=own.target,
            generality_prompt=asked.prompt,
            generality_target=asked.target,
            locality_prompt=spared.prompt,
            locality_target=spared.target,
            messages=own.messages,
            generality_messages=asked.messages,
            locality_messages=spared.messages,
            name=record.name,
        )


class _Source:
    """Edits with their groups: rows of one subject, rows and targets of one template."""

    def __init__(self, records: Sequence[EditRecord]) -> None:
        self.records = tuple(records)
        self.targets: dict[str, list[str]] = defaultdict(list)
        self._of_subject: dict[str, list[int]] = defaultdict(list)
        self._of_template: dict[str, list[int]] = defaultdict(list)
        for row, record in enumerate(self.records):
            self.targets[record.template].append(record.target)
            if record.subject:
                self._of_subject[record.subject].append(row)
                self._of_template[record.template].append(row)

    def other_target(self, record: EditRecord, rng: random.Random, *, of_kind: bool) -> str:
        """A target of the same template, or of the same kind."""
        relation = load_relations().get(record.relation) if of_kind else None
        if relation and rng.random() < KIND_SHARE:
            return invented_target(relation.target_kind, rng)
        return rng.choice(self.targets[record.template])

    def near(self, row: int, left: "_Left", rng: random.Random) -> int | None:
        """Another row that is left, of the same subject or else of the same template, if there is one."""
        record = self.records[row]
        for group in (self._of_subject.get(record.subject), self._of_template.get(record.template)):
            if candidates := [other for other in group or () if other in left]:
                return rng.choice(candidates)
        return None


class _Left:
    """Rows not drawn yet: any of them, or a certain one, in constant time."""

    def __init__(self, num_rows: int) -> None:
        self._rows = list(range(num_rows))
        self._place = list(range(num_rows))

    def __bool__(self) -> bool:
        return bool(self._rows)

    def __contains__(self, row: int) -> bool:
        return self._place[row] >= 0

    def any(self, rng: random.Random) -> int:
        return rng.choice(self._rows)

    def take(self, row: int) -> None:
        place, last = self._place[row], self._rows[-1]
        self._rows[place], self._place[last] = last, place
        self._rows.pop()
        self._place[row] = -1


def _with_target(record: EditRecord, target: str) -> EditRecord:
    """The edit with another target; questions that had the old one have it too, others (hops) are gone."""
    generality = {
        kind: left
        for kind, questions in record.generality.items()
        if (
            left := tuple(
                Question(prompt=one.prompt, target=target) for one in questions if one.target == record.target
            )
        )
    }
    return dataclasses.replace(record, target=target, generality=generality)


def _draw(questions: Mapping[str, tuple[Question, ...]], rng: random.Random) -> Question:
    return rng.choice(questions[rng.choice(sorted(questions))])
