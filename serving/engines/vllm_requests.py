"""Requests as vLLM takes them, and what it would not survive, or not notice, refused before it sees it.

Shape letters: T tokens of a prompt with its virtual ones, P virtual tokens, D LLM width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from recipe_ray.errors import EditorError
from recipe_ray.model.decoding_rows import Job
from recipe_ray.model.llm import check_prompt_width
from serving.engines.prompts import Layout, job_of, new_tokens_of
from serving.messages import GenerationRequest, Refusal

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


def mixed_prompt(token_ids: Sequence[int], virtual_PD: Tensor, *, start: int) -> MixedPrompt:
    """Put virtual tokens behind the first `start` tokens of a prompt."""
    end = start + len(virtual_PD)
    ids = [*token_ids[:start], *[PLACEHOLDER] * len(virtual_PD), *token_ids[start:]]
    is_token = [True] * len(ids)
    is_token[start:end] = [False] * len(virtual_PD)
    embeds_TD = virtual_PD.new_zeros(len(ids), virtual_PD.shape[1])
    embeds_TD[start:end] = virtual_PD
    return MixedPrompt(ids, is_token, embeds_TD)


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """Makes jobs of requests.

    Attributes:
        layout: of prompts; one thread at a time uses its tokenizer.
        max_length: context in tokens, virtual tokens and answer included.
        width: D.
        dtype: of the embeddings.
    """

    layout: Layout
    max_length: int
    width: int
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
        placed = self.layout.place(request)
        if isinstance(placed, Refusal):
            return placed
        virtual_PD = request.virtual_PD
        if virtual_PD is not None:
            if (refusal := self._refuse_virtual(virtual_PD)) is not None:
                return refusal
            virtual_PD = virtual_PD.astype(np.float32) if len(virtual_PD) else None
        num_new = new_tokens_of(
            request,
            num_prompt=len(placed.token_ids),
            num_virtual=0 if virtual_PD is None else len(virtual_PD),
            max_length=self.max_length,
            limit=f"the context of {self.layout.name} is",
        )
        if isinstance(num_new, Refusal):
            return num_new
        return job_of(request, placed, virtual_PD, max_new_tokens=num_new, stream=stream)

    def _refuse_virtual(self, given: np.ndarray) -> Refusal | None:
        """Another width kills vLLM, and what is not finite passes unseen."""
        if given.ndim != 2 or not np.issubdtype(given.dtype, np.floating):
            return _unusable(f"virtual tokens are {given.dtype} of shape {given.shape}; give floats of two dimensions")
        try:
            check_prompt_width(self.layout.name, self.width, given.shape[1])
        except EditorError as error:
            return _unusable(str(error))
        if not bool(torch.from_numpy(given.astype(np.float32)).to(self.dtype).isfinite().all()):
            return _unusable(f"virtual tokens hold values that are not finite in {self.dtype}; encode the fact anew")
        return None


def _unusable(message: str) -> Refusal:
    # No fault of the client's: the table and the LLM do not go together.
    return Refusal(message=message, code="edit_unusable", status=500)
