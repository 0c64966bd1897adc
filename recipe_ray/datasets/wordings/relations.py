"""The relations that training and reporting ask about, each in many wordings."""

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from types import MappingProxyType
from typing import Any

SUBJECT = "[X]"
PARTS = ("training", "reporting")

# Held out of every source of the editor that alone gives the held-out figures. Chosen because no other relation here
# says the same: another twin city, instrument, religion, capital, namesake, broadcaster or place of death follows from
# nothing else that is asked. (P740, founded in, would lie beside P495; P178, developer, beside P176.)
HELD_OUT = ("P190", "P1303", "P140", "P36", "P138", "P449", "P20")

# Asked in much the same words as a relation held out: left out with them, reported with none.
KIN_OF_HELD_OUT = ("P870", "P119", "P1376")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wordings:
    """Ways to ask for one relation of a subject, which stands where `[X]` does.

    Attributes:
        cloze: beginnings that a space and the target complete.
        questions: whole questions, each with its question mark.
        requests: what else a person types to get the answer.
    """

    cloze: tuple[str, ...]
    questions: tuple[str, ...]
    requests: tuple[str, ...]

    @property
    def all(self) -> tuple[str, ...]:
        """Every wording, cloze first."""
        return self.cloze + self.questions + self.requests


@dataclass(frozen=True, slots=True, kw_only=True)
class Relation:
    """What can be asked of one kind of subjects.

    Attributes:
        id: Wikidata's, such as `P103`; `own:...` where Wikidata has none.
        name: in a few words.
        subject_kind: what its subjects are, such as `person`; see `inventions`.
        target_kind: what its targets are, such as `language`; see `inventions`.
        training: wordings that training may use.
        reporting: wordings for figures that are reported; none of them is a training wording.
    """

    id: str
    name: str
    subject_kind: str
    target_kind: str
    training: Wordings
    reporting: Wordings


@functools.cache
def load_relations() -> Mapping[str, Relation]:
    """Every relation by its id, in the order of the files."""
    folder = resources.files(__package__) / "data" / "relations"
    files = sorted((file for file in folder.iterdir() if file.name.endswith(".json")), key=lambda file: file.name)
    entries = [entry for file in files for entry in json.loads(file.read_text(encoding="utf-8")).items()]
    relations = {relation_id: _relation(relation_id, entry) for relation_id, entry in entries}
    assert len(relations) == len(entries), "a relation stands in two files"
    return MappingProxyType(relations)


def relations_of(subject_kind: str) -> tuple[Relation, ...]:
    """The relations that every subject of a kind has: those of the kind itself and of what it is a sort of.

    With `inventions` this gives what an edit must not touch: another subject of its relation, or another relation of
    its subject.
    """
    return tuple(relation for relation in load_relations().values() if subject_kind in kinds_in(relation.subject_kind))


def kinds_in(kind: str) -> frozenset[str]:
    """A kind with all that are sorts of it."""
    return frozenset({kind}).union(*(kinds_in(narrower) for narrower in wider_kinds().get(kind, ())))


@functools.cache
def wider_kinds() -> Mapping[str, Sequence[str]]:
    """Kinds that are made of others: a `place` is a city, a landmark or a mountain."""
    return MappingProxyType(read_data("kinds.json"))


def read_data(name: str) -> Any:
    """The content of one of the package's JSON files."""
    return json.loads((resources.files(__package__) / "data" / name).read_text(encoding="utf-8"))


def _relation(relation_id: str, entry: dict[str, Any]) -> Relation:
    parts = {part: Wordings(**{form: tuple(texts) for form, texts in entry[part].items()}) for part in PARTS}
    return Relation(
        id=relation_id,
        name=entry["name"],
        subject_kind=entry["subject_kind"],
        target_kind=entry["target_kind"],
        **parts,
    )
