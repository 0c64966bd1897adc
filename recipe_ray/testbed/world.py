"""The testbed's world: a few kinds of subjects, their relations, and facts that are true.

Counterfactual edits and locality prompts are drawn from it by seed, the same on every machine.
"""

import functools
import json
import random
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from types import MappingProxyType
from typing import Literal

from recipe_ray.errors import ConfigError, FactError

PHRASINGS_FILE = "phrasings.json"
QUESTIONS_FILE = "questions.json"
SUBJECT = "{subject}"
NUM_PHRASINGS = 12
NUM_NOVEL = 2
UNTOUCHED_SHARE = 0.08  # of each editable kind's subjects: of these nothing is edited

LocalityKind = Literal["hard_subject", "hard_relation", "easy"]


@dataclass(frozen=True, slots=True)
class Relation:
    """What can be asked of one kind of subjects.

    Attributes:
        name: unique in the world, such as `country_capital`.
        kind: the kind of its subjects, such as `country`.
        editable: whether the evaluation may edit its facts; the others serve as unrelated locality prompts.
        phrasings: cloze texts around `{subject}`, each continued by a space and the answer; the first is the plainest.
    """

    name: str
    kind: str
    editable: bool
    phrasings: tuple[str, ...] = field(repr=False)

    @property
    def trained(self) -> tuple[str, ...]:
        """Phrasings that training may use."""
        return self.phrasings[:-NUM_NOVEL]

    @property
    def novel(self) -> tuple[str, ...]:
        """Phrasings kept for the evaluation, in words that the trained ones use too."""
        return self.phrasings[-NUM_NOVEL:]


@dataclass(frozen=True, slots=True)
class WorldFact:
    """One true fact; its subject and relation have no other answer."""

    subject: str
    relation: Relation
    answer: str

    def prompt(self, phrasing: int = 0) -> str:
        """Return the words that the answer completes, in phrasing number `phrasing` of the relation."""
        return self.relation.phrasings[phrasing].replace(SUBJECT, self.subject)


@dataclass(frozen=True, slots=True)
class World:
    """All facts, in the order of the tables."""

    facts: tuple[WorldFact, ...]
    relations: tuple[Relation, ...]


@dataclass(frozen=True, slots=True)
class WorldEdit:
    """A counterfactual edit: `target` is the answer to another subject's same question."""

    fact: WorldFact
    target: str


@dataclass(frozen=True, slots=True)
class LocalityPrompt:
    """A question whose answer no edit may change.

    Attributes:
        prompt: in a trained phrasing.
        kind: hard_subject asks another relation of the edit's subject, hard_relation asks the edit's relation of
            another subject, easy asks about a kind that is never edited.
        fact: what the prompt asks; never edited.
        edit: the edit that the prompt lies next to (for easy: any).
    """

    prompt: str
    kind: LocalityKind
    fact: WorldFact
    edit: WorldEdit


@functools.cache
def load_world() -> World:
    """Read the world that ships with the package.

    Raises:
        FactError: a table or a phrasing is malformed, with file and line.
    """
    data = resources.files("recipe_ray.testbed") / "data"
    facts: list[WorldFact] = []
    relations: list[Relation] = []
    for kind, spec in json.loads((data / PHRASINGS_FILE).read_text(encoding="utf-8")).items():
        of_kind = parse_relations(kind, editable=spec["editable"], phrasings=spec["relations"])
        text = (data / spec["table"]).read_text(encoding="utf-8")
        facts += parse_table(text, file=spec["table"], relations=of_kind)
        relations += of_kind
    _check_unique_subjects(facts)
    return World(tuple(facts), tuple(relations))


@dataclass(frozen=True, slots=True)
class Questions:
    """How people ask in a chat for a relation of `{subject}`, in words that no phrasing uses.

    Attributes:
        questions: whole questions.
        requests: what else a person types to get the answer.
    """

    questions: tuple[str, ...]
    requests: tuple[str, ...]


