"""What an edited LLM makes of a harness's requests: log-likelihoods of continuations, and completions.

An editor sees the question alone; the LLM reads the whole context, with whatever the editor puts around the question
put around the context.

Every request is also read plainly, in batches that depend on the requests alone, and what the editor changes is read in
batches of its own: a sum of floating-point numbers depends on a batch's shape, so this is what makes an LLM that reads
the same give the same to the bit, whatever stands beside it.

Shape letters: B rows, A answer tokens, V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from recipe_ray.errors import ConfigError, EditorError
from recipe_ray.eval.cases import Ask
from recipe_ray.eval.methods.base import Method

BATCH_SIZE = 32
_ROLLING_MARGIN = 8  # tokens: a text cut at a token may tokenise into a few more than it was cut from

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Asked:
    """A context as the LLM reads it, and the question in it: all that an editor sees. No question, no edit."""

    context: str
    question: str


@dataclass(frozen=True, slots=True)
class Score:
    """The log-likelihood of a continuation, and whether greedy decoding would give it."""

    loglikelihood: float
    is_greedy: bool


@dataclass(frozen=True, slots=True)
class _Frame:
    """What an editor puts around a question: texts and the number of a fact."""

    before: str = ""
    after: str = ""
    fact: int = -1

    def ask(self, context: str) -> Ask:
        """The same around a context."""
        return Ask(f"{self.before}{context}{self.after}", self.fact)


_PLAIN = _Frame()


@dataclass(frozen=True, slots=True)
class _Row:
    """An ask with its answer's token ids, and how many tokens both have."""

    ask: Ask
    answer: tuple[int, ...]
    num_tokens: int


