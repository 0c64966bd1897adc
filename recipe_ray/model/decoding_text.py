"""Text of tokens as they come: whole characters, cut before a stop text, of which nothing is shown."""

from collections.abc import Callable, Sequence

from transformers import PreTrainedTokenizerBase

MAX_HELD = 32  # tokens without one whole character: no encoding of text, so shown as it is
CONTEXT = 5  # tokens of the prompt that tell whether a space belongs before the first new word

Decode = Callable[[Sequence[int]], str]


def decoder_of(tokenizer: PreTrainedTokenizerBase) -> Decode:
    """Text of token ids without special tokens."""
    if tokenizer.is_fast:  # the Rust decoder alone: `tokenizer.decode` takes five times as long for a few tokens
        backend = tokenizer.backend_tokenizer
        return lambda token_ids: str(backend.decode(list(token_ids), skip_special_tokens=True))
    return lambda token_ids: str(
        tokenizer.decode(list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    )


def context_of(decode: Decode, prompt_ids: Sequence[int]) -> list[int]:
    """The end of a prompt that a continuation is decoded behind, so that prompt + text is the text of all tokens."""
    context = list(prompt_ids[-CONTEXT:])
    return [] if decode(context).endswith("\ufffd") else context


def continuation(decode: Decode, context: Sequence[int], token_ids: Sequence[int]) -> str:
    """Text that tokens add to that of a context."""
    return decode([*context, *token_ids])[len(decode(context)) :]


class TextStream:
    """Text of one row.

    Args:
        decode: text of token ids.
        context: see `context_of`; empty for an answer that stands by itself.
        stop: texts before which the text ends.
    """

    def __init__(self, decode: Decode, context: Sequence[int], stop: Sequence[str]) -> None:
        self._decode = decode
        self._ids = list(context)  # those of `_base`, then those whose text is not yet known
        self._num_known = len(context)
        self._base = decode(context)
        self._stop = tuple(stop)
        self._longest_stop = max(map(len, stop), default=0)
        self._num_taken = 0
        self.text = ""
        self.stopped = False

    def push(self, token: int) -> None:
        """Add a token."""
        self._ids.append(token)
        text = self._decode(self._ids)
        if len(self._ids) - self._num_known < MAX_HELD and (len(text) <= len(self._base) or text.endswith("\ufffd")):
            return
        self._know(text)
        self._ids = self._ids[self._num_known :]
        self._num_known = len(self._ids)
        self._base = self._decode(self._ids)

    def take(self) -> str:
        """New text, without an end that may turn out to be the beginning of a stop text."""
        upto = len(self.text) - (0 if self.stopped else self._num_doubtful())
        return self._show(max(upto, self._num_taken))

    def finish(self) -> str:
        """The rest of the text: there are no more tokens."""
        if not self.stopped and len(self._ids) > self._num_known:
            self._know(self._decode(self._ids))
        return self._show(len(self.text))

    @property
    def num_taken(self) -> int:
        """Characters shown so far."""
        return self._num_taken

    def _know(self, text: str) -> None:
        begin = max(0, len(self.text) - self._longest_stop + 1)
        self.text += text[len(self._base) :]
        if cuts := [place for place in (self.text.find(stop, begin) for stop in self._stop) if place >= 0]:
            self.text, self.stopped = self.text[: min(cuts)], True

    def _num_doubtful(self) -> int:
        return max((_overlap(self.text, stop) for stop in self._stop), default=0)

    def _show(self, upto: int) -> str:
        new, self._num_taken = self.text[self._num_taken : upto], upto
        return new


def _overlap(text: str, stop: str) -> int:
    """How much of the end of `text` is a beginning of `stop`, and not all of it."""
    for length in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
