"""Training data by name: the testbed's invented edits, or data sets, cleaned and split into training and tuning."""

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from recipe_ray.config import INVENTED, TESTBED, DataConfig
from recipe_ray.datasets.asking import Asking, invented_records, is_held_out, with_relation, without_held_out
from recipe_ray.datasets.batches import EditBatches
from recipe_ray.datasets.cleaning import Cleaned, clean
from recipe_ray.datasets.forms import FORMS, EmptyTextError, Fields
from recipe_ray.datasets.reading import read_records
from recipe_ray.datasets.wordings.relations import HELD_OUT, KIN_OF_HELD_OUT
from recipe_ray.errors import ConfigError, FactError
from recipe_ray.examples import Batches, EditExample, EditRecord, Question
from recipe_ray.store.dumps.streams import TooLong, read_lines
from recipe_ray.store.dumps.values import MAX_ROW_BYTES, not_utf8
from recipe_ray.store.files import absolute
from recipe_ray.testbed.edits import EditStream
from recipe_ray.testbed.world import load_world
from recipe_ray.text import canonical

TUNING_SHARE = 0.05
TEXT_ANSWER_WORDS = 4
NUM_INVENTED = 20_000
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

    def manifest(self) -> dict[str, Any]:
        """What was read, for a checkpoint to say: plain values for JSON."""
        ...


def absolute_sources(config: DataConfig) -> DataConfig:
    """The same data as every process may be told of it, wherever it runs.

    Raises:
        ConfigError: as `open_training_data`.
    """
    if config.sources == (TESTBED,):
        return config

    def at(sources: Sequence[str]) -> tuple[str, ...]:
        return tuple(source if source == INVENTED else _absolute(source) for source in sources)

    return dataclasses.replace(
        config,
        sources=at(config.sources),
        tuning_sources=at(config.tuning_sources),
        random_text=config.random_text and absolute(config.random_text),
    )


def open_training_data(config: DataConfig) -> TrainingData:
    """The testbed's edits, or those of data sets.

    Raises:
        ConfigError: a source of another shape, or an unknown form.
        FactError: a file that cannot be read, a record that is not of its form, or too few edits left.
    """
    config.check_given()
    return InventedData() if config.sources == (TESTBED,) else read_edit_data(config)


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

    def manifest(self) -> dict[str, Any]:
        """As in `TrainingData`."""
        return {"sources": [TESTBED]}


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """The records of one data set.

    Attributes:
        name: `FORM:PATH`.
        records: in their order.
        num_empty: records left out because a text is empty.
        sha256: over the records as they were read, so that it is the same however the file is compressed.
    """

    name: str
    records: tuple[EditRecord, ...]
    num_empty: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EditData:
    """Edits of data sets, by source.

    Attributes:
        config: what was asked for.
        sources: as read, those to tune on behind those to train on.
        training_edits, tuning_edits: of other subjects each.
        spared: locality questions for edits that have none of their own: those of all others.
        random_texts: to ask in place of locality questions.
        cleaned: what the sources held, and what was dropped.
        num_shared: edits to tune on that were dropped because their subjects are trained on.
    """

    config: DataConfig
    sources: tuple[Source, ...]
    training_edits: tuple[tuple[EditRecord, ...], ...]
    tuning_edits: tuple[tuple[EditRecord, ...], ...]
    spared: tuple[Question, ...]
    random_texts: tuple[Question, ...]
    cleaned: Cleaned
    num_shared: int

    @property
    def _asking(self) -> Asking:
        return Asking(chat_share=self.config.chat_share, wordings=self.config.wordings, without=_without(self.config))

    def training(self, batch_size: int, seed: str) -> Batches:
        """As in `TrainingData`."""
        return EditBatches(
            self.training_edits,
            spared=self.spared,
            batch_size=batch_size,
            seed=seed,
            hard_negatives=self.config.hard_negatives,
            swapped_targets=self.config.swapped_targets,
            random_texts=self.random_texts,
            random_text_share=self.config.random_text_share,
            asking=self._asking,
            weights=self.config.source_weights,
        )

    def tuning(self, batch_size: int, seed: str) -> Batches:
        """As in `TrainingData`."""
        batch_size = min(batch_size, sum(map(len, self.tuning_edits)))
        return EditBatches(
            self.tuning_edits,
            spared=self.spared,
            batch_size=batch_size,
            seed=seed,
            asking=self._asking,
        )

    @property
    def asks_in_chats(self) -> bool:
        """Whether any question may be one that the LLM reads through its chat template."""
        records = itertools.chain(*self.training_edits, *self.tuning_edits)
        reworded = (one for record in records for sort in record.generality.values() for one in sort)
        return self.config.chat_share > 0 or any(one.messages for one in (*self.spared, *reworded))

    def sample(self, num_edits: int, seed: str) -> list[EditExample]:
        """As in `TrainingData`."""
        return self.training(min(num_edits, sum(map(len, self.training_edits))), seed).batch(0)

    def manifest(self) -> dict[str, Any]:
        """As in `TrainingData`."""
        sources = [
            {"name": one.name, "records": len(one.records), "empty": one.num_empty, "sha256": one.sha256}
            for one in self.sources
        ]
        return {"sources": sources, "summary": str(self)}

    def __str__(self) -> str:
        num_training, num_tuning = (sum(map(len, part)) for part in (self.training_edits, self.tuning_edits))
        shared = f" (less {self.num_shared} whose subject is trained on)" if self.num_shared else ""
        return f"{self.cleaned}; {num_training} to train on, {num_tuning} to tune on{shared}"


