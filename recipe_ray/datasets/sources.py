"""Training data by name: the testbed's invented edits, or data sets, cleaned and split into training and tuning."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from recipe_ray.config import TESTBED
from recipe_ray.datasets.batches import EditBatches
from recipe_ray.datasets.cleaning import Cleaned, clean
from recipe_ray.datasets.forms import FORMS, EmptyTextError, Fields
from recipe_ray.datasets.reading import read_records
from recipe_ray.errors import ConfigError, FactError
from recipe_ray.examples import Batches, EditExample, EditRecord, Question
from recipe_ray.store.files import absolute
from recipe_ray.testbed.edits import EditStream
from recipe_ray.testbed.world import load_world

TUNING_SHARE = 0.05
_BUCKETS = 10_000


class TrainingData(Protocol):
    """Edits to train on, and others to tune on; any text is a seed."""

    def training(self, batch_size: int, seed: str) -> Batches:
        """Batches to train on."""
        ...

    def tuning(self, batch_size: int, seed: str) -> Batches:
        """Batches of edits that no training batch holds; smaller ones where there are too few."""
        ...

    def sample(self, num_edits: int, seed: str) -> list[EditExample]:
        """Training edits, so many or all there are."""
        ...


def absolute_sources(sources: Sequence[str]) -> tuple[str, ...]:
    """The same sources as every process may be given them, wherever it runs.

    Raises:
        ConfigError: as `open_training_data`.
    """
    if tuple(sources) == (TESTBED,):
        return tuple(sources)
    return tuple(f"{form}:{absolute(path)}" for form, path in map(_parse, sources))


def open_training_data(sources: Sequence[str]) -> TrainingData:
    """The testbed's edits, or those of data sets, each `FORM:PATH`.

    Raises:
        ConfigError: a source of another shape, or an unknown form.
        FactError: a file that cannot be read, a record that is not of its form, or too few edits left.
    """
    return InventedData() if tuple(sources) == (TESTBED,) else read_edit_data(sources)


class InventedData:
    """Invented subjects without end; the world's own are for evaluation."""

    def __init__(self) -> None:
        self._world = load_world()

    def training(self, batch_size: int, seed: str) -> Batches:
        """As in `TrainingData`."""
        return EditStream(self._world, batch_size=batch_size, seed=seed)

    def tuning(self, batch_size: int, seed: str) -> Batches:
        """As in `TrainingData`: names are drawn anew, so no seed repeats the edits of another."""
        return EditStream(self._world, batch_size=batch_size, seed=seed)

    def sample(self, num_edits: int, seed: str) -> list[EditExample]:
        """As in `TrainingData`."""
        return self.training(num_edits, seed).batch(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class EditData:
    """Edits of data sets, by source.

    Attributes:
        training_edits, tuning_edits: of other subjects each.
        spared: locality questions for edits that have none of their own: those of all others.
        cleaned: what the sources held, and what was dropped.
    """

    training_edits: tuple[tuple[EditRecord, ...], ...]
    tuning_edits: tuple[tuple[EditRecord, ...], ...]
    spared: tuple[Question, ...]
    cleaned: Cleaned

    def training(self, batch_size: int, seed: str) -> Batches:
        """As in `TrainingData`."""
        return EditBatches(self.training_edits, spared=self.spared, batch_size=batch_size, seed=seed)

    def tuning(self, batch_size: int, seed: str) -> Batches:
        """As in `TrainingData`."""
        batch_size = min(batch_size, sum(map(len, self.tuning_edits)))
        return EditBatches(self.tuning_edits, spared=self.spared, batch_size=batch_size, seed=seed)

    def sample(self, num_edits: int, seed: str) -> list[EditExample]:
        """As in `TrainingData`."""
        return self.training(min(num_edits, sum(map(len, self.training_edits))), seed).batch(0)

    def __str__(self) -> str:
        num_training, num_tuning = (sum(map(len, part)) for part in (self.training_edits, self.tuning_edits))
        return f"{self.cleaned}; {num_training} to train on, {num_tuning} to tune on"


def read_edit_data(sources: Sequence[str]) -> EditData:
    """Read sources, each `FORM:PATH`, and set aside the edits of a twentieth of the subjects for tuning.

    A subject is trained or tuned on by its hash, so another run or another worker splits alike, whatever else is read.

    Raises:
        ConfigError, FactError: as `open_training_data`.
    """
    read = [read_source(source) for source in sources]
    cleaned = clean([records for records, _ in read], num_empty=sum(num_empty for _, num_empty in read))
    training = tuple(tuple(record for record in part if not _is_tuning(record)) for part in cleaned.records)
    tuning = tuple(tuple(record for record in part if _is_tuning(record)) for part in cleaned.records)
    for source, *parts in zip(sources, training, tuning, strict=True):
        for part, purpose in zip(parts, ("train", "tune"), strict=True):
            if len(part) < 2:
                raise FactError(f"{source}: {len(part)} edits left to {purpose} on ({cleaned}); give more of them")
    spared = tuple(
        question
        for part in cleaned.records
        for record in part
        for questions in record.locality.values()
        for question in questions
    )
    if not spared:
        raise FactError(
            f"{', '.join(sources)}: no locality question ({cleaned}); give at least one edit one that it leaves alone"
        )
    return EditData(training_edits=training, tuning_edits=tuning, spared=spared, cleaned=cleaned)


def read_source(source: str) -> tuple[list[EditRecord], int]:
    """The records of one source, and how many were left out because a text is empty."""
    form, path = _parse(source)
    records = []
    num_empty = 0
    for place, values in read_records(path):
        try:
            records.append(FORMS[form](Fields(place, values)))
        except EmptyTextError:
            num_empty += 1
    return records, num_empty


def _parse(source: str) -> tuple[str, str]:
    form, colon, path = source.partition(":")
    if not colon or not path or form not in FORMS:
        raise ConfigError(f"data is {source!r}; give 'testbed', or FORM:PATH with one of the forms {', '.join(FORMS)}")
    return form, path


def _is_tuning(record: EditRecord) -> bool:
    return place_of_subject(record) < TUNING_SHARE


def place_of_subject(record: EditRecord) -> float:
    """Where a hash puts the record's subject, or else its prompt, on [0, 1): alike in every run and process."""
    digest = hashlib.blake2b((record.subject or record.prompt).encode(), digest_size=8).digest()
    return int.from_bytes(digest) % _BUCKETS / _BUCKETS
