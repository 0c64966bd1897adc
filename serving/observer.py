"""What is told to the outside about requests: an interface, so that the parts need not know who counts."""

from typing import Literal, Protocol

EditOutcome = Literal["applied", "below_sentinel", "empty", "off", "shard_lost"]


class Observer(Protocol):
    """Counts and times; names no prompt, no fact and no namespace."""

    def request(self, *, route: str, model: str, status: int, seconds: float) -> None:
        """A request has ended; 499 where the client left."""

    def edit(self, *, model: str, outcome: EditOutcome, margin: float | None) -> None:
        """A prompt was looked up; `margin` is the best fact's score less the sentinel's."""

    def retrieval(self, *, model: str, seconds: float) -> None:
        """A retrieval step took this long."""

    def first_token(self, *, model: str, seconds: float) -> None:
        """From the request to its first token."""

    def tokens(self, *, model: str, num_prompt: int, num_new: int, seconds: float) -> None:
        """A generation of so many tokens took this long."""

    def snapshot(self, *, model: str, version: int, age_s: float, num_facts: int, index_bytes: int) -> None:
        """What is served now."""