def read_edit_data(config: DataConfig) -> EditData:
    """Read data sets; where none are named to tune on, set aside the edits of a twentieth of the subjects.

    A subject is trained or tuned on by its hash, so another run or another worker splits alike, whatever else is read.

    Raises:
        ConfigError, FactError: as `open_training_data`.
    """
    sources = tuple(_opened(name, config) for name in (*config.sources, *config.tuning_sources))
    cleaned = clean([source.records for source in sources], num_empty=sum(source.num_empty for source in sources))
    num_shared = 0
    if config.tuning_sources:
        training = cleaned.records[: len(config.sources)]
        trained = {canonical(record.subject) for part in training for record in part if record.subject}
        held = cleaned.records[len(config.sources) :]
        tuning = tuple(tuple(record for record in part if canonical(record.subject) not in trained) for part in held)
        num_shared = sum(map(len, held)) - sum(map(len, tuning))
    else:
        training = tuple(tuple(record for record in part if not _is_tuning(record)) for part in cleaned.records)
        tuning = tuple(tuple(record for record in part if _is_tuning(record)) for part in cleaned.records)
    names = (config.sources, config.tuning_sources or config.sources)
    for names_of_part, parts, purpose in zip(names, (training, tuning), ("train", "tune"), strict=True):
        for name, part in zip(names_of_part, parts, strict=True):
            if len(part) < 2:
                raise FactError(f"{name}: {len(part)} edits left to {purpose} on ({cleaned}); give more of them")
    spared = tuple(
        question
        for part in cleaned.records
        for record in part
        for questions in record.locality.values()
        for question in questions
    )
    if not spared:
        raise FactError(
            f"{', '.join(config.sources)}: no locality question ({cleaned}); "
            "give at least one edit one that it leaves alone"
        )
    return EditData(
        config=config,
        sources=sources,
        training_edits=training,
        tuning_edits=tuning,
        spared=spared,
        random_texts=_read_texts(config.random_text) if config.random_text else (),
        cleaned=cleaned,
        num_shared=num_shared,
    )


def _without(config: DataConfig) -> tuple[str, ...]:
    return HELD_OUT + KIN_OF_HELD_OUT if config.held_out else ()


def _opened(name: str, config: DataConfig) -> Source:
    """A source with its relations known, and without those held out."""
    if name == INVENTED:
        records = invented_records(NUM_INVENTED, INVENTED, without=_without(config))
        digest = hashlib.sha256(repr(records).encode()).hexdigest()
        return Source(name=name, records=records, num_empty=0, sha256=digest)
    source = read_source(name)
    records = tuple(map(with_relation, source.records))
    if config.held_out:
        records = tuple(without_held_out(record) for record in records if not is_held_out(record))
    return dataclasses.replace(source, records=records)


def read_source(name: str) -> Source:
    """The records of one data set, `FORM:PATH`.

    Raises:
        ConfigError, FactError: as `open_training_data`.
    """
    form, path = _parse(name)
    records = []
    num_empty = 0
    digest = hashlib.sha256()
    for place, values in read_records(path):
        digest.update(json.dumps(values, sort_keys=True, default=str).encode())
        try:
            records.append(dataclasses.replace(FORMS[form](Fields(place, values)), name=place))
        except EmptyTextError:
            num_empty += 1
    return Source(name=name, records=tuple(records), num_empty=num_empty, sha256=digest.hexdigest())


def _read_texts(path: str) -> tuple[Question, ...]:
    """Texts of a file as questions: the last words of a line are what is kept of the LLM."""
    lines = []
    for number, line in enumerate(read_lines(path), 1):
        if isinstance(line, TooLong):
            raise FactError(f"{path}:{number}: the line has over {MAX_ROW_BYTES} bytes; give texts, one a line")
        try:
            lines.append(line.decode())
        except UnicodeDecodeError as error:
            raise FactError(f"{path}:{number}: {not_utf8(error)}") from error
    texts = [words for line in lines if len(words := line.split()) > TEXT_ANSWER_WORDS]
    if not texts:
        raise FactError(f"{path}: holds no line of more than {TEXT_ANSWER_WORDS} words; give texts, one a line")
    return tuple(
        Question(prompt=" ".join(words[:-TEXT_ANSWER_WORDS]), target=" ".join(words[-TEXT_ANSWER_WORDS:]))
        for words in texts
    )


def _parse(source: str) -> tuple[str, str]:
    form, colon, path = source.partition(":")
    if not colon or not path or form not in FORMS:
        raise ConfigError(
            f"data is {source!r}; give 'testbed', 'invented', or FORM:PATH with one of the forms {', '.join(FORMS)}"
        )
    return form, path


def _absolute(source: str) -> str:
    form, path = _parse(source)
    return f"{form}:{absolute(path)}"


def _is_tuning(record: EditRecord) -> bool:
    return place_of_subject(record) < TUNING_SHARE


def place_of_subject(record: EditRecord) -> float:
    """Where a hash puts the record's subject, or else its prompt, on [0, 1): alike in every run and process."""
    digest = hashlib.blake2b(canonical(record.subject or record.prompt).encode(), digest_size=8).digest()
    return int.from_bytes(digest) % _BUCKETS / _BUCKETS