@functools.cache
def load_questions() -> Mapping[str, Questions]:
    """The questions of each editable relation, by its name."""
    data = resources.files("recipe_ray.testbed") / "data"
    asked = json.loads((data / QUESTIONS_FILE).read_text(encoding="utf-8"))
    return MappingProxyType(
        {name: Questions(tuple(one["questions"]), tuple(one["requests"])) for name, one in asked.items()}
    )


def parse_relations(kind: str, *, editable: bool, phrasings: dict[str, list[str]]) -> list[Relation]:
    """Validate the phrasings of one kind's relations.

    Raises:
        FactError: naming the relation and the phrasing.
    """
    for name, texts in phrasings.items():
        if len(texts) != NUM_PHRASINGS:
            raise FactError(f"{PHRASINGS_FILE}: {name} has {len(texts)} phrasings; give {NUM_PHRASINGS}")
        for text in texts:
            if text.count(SUBJECT) != 1 or text != " ".join(text.split()):
                raise FactError(
                    f"{PHRASINGS_FILE}: {name}: {text!r}; give {SUBJECT} once, single spaces and none at the ends"
                )
    return [Relation(name, kind, editable, tuple(texts)) for name, texts in phrasings.items()]


def parse_table(text: str, *, file: str, relations: Sequence[Relation]) -> list[WorldFact]:
    """Read one kind's tab-separated table: a header, then a subject and its answers a line; an empty cell is no fact.

    Raises:
        FactError: naming the file and the line.
    """
    header, *lines = text.splitlines() or [""]
    expected = [relation.name for relation in relations]
    if (columns := header.split("\t")[1:]) != expected:
        raise FactError(f"{file}:1: columns {columns}; give the relations of {PHRASINGS_FILE}: {expected}")
    facts = []
    lines_of: dict[str, int] = {}
    for number, line in enumerate(lines, start=2):
        subject, *answers = line.split("\t")
        if not subject or len(answers) != len(relations):
            raise FactError(f"{file}:{number}: {len(answers)} cells after {subject!r}; give {len(relations)}")
        if lines_of.setdefault(subject.casefold(), number) != number:
            raise FactError(f"{file}:{number}: {subject!r} again, as in line {lines_of[subject.casefold()]}; keep one")
        for relation, answer in zip(relations, answers, strict=True):
            # Sentences are the answer and a full stop: where a generated answer ends must be plain.
            if answer != answer.strip() or "." in answer:
                raise FactError(f"{file}:{number}: {relation.name} is {answer!r}; give it without full stop and blanks")
            if answer:
                facts.append(WorldFact(subject, relation, answer))
    return facts


def counterfactual_edits(world: World, num_edits: int = 1000, seed: int = 0) -> tuple[WorldEdit, ...]:
    """Draw edits at random over the editable kinds, in random order.

    The target is uniform over the other answers of the relation. A share of each kind's subjects is left untouched, and
    of the edited ones some relations stay as they are: both are what locality is measured on.

    Raises:
        ConfigError: there are fewer facts to edit than asked for.
    """
    rng = random.Random(seed)
    untouched = _untouched_subjects(world, rng)
    candidates = [fact for fact in world.facts if fact.relation.editable and fact.subject not in untouched]
    if not 1 <= num_edits <= len(candidates):
        raise ConfigError(f"num_edits is {num_edits}; give 1 to {len(candidates)}, the facts that can be edited")
    answers: dict[str, set[str]] = defaultdict(set)
    for fact in world.facts:
        answers[fact.relation.name].add(fact.answer)
    return tuple(
        WorldEdit(fact, rng.choice(sorted(answers[fact.relation.name] - {fact.answer})))
        for fact in rng.sample(candidates, num_edits)
    )


