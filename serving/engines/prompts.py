"""What an engine makes of a request before the LLM sees it: token ids, room for an answer, usable virtual tokens.

Shape letters: P virtual tokens, D LLM width.
"""

from collections.abc import Sequence
from typing import Any, TypeGuard, cast

import jinja2
import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerBase

from recipe_ray.errors import EditorError
from recipe_ray.model.decoding_rows import NO_ECHO, Echo, Job
from recipe_ray.model.llm import FrozenLLM
from serving.engines.protocol import DEFAULT_MAX_CHAT_TOKENS, DEFAULT_MAX_TOKENS
from serving.messages import ChatMessage, GenerationRequest, Refusal

Prompt = str | tuple[int, ...] | tuple[ChatMessage, ...]


def is_chat(prompt: Prompt) -> TypeGuard[tuple[ChatMessage, ...]]:
    """Whether a prompt is a chat."""
    return not isinstance(prompt, str) and bool(prompt) and isinstance(prompt[0], ChatMessage)


def field_of(prompt: Prompt) -> str:
    """How the HTTP interface calls it."""
    return "messages" if is_chat(prompt) else "prompt"


def token_ids_of(llm: FrozenLLM, prompt: Prompt) -> list[int] | Refusal:
    """Token ids of a prompt in any form, at least one."""
    ids: list[int] | Refusal
    if isinstance(prompt, str):
        ids = llm.tokenize(prompt)
    elif is_chat(prompt):
        ids = chat_token_ids(llm.tokenizer, prompt, name=llm.name)
    else:
        ids = list(cast("tuple[int, ...]", prompt))
        vocabulary = int(llm.model.config.get_text_config().vocab_size)
        for token in ids:
            if not 0 <= token < vocabulary:
                return Refusal(
                    message=f"'prompt' has the token id {token}, but those of {llm.name} are 0 to {vocabulary - 1}",
                    code="invalid_token",
                    param="prompt",
                )
    if isinstance(ids, list) and not ids:
        return Refusal(message="'prompt' has no tokens; give text to complete", code="empty_prompt", param="prompt")
    return ids


def chat_token_ids(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[ChatMessage], *, name: str
) -> list[int] | Refusal:
    """A chat as the LLM's template lays it out, up to where the assistant's answer begins.

    A message cannot break out of its turn: control tokens within it are text. An LLM without a template, as a base
    model is, gets a line "role: content" for each message and "assistant:" at the end.
    """
    if not tokenizer.chat_template:
        lines = [f"{message.role}: {message.content}" for message in messages]
        return cast("list[int]", tokenizer("\n".join([*lines, "assistant:"]))["input_ids"])
    try:
        ids: Any = tokenizer.apply_chat_template(
            [{"role": message.role, "content": message.content} for message in messages],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=False,
            sanitize_control_tokens=True,
        )
    # Templates are programs of the LLM's authors: they object to roles and orders, or fail on what they did not expect.
    except (jinja2.TemplateError, TypeError, ValueError) as error:
        return Refusal(
            message=f"the chat template of {name} does not take these messages: {error}",
            code="invalid_messages",
            param="messages",
        )
    return [int(token) for token in ids]


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
    token_ids: Sequence[int],
    virtual_PD: npt.NDArray[np.floating[Any]] | None,
    *,
    max_new_tokens: int,
    stream: bool,
    echo: Echo = NO_ECHO,
) -> Job:
    """The work that a request is, once its prompt is tokens and there is room for them."""
    sampling = request.sampling
    return Job(
        prompt_ids=token_ids,
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
