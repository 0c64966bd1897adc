"""Text of tokens as they come: whole characters, cut before a stop text, of which nothing is shown."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

MAX_HELD = 32  # tokens without one whole character: no encoding of text, so shown as it is
CONTEXT = 5  # tokens of the prompt that tell whether a space belongs before the first new word

PART = "\ufffd"  # what decoders show of bytes that are no whole character

Decode = Callable[[Sequence[int]], str]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a token stands in a text.

    Attributes:
        start: of its text, in characters; of each part of a character, where that character is.
        text: what it adds, which of special tokens is nothing; None for a part of a character.
    """

    start: int
    text: str | None


def decoder_of(tokenizer: PreTrainedTokenizerBase, *, skip_special_tokens: bool = True) -> Decode:
    """Text of token ids, by default without special tokens."""
    if tokenizer.is_fast:  # the Rust decoder alone: `tokenizer.decode` takes five times as long for a few tokens
        backend = tokenizer.backend_tokenizer
        return lambda token_ids: str(backend.decode(list(token_ids), skip_special_tokens=skip_special_tokens))
    return lambda token_ids: str(
        tokenizer.decode(list(token_ids), skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False)
    )


def context_of(decode: Decode, prompt_ids: Sequence[int]) -> list[int]:
    """The end of a prompt that a continuation is decoded behind, so that prompt + text is the text of all tokens."""
    context = list(prompt_ids[-CONTEXT:])
    return [] if decode(context).endswith(PART) else context


def continuation(decode: Decode, context: Sequence[int], token_ids: Sequence[int]) -> str:
    """Text that tokens add to that of a context."""
    text = decode([*context, *token_ids])[len(decode(context)) :]
    # Of bytes that are no text, some decoders give up the text around them too, by how much they see at once.
    return followed(decode, context, token_ids).text if PART in text else text


def followed(decode: Decode, context: Sequence[int], token_ids: Sequence[int]) -> "TextStream":
    """The whole text of tokens, taken one by one."""
    stream = TextStream(decode, context, ())
    for token in token_ids:
        stream.push(token)
    stream.finish()
    return stream


class TextStream:
    """Text of one row.

    Args:
        decode: text of token ids.
        context: see `context_of`; empty for an answer that stands by itself.
        stop: texts before which the text ends.

    Attributes:
        text: known so far.
        places: in it, of each token whose text is known; of what a stop text cuts away, behind its end.
        stopped: by a stop text.
    """

    def __init__(self, decode: Decode, context: Sequence[int], stop: Sequence[str]) -> None:
        self._decode = decode
        self._ids = list(context)  # those of `_base`, then those whose text is not yet known
        self._num_known = len(context)
        self._base = self._seen = decode(context)  # `_seen` is the text of all `_ids`
        self._before: list[str] = []  # what `_seen` was before each token of unknown text
        self._stop = tuple(stop)
        self._longest_stop = max(map(len, stop), default=0)
        self._num_taken = 0
        self.text = ""
        self.places: list[Place] = []
        self.stopped = False

    def push(self, token: int) -> None:
        """Add a token."""
        self._before.append(self._seen)
        self._ids.append(token)
        self._seen = text = self._decode(self._ids)
        if len(self._before) < MAX_HELD and (len(text) <= len(self._base) or text.endswith(PART)):
            return
        self._know()
        self._ids = self._ids[self._num_known :]
        self._num_known = len(self._ids)
        self._base = self._seen = self._decode(self._ids)

    def take(self) -> str:
        """New text, without an end that may turn out to be the beginning of a stop text."""
        upto = len(self.text) - (0 if self.stopped else self._num_doubtful())
        return self._show(max(upto, self._num_taken))

    def finish(self) -> str:
        """The rest of the text: there are no more tokens."""
        if not self.stopped and self._before:
            self._know()
        return self._show(len(self.text))

    @property
    def num_taken(self) -> int:
        """Characters shown so far."""
        return self._num_taken

    def _know(self) -> None:
        begin = max(0, len(self.text) - self._longest_stop + 1)
        for before, after in itertools.pairwise([*self._before, self._seen]):
            self.places.append(self._place(before, after))
        self._before = []
        self.text += self._seen[len(self._base) :]
        if cuts := [place for place in (self.text.find(stop, begin) for stop in self._stop) if place >= 0]:
            self.text, self.stopped = self.text[: min(cuts)], True

    def _place(self, before: str, after: str) -> Place:
        """Of a token that made `before` to `after`, in the text of which `_seen` is the end as it is now known.

        What a decoder shows of bytes may become another character with the next of them: what of `before` is still
        there lies in front of the token.
        """
        previous = self.places[-1].start if self.places else 0
        is_kept = self._seen.startswith(before)
        if is_kept and before.endswith(PART) and after == before:
            return Place(previous, None)
        kept = len(before) if is_kept else _num_common(before, self._seen)
        start = max(previous, len(self.text) + max(0, kept - len(self._base)))
        is_whole = is_kept and after.startswith(before) and not after.endswith(PART)
        return Place(start, after[len(before) :] if is_whole else None)

    def _num_doubtful(self) -> int:
        return max((_overlap(self.text, stop) for stop in self._stop), default=0)

    def _show(self, upto: int) -> str:
        new, self._num_taken = self.text[self._num_taken : upto], upto
        return new


def _num_common(one: str, other: str) -> int:
    """How many characters two texts begin with alike."""
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def _overlap(text: str, stop: str) -> int:
    """How much of the end of `text` is a beginning of `stop`, and not all of it."""
    for length in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
