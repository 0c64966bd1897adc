"""The prompt as an answer begins with it, and where its tokens stand in it."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from recipe_ray.model.decoding_rows import Echo
from recipe_ray.model.decoding_text import Place, decoder_of, followed
from serving.engines.prompts import Prompt


def echo_of(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, token_ids: Sequence[int], *, with_places: bool) -> Echo:
    """A text as it was given; token ids as they are decoded, without special tokens.

    Args:
        tokenizer: of the LLM.
        prompt: as given.
        token_ids: of it, those included that the tokenizer adds.
        with_places: whether anybody asks for them.
    """
    if isinstance(prompt, str) and not with_places:
        return Echo(prompt)
    stream = followed(decoder_of(tokenizer), [], token_ids)
    if not isinstance(prompt, str) or prompt == stream.text:
        return Echo(stream.text, tuple(stream.places))
    return Echo(prompt, tuple(_aligned(tokenizer, prompt, token_ids, stream.places)))


def _aligned(
    tokenizer: PreTrainedTokenizerBase, prompt: str, token_ids: Sequence[int], places: Sequence[Place]
) -> list[Place]:
    """Places in a text of which the tokens say another: it was normalised, or names special tokens.

    Args:
        tokenizer: of the LLM.
        prompt: the text.
        token_ids: of it.
        places: in what the tokens say.
    """
    spans = _spans(tokenizer, prompt, token_ids)
    if spans is None:
        return [Place(min(place.start, len(prompt)), place.text) for place in places]
    aligned: list[Place] = []
    end = 0  # of the tokens so far
    for place, (begin, until) in zip(places, spans, strict=True):
        aligned.append(_in_text(prompt, place.text, begin, until, end))
        end = max(end, until)
    return aligned


def _in_text(prompt: str, said: str | None, begin: int, until: int, end: int) -> Place:
    """Place of a token that says a text, made of a span of the prompt, behind tokens that end at `end`."""
    if said:
        # Some tokenizers leave the blank in front of a word out of its span.
        for start in (end, until - len(said)):
            if end <= start and prompt.startswith(said, start):
                return Place(start, said)
    if begin == until:  # not of the text
        return Place(end, "")
    return Place(begin, None if said is None else prompt[begin:until])


def _spans(tokenizer: PreTrainedTokenizerBase, prompt: str, token_ids: Sequence[int]) -> list[tuple[int, int]] | None:
    """What of the text each token is made of, where the tokenizer can tell."""
    if not tokenizer.is_fast:
        return None
    encoded = tokenizer(prompt, return_offsets_mapping=True)
    return encoded["offset_mapping"] if encoded["input_ids"] == list(token_ids) else None