class EditedModel:
    """A method's LLM with the edits that are in force now, as a harness asks it.

    Args:
        method: the editor; not to be given or rid of edits while this is in use.
        batch_size: rows that the LLM reads at once.

    Attributes:
        truncated: contexts that were too long for the LLM and lost their beginning.
    """

    def __init__(self, method: Method, *, batch_size: int = BATCH_SIZE) -> None:
        self.method = method
        self.truncated: set[str] = set()
        self._batch_size = batch_size
        self._frames: dict[str, _Frame] = {"": _PLAIN}

    def fires(self, questions: Sequence[str]) -> list[bool]:
        """Whether the editor has the LLM read anything but the question; an editor of weights never does.

        Raises:
            EditorError: the editor's text does not hold the question.
        """
        return [frame != _PLAIN for frame in self._framed(questions)]

    def scores(self, requests: Sequence[tuple[Asked, str]]) -> list[Score]:
        """Log-likelihoods of continuations in nats, summed over tokens in float32.

        A continuation is tokenised with its context and begins where the context's own tokens end; white space at the
        end of a context counts as the continuation's (both as lm-evaluation-harness has it).

        Raises:
            ConfigError: a continuation fills the LLM's context.
            EditorError: the editor's text does not hold the question.
        """
        return self._answered(requests, self._scored_row, self._score)

    def completions(self, requests: Sequence[Asked], *, max_new_tokens: int, stop: Sequence[str] = ()) -> list[str]:
        """Greedy completions up to a stop text, without it.

        Raises:
            ConfigError: so many new tokens fill the LLM's context.
            EditorError: the editor's text does not hold the question.
        """
        reader = self.method.reader

        def row(frame: _Frame, context: str, _: None) -> _Row:
            ask = self._fitting(frame, context, max_new_tokens)
            return _Row(ask, (), len(reader.llm.tokenize(ask.text)))

        def complete(rows: Sequence[_Row]) -> list[str]:
            asks = [one.ask for one in rows]
            return [one.text for one in reader.complete(asks, max_new_tokens=max_new_tokens, stop=stop)]

        return self._answered([(request, None) for request in requests], row, complete)

    def rolling_score(self, text: str) -> float:
        """Log-likelihood of a whole text; it asks nothing, so no edit is looked up for it.

        Each token is scored once, in a text of any length with at least a third of the LLM's context before it, but for
        the text's beginning.
        """
        llm = self.method.reader.llm
        encoded = llm.tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)
        starts = [start for start, _ in encoded["offset_mapping"]]
        step = llm.max_length // 3
        pieces = []
        for place in range(0, len(starts), step):
            begin = starts[place] if place else 0
            end = starts[place + step] if place + step < len(starts) else len(text)
            context = text[starts[max(0, place - step)] : begin] if place else ""
            pieces.append((Asked(context, ""), text[begin:end]))
        return sum(score.loglikelihood for score in self.scores(pieces))

    def _answered(
        self,
        requests: Sequence[tuple[Asked, Item]],
        row: Callable[[_Frame, str, Item], _Row],
        answer: Callable[[Sequence[_Row]], list[Result]],
    ) -> list[Result]:
        """Plain rows in batches of plain rows, changed ones in batches of changed ones; the longest first."""
        frames = self._framed([asked.question for asked, _ in requests])
        results: dict[int, Result] = {}
        for changed in (False, True):
            rows = {
                place: row(frame if changed else _PLAIN, asked.context, item)
                for place, ((asked, item), frame) in enumerate(zip(requests, frames, strict=True))
                if not changed or frame != _PLAIN
            }
            order = sorted(rows, key=lambda place: (-rows[place].num_tokens, rows[place].ask.text, rows[place].answer))
            for start in range(0, len(order), self._batch_size):
                batch = order[start : start + self._batch_size]
                if changed or any(frames[place] == _PLAIN for place in batch):
                    results.update(zip(batch, answer([rows[place] for place in batch]), strict=True))
        return [results[place] for place in range(len(requests))]

    def _framed(self, questions: Sequence[str]) -> list[_Frame]:
        new = [question for question in dict.fromkeys(questions) if question not in self._frames]
        for question, ask in zip(new, self.method.asks(new) if new else [], strict=True):
            before, found, after = ask.text.rpartition(question)
            if not found:
                raise EditorError(
                    f"{self.method.name}: has the LLM read {ask.text[-80:]!r} for the question {question[-80:]!r}, "
                    "which does not stand in it; general ability can be asked of editors that keep the question"
                )
            self._frames[question] = _Frame(before, after, ask.fact)
        return [self._frames[question] for question in questions]

    def _fitting(self, frame: _Frame, context: str, num_new_tokens: int) -> Ask:
        """The context's end, where the question is, as far as the LLM has room for it."""
        reader = self.method.reader
        llm = reader.llm
        room = llm.max_length - num_new_tokens - (reader.prompts_NPD.shape[1] if frame.fact >= 0 else 0)
        ask = frame.ask(context)
        whole = context
        while room < 1 or (excess := len(llm.tokenize(ask.text)) - room) > 0:
            self.truncated.add(whole)
            if room < 1 or not context:
                raise ConfigError(
                    f"LLM {llm.name} reads {llm.max_length} tokens, too few for {num_new_tokens} of an answer behind "
                    "its question; take an LLM with a longer context, or a task with shorter answers"
                )
            offsets = llm.tokenizer(context, return_offsets_mapping=True, add_special_tokens=False)["offset_mapping"]
            context = context[max(1, offsets[excess][0]) if excess < len(offsets) else len(context) :]
            ask = frame.ask(context)
        return ask

    def _scored_row(self, frame: _Frame, context: str, continuation: str) -> _Row:
        llm = self.method.reader.llm
        # An LLM without BOS has nothing to go on before the first token; the end of another text stands for it.
        context = context or ("" if llm.tokenize("") else llm.tokenizer.eos_token)
        num_answer_tokens = len(llm.tokenize_answer(continuation)) + 1
        ask = self._fitting(frame, context, num_answer_tokens)
        text = ask.text.rstrip()
        ids = llm.tokenize(text)
        # Where the continuation's beginning merges with the context's end, nothing may be left of it.
        answer = llm.tokenize(ask.text + continuation)[len(ids) :] or llm.tokenize_answer(continuation)
        return _Row(Ask(text, ask.fact), tuple(answer), len(ids) + len(answer))

    @torch.inference_mode()
    def _score(self, rows: Sequence[_Row]) -> list[Score]:
        # Choices of one token, such as letters, share all that is read before them: one row says it for all.
        heads: dict[tuple[Ask, tuple[int, ...]], _Row] = {}
        for row in rows:
            heads.setdefault((row.ask, row.answer[:-1]), row)
        places = {head: place for place, head in enumerate(heads)}
        logits_BAV = self.method.reader.answer_logits(
            [row.ask for row in heads.values()], [row.answer for row in heads.values()]
        )
        logprobs_BAV = logits_BAV.float().log_softmax(-1)
        loglikelihoods, greedy = [], []
        for row in rows:
            answer_A = torch.tensor(row.answer, device=logprobs_BAV.device)
            own_AV = logprobs_BAV[places[row.ask, row.answer[:-1]], -len(answer_A) :]
            loglikelihoods.append(own_AV.gather(1, answer_A[:, None]).sum())
            greedy.append((own_AV.argmax(-1) == answer_A).all())
        return [
            Score(loglikelihood, is_greedy)
            for loglikelihood, is_greedy in zip(
                torch.stack(loglikelihoods).tolist(), torch.stack(greedy).tolist(), strict=True
            )
        ]
