"""Requests as vLLM takes them, and what it would not survive, or not notice, refused before it sees it.

Shape letters: T tokens of a prompt with its virtual ones, P virtual tokens, D LLM width.
"""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from recipe_ray.config import PromptPosition
from recipe_ray.errors import EditorError
from recipe_ray.model.decoding_rows import Job
from recipe_ray.model.llm import check_prompt_width
from serving.engines.prompts import Prompt, chat_token_ids, is_chat, job_of, new_tokens_of
from serving.messages import ChatMessage, GenerationRequest, Refusal

UNSUPPORTED: Mapping[str, str] = MappingProxyType(
    {
        "echo": "vLLM gives no log-probabilities of a prompt that facts are applied to; leave 'echo' out, "
        "or ask a model that the engine transformers serves",
    }
)
MAX_LOGPROBS = 20  # of OpenAI's chat
PLACEHOLDER = 0  # token id where a virtual token stands


class MixedPrompt(NamedTuple):
    """A prompt of tokens and virtual tokens.

    Attributes:
        ids: T token ids, PLACEHOLDER where a virtual token stands.
        is_token: T times whether the token id counts, or the embedding.
        embeds_TD: embeddings, zeros where the token id counts.
    """

    ids: list[int]
    is_token: list[bool]
    embeds_TD: Tensor


def mixed_prompt(
    token_ids: Sequence[int], virtual_PD: Tensor, *, position: PromptPosition, bos_token_id: int | None
) -> MixedPrompt:
    """Put virtual tokens among a prompt's, where `recipe_ray.model.prefix.pad_rows` puts them."""
    lead = 1 if position == "after_bos" and token_ids and token_ids[0] == bos_token_id else 0
    num_virtual = len(virtual_PD)
    ids = [*token_ids[:lead], *[PLACEHOLDER] * num_virtual, *token_ids[lead:]]
    is_token = [True] * len(ids)
    is_token[lead : lead + num_virtual] = [False] * num_virtual
    embeds_TD = virtual_PD.new_zeros(len(ids), virtual_PD.shape[1])
    embeds_TD[lead : lead + num_virtual] = virtual_PD
    return MixedPrompt(ids, is_token, embeds_TD)


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """Makes jobs of requests.

    Attributes:
        name: of the LLM, for messages.
        tokenizer: its tokenizer; one thread at a time uses it.
        max_length: context in tokens, virtual tokens and answer included.
        width: D.
        vocabulary: token ids are below.
        dtype: of the embeddings.
    """

    name: str
    tokenizer: PreTrainedTokenizerBase
    max_length: int
    width: int
    vocabulary: int
    dtype: torch.dtype

    def admit(self, request: GenerationRequest, *, stream: bool) -> Job | Refusal:
        """A job, or why not."""
        sampling = request.sampling
        if sampling.echo:
            return Refusal(message=f"'echo' is not served: {UNSUPPORTED['echo']}", code="unsupported", param="echo")
        if sampling.logprobs is not None and sampling.logprobs > MAX_LOGPROBS:
            return Refusal(
                message=f"'logprobs' is {sampling.logprobs}; give {MAX_LOGPROBS} or less",
                code="invalid_value",
                param="logprobs",
            )
        ids = self._token_ids(request.prompt)
        if isinstance(ids, Refusal):
            return ids
        virtual_PD = request.virtual_PD
        if virtual_PD is not None:
            if (refusal := self._refuse_virtual(virtual_PD)) is not None:
                return refusal
            virtual_PD = virtual_PD.astype(np.float32) if len(virtual_PD) else None
        num_new = new_tokens_of(
            request,
            num_prompt=len(ids),
            num_virtual=0 if virtual_PD is None else len(virtual_PD),
            max_length=self.max_length,
            limit=f"the context of {self.name} is",
        )
        if isinstance(num_new, Refusal):
            return num_new
        return job_of(request, ids, virtual_PD, max_new_tokens=num_new, stream=stream)

    def _token_ids(self, prompt: Prompt) -> list[int] | Refusal:
        ids: list[int] | Refusal
        if isinstance(prompt, str):
            ids = cast("list[int]", self.tokenizer(prompt)["input_ids"])
        elif is_chat(prompt):
            ids = self._chat(prompt)
        else:
            ids = list(cast("tuple[int, ...]", prompt))
            if wrong := [token for token in ids if not 0 <= token < self.vocabulary]:
                return Refusal(
                    message=f"'prompt' has the token id {wrong[0]}, but those of {self.name} are 0 to "
                    f"{self.vocabulary - 1}",
                    code="invalid_token",
                    param="prompt",
                )
        if isinstance(ids, list) and not ids:
            return Refusal(message="'prompt' has no tokens; give text to complete", code="empty_prompt", param="prompt")
        return ids

    def _chat(self, messages: tuple[ChatMessage, ...]) -> list[int] | Refusal:
        """As the LLM's template lays it out; a message that could end its turn is refused where it would be obeyed."""
        if not _sanitizes(self.tokenizer):
            for message in messages:
                if (control := self._control_token(message.content)) is not None:
                    return Refusal(
                        message=f"a message holds {control!r}, a control token of {self.name}; leave it out",
                        code="invalid_messages",
                        param="messages",
                    )
        return chat_token_ids(self.tokenizer, messages, name=self.name)

    def _control_token(self, text: str) -> str | None:
        template = str(self.tokenizer.chat_template or "")
        for token in self.tokenizer.added_tokens_decoder.values():
            if token.content in text and (token.special or (token.content.strip() and token.content in template)):
                return str(token.content)
        return None

    def _refuse_virtual(self, given: np.ndarray) -> Refusal | None:
        """Another width kills vLLM, and what is not finite passes unseen."""
        if given.ndim != 2 or not np.issubdtype(given.dtype, np.floating):
            return _unusable(f"virtual tokens are {given.dtype} of shape {given.shape}; give floats of two dimensions")
        try:
            check_prompt_width(self.name, self.width, given.shape[1])
        except EditorError as error:
            return _unusable(str(error))
        if not bool(torch.from_numpy(given.astype(np.float32)).to(self.dtype).isfinite().all()):
            return _unusable(f"virtual tokens hold values that are not finite in {self.dtype}; encode the fact anew")
        return None


def _sanitizes(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether chats can be laid out with control tokens in messages as text: transformers before 5.20 cannot."""
    return "sanitize_control_tokens" in inspect.signature(tokenizer.apply_chat_template).parameters


def _unusable(message: str) -> Refusal:
    # No fault of the client's: the table and the LLM do not go together.
    return Refusal(message=message, code="edit_unusable", status=500)
