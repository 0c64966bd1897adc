"""Invented names without end, in the style of real ones."""

import random
from collections import defaultdict
from collections.abc import Iterable

ORDER = 3
START, END = "^", "$"
DIGITS = "0123456789"
LETTERS = "abcdefghijklmnopqrstuvwxyz"
MAX_LETTERS = 16
MAX_TRIES = 20


class NameModel:
    """A letter-level Markov chain over given names; what it makes is never one of them.

    Invented names then share the letter sequences, and so the tokens, of real names: an encoder that learns to tell
    invented subjects apart has seen the pieces of the real ones.
    """

    def __init__(self, names: Iterable[str], *, min_letters: int = 3) -> None:
        self.names = frozenset(names)
        self.min_letters = min_letters
        self.followers: dict[str, list[str]] = defaultdict(list)
        self._ordered = sorted(self.names)
        for name in self._ordered:
            padded = START * ORDER + name + END
            for end in range(ORDER, len(padded)):
                # Shorter contexts too: now and then one is used, so that rare letter sequences are left again.
                for order in range(1, ORDER + 1):
                    self.followers[padded[end - order : end]].append(padded[end])

    def invent(self, rng: random.Random) -> str:
        """A new name; where the chain only gives back the names it was made from (two-letter codes), one letter off."""
        for _ in range(MAX_TRIES):
            name = START * ORDER
            while not name.endswith(END) and len(name) < MAX_LETTERS + ORDER + 1:
                order = ORDER if rng.random() < 0.7 else ORDER - 1
                name += rng.choice(self.followers[name[-order:]])
            name = name.strip(START + END)
            if self.min_letters <= len(name) <= MAX_LETTERS and name == name.strip() and name not in self.names:
                return name
        return self.neighbour(rng.choice(self._ordered), rng)

    def neighbour(self, name: str, rng: random.Random) -> str:
        """The same name but for one letter or digit: the hardest subject to tell it from."""
        places = [place for place, char in enumerate(name) if char.isalnum()]
        while True:
            place = rng.choice(places)
            old = name[place]
            new = rng.choice(DIGITS if old.isdigit() else LETTERS)
            changed = name[:place] + (new.upper() if old.isupper() else new) + name[place + 1 :]
            if changed != name and changed not in self.names:
                return changed