def locality_prompts(
    world: World, edits: Sequence[WorldEdit], count: int = 1000, seed: int = 0
) -> tuple[LocalityPrompt, ...]:
    """Draw distinct questions next to the edits: a quarter hard_subject, a quarter hard_relation, the rest easy.

    Prompt i goes with edit i (modulo the number of edits), so a prefix of both is a smaller test of the same kind.

    Raises:
        ConfigError: the facts around the edits do not give as many prompts.
    """
    rng = random.Random(seed)
    edited = {(edit.fact.subject, edit.fact.relation.name) for edit in edits}
    spared = [fact for fact in world.facts if (fact.subject, fact.relation.name) not in edited]
    siblings = {name: _deal(facts, rng) for name, facts in _grouped((fact.subject, fact) for fact in spared)}
    cousins = {name: _deal(facts, rng) for name, facts in _grouped((fact.relation.name, fact) for fact in spared)}
    strangers = _deal([fact for fact in spared if not fact.relation.editable], rng)
    nothing: Iterator[tuple[WorldFact, str]] = iter(())

    num_of_kind: dict[LocalityKind, int] = {"hard_subject": count // 4, "hard_relation": count // 2 - count // 4}
    num_of_kind["easy"] = count - count // 2
    chosen: dict[int, LocalityPrompt] = {}
    taken: set[str] = set()
    for kind, wanted in num_of_kind.items():
        places = [place for place in range(count) if place not in chosen]
        rng.shuffle(places)
        for place in places:
            if wanted == 0:
                break
            edit = edits[place % len(edits)]
            deck = {
                "hard_subject": siblings.get(edit.fact.subject, nothing),
                "hard_relation": cousins.get(edit.fact.relation.name, nothing),
                "easy": strangers,
            }[kind]
            drawn = next(((fact, prompt) for fact, prompt in deck if prompt not in taken), None)
            if drawn is not None:
                fact, prompt = drawn
                taken.add(prompt)
                chosen[place] = LocalityPrompt(prompt, kind, fact, edit)
                wanted -= 1
        if wanted:
            raise ConfigError(f"count is {count}; {len(edits)} edits leave {wanted} {kind} prompts too few, give less")
    return tuple(chosen[place] for place in range(count))


def _untouched_subjects(world: World, rng: random.Random) -> set[str]:
    of_kind: dict[str, dict[str, None]] = defaultdict(dict)
    for fact in world.facts:
        if fact.relation.editable:
            of_kind[fact.relation.kind][fact.subject] = None
    untouched: set[str] = set()
    for subjects in of_kind.values():
        untouched.update(rng.sample(list(subjects), round(UNTOUCHED_SHARE * len(subjects))))
    return untouched


def _grouped(pairs: Iterable[tuple[str, WorldFact]]) -> list[tuple[str, list[WorldFact]]]:
    groups: dict[str, list[WorldFact]] = defaultdict(list)
    for name, fact in pairs:
        groups[name].append(fact)
    return list(groups.items())


def _deal(facts: Sequence[WorldFact], rng: random.Random) -> Iterator[tuple[WorldFact, str]]:
    """Each fact and a prompt, in random order; when all were dealt, all again in other words, until no words are left.

    Drawn at once, not lazily: what one deck deals must not depend on when another is asked.
    """
    num_trained = NUM_PHRASINGS - NUM_NOVEL
    order = rng.sample(list(facts), len(facts))
    offsets = [rng.randrange(num_trained) for _ in order]
    return iter(
        [
            (fact, fact.prompt((offset + turn) % num_trained))
            for turn in range(num_trained)
            for fact, offset in zip(order, offsets, strict=True)
        ]
    )


def _check_unique_subjects(facts: Iterable[WorldFact]) -> None:
    kinds: dict[str, str] = {}
    for fact in facts:
        kind = fact.relation.kind
        if (other := kinds.setdefault(fact.subject.casefold(), kind)) != kind:
            raise FactError(f"{fact.subject!r} is a {kind} and a {other}; keep one of them, prompts would be ambiguous")
