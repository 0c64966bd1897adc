"""What an engine answers: pieces of generated text as messages, the same whichever engine generates."""

from transformers import PreTrainedTokenizerBase

from recipe_ray.model.decoding_rows import Job, Piece
from recipe_ray.model.decoding_sampling import ScoredToken
from serving.messages import Chunk, Completion, Refusal, TokenLogprob


class Answers:
    """Makes the answers of one LLM.

    Args:
        name: how messages call it.
        tokenizer: its tokenizer.
    """

    def __init__(self, name: str, tokenizer: PreTrainedTokenizerBase) -> None:
        self._name = name
        self._tokenizer = tokenizer
        self._token_texts: dict[int, str] = {}

    def completion(self, job: Job, piece: Piece, *, echoed: str = "") -> Completion | Refusal:
        """A whole answer, behind the echoed prompt."""
        if piece.finish is None or piece.finish == "failed":
            return self._not_finite()
        return Completion(
            text=echoed + piece.text,
            logprobs=self._logprobs(piece),
            finish_reason=piece.finish,
            num_prompt_tokens=len(job.prompt_ids),
            num_new_tokens=piece.num_new_tokens,
        )

    def chunk(self, job: Job, piece: Piece, *, echoed: str = "") -> Chunk | Refusal:
        """A piece of a streamed answer; the first stands behind the echoed prompt."""
        if piece.finish == "failed":
            return self._not_finite()
        return Chunk(
            text=echoed + piece.text,
            logprobs=self._logprobs(piece),
            finish_reason=piece.finish,
            num_prompt_tokens=len(job.prompt_ids),
            num_new_tokens=piece.num_new_tokens,
        )

    def _logprobs(self, piece: Piece) -> tuple[TokenLogprob, ...]:
        return tuple(self._told(token) for token in (*piece.prompt_tokens, *piece.tokens))

    def _told(self, token: ScoredToken) -> TokenLogprob:
        return TokenLogprob(
            token=self._text(token.token_id),
            logprob=token.logprob,
            top=tuple((self._text(token_id), logprob) for token_id, logprob in token.top),
        )

    def _text(self, token: int) -> str:
        if token not in self._token_texts:
            self._token_texts[token] = str(self._tokenizer.decode([token], skip_special_tokens=False))
        return self._token_texts[token]

    def _not_finite(self) -> Refusal:
        return Refusal(
            message=f"the scores of {self._name} for this prompt are not finite; if a fact applies, encode it anew",
            code="not_finite",
            status=500,
        )
