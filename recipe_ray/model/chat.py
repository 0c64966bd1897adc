"""Token ids of a text or a chat, and where among them a continuous prompt stands."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import jinja2
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from recipe_ray.config import ChatPosition, PromptPosition
from recipe_ray.errors import ModelError
from recipe_ray.model.hub import loading, model_source
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
    """A chat up to where the assistant's answer begins; see `chat_token_ids`.

    Args:
        tokenizer: the LLM's.
        messages: (role, content).
        chat_position: where the continuous prompt stands; before the assistant's turn where no message is the user's.
        position: likewise, where that is as in a text.

    Raises:
        ModelError: the LLM's template does not take these messages.
    """
    ids = chat_token_ids(tokenizer, messages)
    if chat_position == "as_text":
        return Placed(token_ids=ids, start=start_in_text(ids, position, tokenizer.bos_token_id))
    asked = max((place for place, (role, _) in enumerate(messages) if role == "user"), default=None)
    if chat_position == "assistant_turn" or asked is None:
        return Placed(token_ids=ids, start=_num_equal(ids, chat_token_ids(tokenizer, messages, answer=False)))
    # Two chats that differ in these words alone are equal up to them, whatever the template puts before.
    before, behind = messages[:asked], messages[asked + 1 :]
    others = (chat_token_ids(tokenizer, [*before, ("user", words), *behind]) for words in ("?", "A"))
    return Placed(token_ids=ids, start=min(_num_equal(ids, other) for other in others))


def chat_token_ids(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], *, answer: bool = True
) -> list[int]:
    """Token ids of a chat as the LLM's template lays it out.

    A message cannot break out of its turn: control tokens within it are text, or, by transformers before 5.20, refused.
    An LLM without a template, as a base model is, gets a line "role: content" for each message and "assistant:" behind.

    Args:
        tokenizer: the LLM's.
        messages: (role, content).
        answer: with the beginning of the assistant's turn.

    Raises:
        ModelError: the template does not take these messages.
    """
    if not tokenizer.chat_template:
        lines = [f"{role}: {content}" for role, content in messages]
        return cast("list[int]", tokenizer("\n".join([*lines, "assistant:" if answer else ""]))["input_ids"])
    options = {"sanitize_control_tokens": True}
    if "sanitize_control_tokens" not in inspect.signature(tokenizer.apply_chat_template).parameters:
        _refuse_control_tokens(tokenizer, messages)
        options = {}
    try:
        ids: Any = tokenizer.apply_chat_template(
            [{"role": role, "content": content} for role, content in messages],
            add_generation_prompt=answer,
            tokenize=True,
            return_dict=False,
            **options,
        )
    # Templates are programs of the LLM's authors: they object to roles and orders, or fail on what they did not expect.
    except (jinja2.TemplateError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"the LLM's chat template does not take these messages: {reason}") from error
    return [int(token) for token in ids]


def has_chat_template(name: str) -> bool:
    """Whether an LLM's tokenizer lays out chats, from its files alone.

    Raises:
        ModelError: not there, or unreadable.
    """
    return bool(_tokenizer_of(name).chat_template)


def check_chats(name: str) -> None:
    """Refuse an LLM that cannot be trained to be asked in chats.

    Args:
        name: of the LLM, as for `load_llm`.

    Raises:
        ModelError: it has no chat template, or one that fails; or it cannot be loaded.
    """
    tokenizer = _tokenizer_of(name)
    if not tokenizer.chat_template:
        raise ModelError(
            f"llm {name}: has no chat template, so it cannot be asked in chats; set data.chat_share to 0 and leave "
            "'messages' out of the edits, or give an LLM that was made for chats"
        )
    try:
        chat_token_ids(tokenizer, [("user", "Hello."), ("assistant", "Hello."), ("user", "Where?")])
    except ModelError as error:
        raise ModelError(f"llm {name}: {error}; ask it in no chats, or mend the template") from error


def _tokenizer_of(name: str) -> PreTrainedTokenizerBase:
    source = model_source(name, "llm")
    with loading(name, "LLM"):
        return cast(PreTrainedTokenizerBase, AutoTokenizer.from_pretrained(source))


def _refuse_control_tokens(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> None:
    template = str(tokenizer.chat_template)
    for token in tokenizer.added_tokens_decoder.values():
        text = str(token.content)
        is_control = token.special or (text.strip() and text in template)
        if is_control and any(text in content for _, content in messages):
            raise ModelError(f"a message holds {text!r}, a control token of the LLM; leave it out")


def _num_equal(ids: Sequence[int], others: Sequence[int]) -> int:
    """Tokens that two rows begin with alike: a template may lay a turn out differently once another follows."""
    for place, (one, other) in enumerate(zip(ids, others, strict=False)):
        if one != other:
            return place
    return min(len(ids), len(others))
