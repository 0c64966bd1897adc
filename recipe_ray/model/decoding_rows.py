"""One prompt that is being completed: what was asked, what was generated, what of it may be told."""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from recipe_ray.model.decoding_sampling import NOT_FINITE, Choice, ScoredToken
from recipe_ray.model.decoding_text import Decode, Place, TextStream, context_of, continuation

Finish = Literal["stop", "length", "failed"]


@dataclass(frozen=True, slots=True)
class Echo:
    """A prompt as an answer begins with it.

    Attributes:
        text: of it.
        places: of its tokens in the text, where those are to be told.
    """

    text: str = ""
    places: tuple[Place, ...] = ()


NO_ECHO = Echo()


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One prompt to complete.

    Attributes:
        prompt_ids: at least one; BOS included where the tokenizer adds one.
        start: tokens of the prompt before the virtual ones.
        virtual_PD: continuous prompt, None for the unedited LLM.
        max_new_tokens: 0 where the prompt alone is to be scored.
        temperature: 0 is greedy.
        top_p: smallest set of tokens with this much probability is sampled from.
        seed: None for one at random.
        stop: texts before which the text ends.
        logprobs: alternatives to score beside each new token, None for no scores.
        prompt_logprobs: score the prompt's tokens too, with as many alternatives.
        echo: what the answer begins with.
        stream: give text as it comes, not at the end alone.
        continues: the text goes on from the prompt's, rather than standing by itself as an answer in a chat does.
        ignore_eos: go on where the LLM ends a text, for measuring.
    """

    prompt_ids: Sequence[int]
    max_new_tokens: int
    start: int = 0
    virtual_PD: npt.NDArray[np.floating[Any]] | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    prompt_logprobs: bool = False
    echo: Echo = NO_ECHO
    stream: bool = False
    continues: bool = True
    ignore_eos: bool = False

    @property
    def num_virtual(self) -> int:
        """P, or 0."""
        return 0 if self.virtual_PD is None else len(self.virtual_PD)

    @property
    def num_tokens(self) -> int:
        """Tokens at the end, virtual ones included."""
        return len(self.prompt_ids) + self.num_virtual + self.max_new_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """What is new of a row.

    Attributes:
        row: whose.
        text: whole characters, nothing of a stop text or behind it; of the first, behind the echoed prompt.
        tokens: scores of the tokens that the text is made of and of the one that ends it, where asked for.
        prompt_tokens: scores of the prompt's, once.
        places: in the answer's whole text, of `prompt_tokens` and then of `tokens`.
        num_new_tokens: so far.
        finish: None while there is more; `failed` where the LLM's scores are no numbers.
    """

    row: "Row"
    text: str = ""
    tokens: tuple[ScoredToken, ...] = ()
    prompt_tokens: tuple[ScoredToken, ...] = ()
    places: tuple[Place, ...] = ()
    num_new_tokens: int = 0
    finish: Finish | None = None


class Row:
    """A job's state.

    Args:
        job: what is to be done.
        decode: text of token ids.
        eos: tokens that end a text.

    Attributes:
        job: as given.
        choice: how its tokens are chosen.
        new: tokens generated, those of a stop text and end-of-sequence included.
        prompt_scored: scores of the prompt's tokens, until they are told.
        cancelled: leaves before the next step.
    """

    __slots__ = (
        "_context",
        "_decode",
        "_eos",
        "_num_told",
        "_scored",
        "_text",
        "_untold_echo",
        "cancelled",
        "choice",
        "job",
        "new",
        "prompt_scored",
    )

    def __init__(self, job: Job, decode: Decode, eos: frozenset[int]) -> None:
        self.job = job
        self.choice = Choice(
            temperature=job.temperature,
            top_p=job.top_p,
            random=Random(job.seed) if job.temperature > 0 else None,
        )
        self.new: list[int] = []
        self.prompt_scored: list[ScoredToken] = []
        self.cancelled = False
        self._decode = decode
        self._eos = frozenset() if job.ignore_eos else eos
        self._context = context_of(decode, job.prompt_ids) if job.continues else []
        # Text is followed token by token only where somebody looks at it before the end, or at its tokens.
        follows = job.stream or job.stop or job.logprobs is not None
        self._text = TextStream(decode, self._context, job.stop) if follows else None
        self._untold_echo = job.echo
        self._scored: list[ScoredToken] = []
        self._num_told = 0  # scored tokens that went out

    def record(self, token: int, scored: ScoredToken | None) -> Piece | None:
        """Take the next token, NOT_FINITE where there is none; what can be told now."""
        if token == NOT_FINITE:
            return Piece(row=self, finish="failed")
        if self.job.max_new_tokens == 0:
            return self._piece("", 0, finish="length")
        self.new.append(token)
        finish: Finish | None = None
        if token in self._eos:
            finish = "stop"
        elif len(self.new) == self.job.max_new_tokens:
            finish = "length"
        if scored is not None:
            self._scored.append(scored)
        if self._text is not None:
            if token not in self._eos:
                self._text.push(token)
            if self._text.stopped:
                finish = "stop"
        if finish is not None:
            return self._end(finish)
        return self._part(self._text) if self.job.stream and self._text is not None else None

    def _part(self, stream: TextStream) -> Piece | None:
        """What can be told of a row that goes on."""
        text = stream.take()
        until = self._num_told
        num_known = min(len(self._scored), len(stream.places))
        while until < num_known and stream.places[until].start < stream.num_taken:
            until += 1
        # The first token is told even where its text is held back: the wait for it is over.
        if not text and len(self.new) > 1:
            return None
        return self._piece(text, until)

    def _end(self, finish: Finish) -> Piece:
        if self._text is None:
            shown = self.new[:-1] if self.new[-1] in self._eos else self.new
            return self._piece(continuation(self._decode, self._context, shown), 0, finish=finish)
        text = self._text.finish()
        until = len(self._scored)
        if self._text.stopped:
            finish = "stop"
            # Of the tokens, those whose text begins before the cut.
            until = sum(place.start < self._text.num_taken for place in self._text.places[:until])
        return self._piece(text, until, finish=finish)

    def _piece(self, text: str, until: int, *, finish: Finish | None = None) -> Piece:
        """The next piece, with the scored tokens up to one; the first has the echoed prompt."""
        echo, self._untold_echo = self._untold_echo, NO_ECHO
        prompt_tokens, self.prompt_scored = tuple(self.prompt_scored), []
        num_told, self._num_told = self._num_told, until
        return Piece(
            row=self,
            text=echo.text + text,
            tokens=tuple(self._scored[num_told:until]),
            prompt_tokens=prompt_tokens,
            places=(*echo.places, *(self._place(number) for number in range(num_told, until))),
            num_new_tokens=len(self.new),
            finish=finish,
        )

    def _place(self, number: int) -> Place:
        """Of a new token in the answer's text; what ends it stands behind it."""
        assert self._text is not None, "the text of scored tokens is followed"
        known = self._text.places
        place = known[number] if number < len(known) else Place(len(self._text.text), "")
        return Place(len(self.job.echo.text) + place.start, place.text)
