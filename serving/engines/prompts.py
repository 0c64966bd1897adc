"""What an engine makes of a request before the LLM sees it: token ids, room for an answer, usable virtual tokens.

Shape letters: P virtual tokens, D LLM width.
"""

from dataclasses import dataclass
from typing import Any, TypeGuard, cast

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerBase

from recipe_ray.config import ChatPosition, PromptPosition
from recipe_ray.errors import EditorError, ModelError
from recipe_ray.model.chat import Placed, place_chat, place_text
from recipe_ray.model.decoding_rows import NO_ECHO, Echo, Job
from recipe_ray.model.llm import FrozenLLM
from recipe_ray.model.prefix import start_in_text
from serving.engines.protocol import DEFAULT_MAX_CHAT_TOKENS, DEFAULT_MAX_TOKENS
from serving.messages import ChatMessage, GenerationRequest, Refusal

Prompt = str | tuple[int, ...] | tuple[ChatMessage, ...]


def is_chat(prompt: Prompt) -> TypeGuard[tuple[ChatMessage, ...]]:
    """Whether a prompt is a chat."""
    return not isinstance(prompt, str) and bool(prompt) and isinstance(prompt[0], ChatMessage)


def field_of(prompt: Prompt) -> str:
    """How the HTTP interface calls it."""
    return "messages" if is_chat(prompt) else "prompt"


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How the prompts of one LLM become token ids, as in its editor's training.

    Attributes:
        name: of the LLM, for messages.
        tokenizer: its tokenizer.
        vocabulary: token ids are below.
        position, chat_position: where the virtual tokens of edits stand, in a text and in a chat.
    """

    name: str
    tokenizer: PreTrainedTokenizerBase
    vocabulary: int
    position: PromptPosition = "first"
    chat_position: ChatPosition = "as_text"

    def place(self, request: GenerationRequest) -> Placed | Refusal:
        """Token ids of a prompt in any form, at least one, and where among them virtual tokens stand."""
        prompt = request.prompt
        if isinstance(prompt, str):
            placed = place_text(self.tokenizer, prompt, self.position)
        elif is_chat(prompt):
            messages = [(message.role, message.content) for message in prompt]
            # To find the place in the middle of a chat takes three layouts of it.
            chat_position = "as_text" if request.virtual_PD is None else self.chat_position
            try:
                placed = place_chat(self.tokenizer, messages, chat_position, self.position)
            except ModelError as error:
                return Refusal(message=str(error), code="invalid_messages", param="messages")
        else:
            ids = cast("tuple[int, ...]", prompt)
            if wrong := [token for token in ids if not 0 <= token < self.vocabulary]:
                return Refusal(
                    message=f"'prompt' has the token id {wrong[0]}, but those of {self.name} are 0 to "
                    f"{self.vocabulary - 1}",
                    code="invalid_token",
                    param="prompt",
                )
            placed = Placed(token_ids=ids, start=start_in_text(ids, self.position, self.tokenizer.bos_token_id))
        if not placed.token_ids:
            return Refusal(message="'prompt' has no tokens; give text to complete", code="empty_prompt", param="prompt")
        return placed


def virtual_tokens_of(llm: FrozenLLM, request: GenerationRequest) -> npt.NDArray[np.float32] | Refusal | None:
    """Virtual tokens [P, D] that the LLM can take; None for the unedited LLM."""
    given = request.virtual_PD
    if given is None or len(given) == 0:
        return None
    if given.ndim != 2 or not np.issubdtype(given.dtype, np.floating):
        return _unusable(f"virtual tokens are {given.dtype} of shape {given.shape}; give floats of two dimensions")
    try:
        llm.check_prompt_width(given.shape[1])
    except EditorError as error:
        return _unusable(str(error))
    virtual_PD = given.astype(np.float32)
    if not np.isfinite(virtual_PD).all():
        return _unusable("virtual tokens hold values that are not finite; encode the fact anew")
    return virtual_PD


def new_tokens_of(
    request: GenerationRequest, *, num_prompt: int, num_virtual: int, max_length: int, limit: str
) -> int | Refusal:
    """How many new tokens to allow: what was asked for or nothing, or a default that takes what is left.

    Args:
        request: what was asked.
        num_prompt: tokens of the prompt.
        num_virtual: virtual tokens.
        max_length: tokens of prompt, virtual tokens and answer together.
        limit: what sets it, as a sentence begins.
    """
    field, asked = field_of(request.prompt), request.sampling.max_tokens
    if asked == 0 and not request.sampling.echo:
        return Refusal(
            message="'max_tokens' is 0; give 1 or more, or set 'echo'", code="invalid_value", param="max_tokens"
        )
    least = 1 if asked is None else asked
    left = max_length - num_prompt - num_virtual
    if left < least:
        return Refusal(
            message=f"{limit} {max_length} tokens, but '{field}' has {num_prompt}, the edit {num_virtual} and the "
            f"completion {least}; shorten '{field}' or lower 'max_tokens'",
            code="context_length_exceeded",
            param=field,
        )
    if asked is not None:
        return asked
    return min(DEFAULT_MAX_CHAT_TOKENS if is_chat(request.prompt) else DEFAULT_MAX_TOKENS, left)


def _unusable(message: str) -> Refusal:
    # No fault of the client's: the table and the LLM do not go together.
    return Refusal(message=message, code="edit_unusable", status=500)


def job_of(
    request: GenerationRequest,
    placed: Placed,
    virtual_PD: npt.NDArray[np.floating[Any]] | None,
    *,
    max_new_tokens: int,
    stream: bool,
    echo: Echo = NO_ECHO,
) -> Job:
    """The work that a request is, once its prompt is tokens and there is room for them."""
    sampling = request.sampling
    return Job(
        prompt_ids=placed.token_ids,
        start=placed.start,
        max_new_tokens=max_new_tokens,
        virtual_PD=virtual_PD,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        seed=sampling.seed,
        stop=sampling.stop,
        logprobs=sampling.logprobs,
        prompt_logprobs=sampling.echo and sampling.logprobs is not None,
        echo=echo,
        stream=stream,
        continues=not is_chat(request.prompt),
        ignore_eos=sampling.ignore_eos,
    )
