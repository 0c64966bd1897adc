"""How a user's words reach an LLM in a chat: system prompts, earlier turns, greetings, haste."""

import functools
import random
import re
from dataclasses import dataclass
from typing import Literal

from recipe_ray.datasets.wordings.relations import read_data

Part = Literal["training", "reporting"]

# How often a question is asked bare, and how often each thing is done to the others.
PLAIN_SHARE = 0.35
SYSTEM_SHARE = 0.5
LATER_TURN_SHARE = 0.15
SECOND_TURN_SHARE = 0.1  # of the later turns
OPENING_SHARE = 0.35
CLOSING_SHARE = 0.25
TYPO_SHARE = 0.2
LOWER_CASE_SHARE = 0.2
NO_MARK_SHARE = 0.3

TYPO_WORD = re.compile(r"[^\W\d_]{4,}")  # shorter words would turn into others


@dataclass(frozen=True, slots=True, kw_only=True)
class Dressing:
    """A question as a chat delivers it.

    Attributes:
        query: what is looked up: the last user message as typed, greeting and all.
        messages: role and content of each turn; the last one is the user's and says `query`.
    """

    query: str
    messages: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pools:
    """What a chat puts around a question; training and reporting share nothing.

    Attributes:
        systems: system prompts.
        turns: what a user said before, and the answer.
        openings: greetings and lines of context.
        closings: thanks and wishes.
    """

    systems: tuple[str, ...]
    turns: tuple[tuple[str, str], ...]
    openings: tuple[str, ...]
    closings: tuple[str, ...]


def dressed(question: str, rng: random.Random, part: Part, *, subject: str = "") -> Dressing:
    """A question or request in a chat; the stream of `rng` decides everything.

    Args:
        question: the bare words.
        rng: drawn from a different number of times for different results.
        part: whose pools to draw from.
        subject: kept free of typos, since a misspelt name may be another's.
    """
    if rng.random() < PLAIN_SHARE:
        return Dressing(query=question, messages=(("user", question),))
    pools = load_pools(part)
    query = _typed(question, rng, pools, subject)
    messages: list[tuple[str, str]] = []
    if rng.random() < SYSTEM_SHARE:
        messages.append(("system", rng.choice(pools.systems)))
    if rng.random() < LATER_TURN_SHARE:
        for user, assistant in rng.sample(pools.turns, 2 if rng.random() < SECOND_TURN_SHARE else 1):
            messages += [("user", user), ("assistant", assistant)]
    return Dressing(query=query, messages=(*messages, ("user", query)))


@functools.cache
def load_pools(part: Part) -> Pools:
    """The pools of training or of reporting."""
    pools = read_data("dressing.json")[part]
    turns = tuple((user, assistant) for user, assistant in pools["turns"])
    return Pools(
        systems=tuple(pools["systems"]),
        turns=turns,
        openings=tuple(pools["openings"]),
        closings=tuple(pools["closings"]),
    )


def _typed(question: str, rng: random.Random, pools: Pools, subject: str) -> str:
    text = _with_typo(question, rng, subject) if rng.random() < TYPO_SHARE else question
    opening = rng.choice(pools.openings) + " " if rng.random() < OPENING_SHARE else ""
    if rng.random() < CLOSING_SHARE:
        text = f"{text if text.endswith(('.', '?', '!')) else text + '.'} {rng.choice(pools.closings)}"
    elif rng.random() < NO_MARK_SHARE:
        text = text.removesuffix("?")
    text = opening + text
    return text.lower() if rng.random() < LOWER_CASE_SHARE else text


def _with_typo(text: str, rng: random.Random, subject: str) -> str:
    """One letter swapped with the next, dropped or doubled, in a word outside the subject; digits stay."""
    start = text.find(subject) if subject else -1
    subject_span = range(start, start + len(subject)) if start >= 0 else range(0)
    words = [word for word in TYPO_WORD.finditer(text) if word.start() not in subject_span]
    if not words:
        return text
    word = rng.choice(words)
    place = rng.randrange(word.start() + 1, word.end() - 1)
    before, letter, following, after = text[:place], text[place], text[place + 1], text[place + 2 :]
    return before + rng.choice((following + letter, following, letter + letter + following)) + after
