"""Token ids of a text or a chat, and where among them a continuous prompt stands."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from transformers import PreTrainedTokenizerBase

from recipe_ray.config import ChatPosition, PromptPosition
from recipe_ray.errors import ModelError
from recipe_ray.model.prefix import start_in_text

Message = tuple[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """What the LLM reads.

    Attributes:
        token_ids: of the whole, BOS included where the tokenizer or the template adds one.
        start: tokens before the continuous prompt.
    """

    token_ids: Sequence[int]
    start: int


def place_text(tokenizer: PreTrainedTokenizerBase, text: str, position: PromptPosition) -> Placed:
    """A text to go on with."""
    ids = cast("list[int]", tokenizer(text)["input_ids"])
    return Placed(token_ids=ids, start=start_in_text(ids, position, tokenizer.bos_token_id))


def place_chat(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    chat_position: ChatPosition,
    position: PromptPosition,
) -> Placed:
    """A chat as the LLM's template lays it out, up to where the assistant's answer begins.

    A message cannot break out of its turn: control tokens within it are text.

    Args:
        tokenizer: the LLM's.
        messages: (role, content), the last one of the user.
        chat_position: where the continuous prompt stands.
        position: likewise, where that is as in a text.

    Raises:
        ModelError: the LLM has no chat template.
        jinja2.TemplateError, TypeError, ValueError: its template does not take these messages.
    """
    ids = chat_token_ids(tokenizer, messages)
    if chat_position == "as_text":
        return Placed(token_ids=ids, start=start_in_text(ids, position, tokenizer.bos_token_id))
    if chat_position == "assistant_turn":
        return Placed(token_ids=ids, start=_num_equal(ids, chat_token_ids(tokenizer, messages, answer=False)))
    # Two chats that differ in these words alone are equal up to them, whatever the template puts before.
    others = (chat_token_ids(tokenizer, [*messages[:-1], ("user", words)]) for words in ("?", "A"))
    return Placed(token_ids=ids, start=min(_num_equal(ids, other) for other in others))


def chat_token_ids(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], *, answer: bool = True
) -> list[int]:
    """Token ids of a chat, with the beginning of the assistant's turn unless `answer` is off."""
    if not tokenizer.chat_template:
        raise ModelError("the LLM's tokenizer has no chat template; give an LLM that was made for chats")
    ids: Any = tokenizer.apply_chat_template(
        [{"role": role, "content": content} for role, content in messages],
        add_generation_prompt=answer,
        tokenize=True,
        return_dict=False,
        sanitize_control_tokens=True,
    )
    return [int(token) for token in ids]


def _num_equal(ids: Sequence[int], others: Sequence[int]) -> int:
    """Tokens that two rows begin with alike: a template may lay a turn out differently once another follows."""
    for place, (one, other) in enumerate(zip(ids, others, strict=False)):
        if one != other:
            return place
    return min(len(ids), len(others))
