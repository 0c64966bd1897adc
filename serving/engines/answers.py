"""What an engine answers: pieces of generated text as messages, the same whichever engine generates."""

from transformers import PreTrainedTokenizerBase

from recipe_ray.model.decoding_rows import Job, Piece
from recipe_ray.model.decoding_sampling import ScoredToken
from recipe_ray.model.decoding_text import PART, Place, decoder_of
from serving.messages import Chunk, Completion, Refusal, TokenLogprob


class Answers:
    """Makes the answers of one LLM.

    Args:
        name: how messages call it.
        tokenizer: its tokenizer.
    """

    def __init__(self, name: str, tokenizer: PreTrainedTokenizerBase) -> None:
        self._name = name
        self._decode = decoder_of(tokenizer, skip_special_tokens=False)
        self._decode_shown = decoder_of(tokenizer)
        self._token_texts: dict[int, str] = {}

    def completion(self, job: Job, piece: Piece) -> Completion | Refusal:
        """A whole answer."""
        if piece.finish is None or piece.finish == "failed":
            return self._not_finite()
        return Completion(
            text=piece.text,
            logprobs=self._logprobs(piece),
            finish_reason=piece.finish,
            num_prompt_tokens=len(job.prompt_ids),
            num_new_tokens=piece.num_new_tokens,
        )

    def chunk(self, job: Job, piece: Piece) -> Chunk | Refusal:
        """A piece of a streamed answer."""
        if piece.finish == "failed":
            return self._not_finite()
        return Chunk(
            text=piece.text,
            logprobs=self._logprobs(piece),
            finish_reason=piece.finish,
            num_prompt_tokens=len(job.prompt_ids),
            num_new_tokens=piece.num_new_tokens,
        )

    def _logprobs(self, piece: Piece) -> tuple[TokenLogprob, ...]:
        scored = (*piece.prompt_tokens, *piece.tokens)
        return (
            tuple(self._told(token, place) for token, place in zip(scored, piece.places, strict=True)) if scored else ()
        )

    def _told(self, token: ScoredToken, place: Place) -> TokenLogprob:
        text = self._in_place(token.token_id, place)
        return TokenLogprob(
            token=text,
            offset=place.start,
            logprob=token.logprob,
            top=tuple(
                (text if token_id == token.token_id else self._text(token_id), logprob)
                for token_id, logprob in token.top
            ),
        )

    def _in_place(self, token: int, place: Place) -> str:
        by_itself = self._text(token)
        if place.text is None:  # a byte that is a letter by itself may be a part of what is no character
            return by_itself if PART in by_itself else PART
        is_special = not place.text and not self._decode_shown([token, token])
        return by_itself if is_special else place.text

    def _text(self, token: int) -> str:
        """Of a token by itself, with the blank in front of a word that decoders drop where a text begins."""
        if token not in self._token_texts:
            first = self._decode([token])
            # Of parts of a character, two may look like one.
            self._token_texts[token] = first if PART in first else self._decode([token, token])[len(first) :]
        return self._token_texts[token]

    def _not_finite(self) -> Refusal:
        return Refusal(
            message=f"the scores of {self._name} for this prompt are not finite; if a fact applies, encode it anew",
            code="not_finite",
            status=500,
        )
