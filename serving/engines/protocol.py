"""What an engine offers, whatever runs the LLM."""

from collections.abc import AsyncIterator, Mapping
from typing import Protocol

from serving.messages import Chunk, Completion, GenerationRequest, Refusal

DEFAULT_MAX_TOKENS = 16  # of OpenAI's completions
DEFAULT_MAX_CHAT_TOKENS = 256


class Engine(Protocol):
    """A frozen LLM that completes concurrent requests in one batch, which they join and leave between two tokens.

    Attributes:
        unsupported: fields of a request that it cannot serve, with the reason.
    """

    unsupported: Mapping[str, str]

    async def complete(self, request: GenerationRequest) -> Completion | Refusal:
        """Complete a prompt; cancelling the call stops the work on it."""

    def stream(self, request: GenerationRequest) -> AsyncIterator[Chunk | Refusal]:
        """Complete a prompt piece by piece; closing the iterator stops the work on it.

        The last chunk alone has a `finish_reason`. A refusal is the last thing that the iterator gives, and the only
        one but where the engine fails midway.
        """

    async def warm_up(self) -> None:
        """Answer a short edited and a short unedited request, so that the first user does not wait for what is lazy."""

    def check_health(self) -> None:
        """Nothing where the engine can answer.

        Raises:
            ServiceError: it has died, and why.
        """

    def close(self) -> None:
        """Stop; what is unanswered fails."""
