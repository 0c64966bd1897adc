"""Invented names without end, in the style of real ones."""

import random
from collections import defaultdict
from collections.abc import Iterable

ORDER = 3
START, END = "^", "$"
LETTERS = "abcdefghijklmnopqrstuvwxyz"
MAX_LETTERS = 16
MAX_TRIES = 50


class NameModel:
    """A letter-level Markov chain over given names; what it makes is never one of them.

    Invented names then share the letter sequences, and so the tokens, of real names: an encoder that learns to tell
    invented subjects apart has seen the pieces of the real ones.
    """

    def __init__(self, names: Iterable[str], *, min_letters: int = 3) -> None:
        self.names = frozenset(names)
        self.min_letters = min_letters
        self.followers: dict[str, list[str]] = defaultdict(list)
        for name in sorted(self.names):
            padded = START * ORDER + name + END
            for end in range(ORDER, len(padded)):
                # Shorter contexts too: now and then one is used, so that rare letter sequences are left again.
                for order in range(1, ORDER + 1):
                    self.followers[padded[end - order : end]].append(padded[end])

    def invent(self, rng: random.Random) -> str:
        """A new name. Where the given names hardly vary (six continents), ever shorter contexts are tried."""
        for attempt in range(MAX_TRIES * ORDER):
            longest = ORDER - attempt // MAX_TRIES
            name = START * ORDER
            while not name.endswith(END) and len(name) < MAX_LETTERS + ORDER + 1:
                order = longest if longest == 1 or rng.random() < 0.7 else longest - 1
                name += rng.choice(self.followers[name[-order:]])
            name = name.strip(START + END)
            if self.min_letters <= len(name) <= MAX_LETTERS and name == name.strip() and name not in self.names:
                return name
        raise RuntimeError(f"no new name in {MAX_TRIES * ORDER} tries over {sorted(self.names)[:5]}")

    def neighbour(self, name: str, rng: random.Random) -> str:
        """The same name but for one letter: the hardest subject to tell it from."""
        places = [place for place, char in enumerate(name) if char.isalpha()]
        while True:
            place = rng.choice(places)
            letter = rng.choice(LETTERS)
            changed = name[:place] + (letter.upper() if name[place].isupper() else letter) + name[place + 1 :]
            if changed != name and changed not in self.names:
                return changed
