"""The generation engine: the frozen LLM, with prompts of concurrent requests completed in one batch."""

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ray import serve

from recipe_ray.config import PromptPosition
from serving.messages import Completion, Edit, Prompt, Refusal

if TYPE_CHECKING:
    from recipe_ray.model.llm import FrozenLLM

DEFAULT_MAX_TOKENS = 16  # of OpenAI's completions


class CompletionEngine:
    """Greedy completion, edited and unedited prompts side by side."""

    def __init__(self, llm: "FrozenLLM") -> None:
        self._llm = llm

    def complete(self, prompts: Sequence[Prompt]) -> list[Completion | Refusal]:
        """Complete prompts, or say of each why not.

        The LLM runs a batch with one length and one set of stop texts, so prompts are grouped by them.
        """
        answers: dict[int, Completion | Refusal] = {}
        groups: dict[tuple[int, tuple[str, ...]], list[int]] = {}
        for place, prompt in enumerate(prompts):
            room = self._room_for(prompt)
            if isinstance(room, Refusal):
                answers[place] = room
            else:
                groups.setdefault((room, prompt.stop), []).append(place)
        for (max_tokens, stop), places in groups.items():
            alike = self._complete_alike([prompts[place] for place in places], max_tokens, stop)
            answers.update(zip(places, alike, strict=True))
        return [answers[place] for place in range(len(prompts))]

    def _room_for(self, prompt: Prompt) -> int | Refusal:
        """How many new tokens to allow: what was asked for or nothing, or a default that takes what is left."""
        num_tokens = self._llm.count_tokens(prompt.text)
        num_virtual = 0 if prompt.edit is None else len(prompt.edit.prompt_PD)
        asked = prompt.max_tokens or 1
        if num_tokens == 0:
            return Refusal(message="'prompt' has no tokens; give text to complete", code="empty_prompt")
        if num_tokens + num_virtual + asked > self._llm.max_length:
            return Refusal(
                message=f"the context of {self._llm.name} is {self._llm.max_length} tokens, but 'prompt' has "
                f"{num_tokens}, the edit {num_virtual} and the completion {asked}; "
                "shorten 'prompt' or lower 'max_tokens'",
                code="context_length_exceeded",
            )
        return prompt.max_tokens or min(DEFAULT_MAX_TOKENS, self._llm.max_length - num_tokens - num_virtual)

    def _complete_alike(self, prompts: list[Prompt], max_tokens: int, stop: tuple[str, ...]) -> list[Completion]:
        edits = [prompt.edit for prompt in prompts]
        generations = self._llm.generate(
            [prompt.text for prompt in prompts],
            [None if edit is None else edit.prompt_PD for edit in edits],
            max_new_tokens=max_tokens,
            position=_position(edits),
            stop=stop,
        )
        return [
            Completion(
                text=generation.text,
                finish_reason=generation.finish_reason,
                num_prompt_tokens=generation.num_prompt_tokens,
                num_new_tokens=len(generation.token_ids),
            )
            for generation in generations
        ]


def _position(edits: Sequence[Edit | None]) -> PromptPosition:
    positions = {edit.position for edit in edits if edit is not None}
    assert len(positions) <= 1, f"edits of two editors in one batch: {positions}"
    return positions.pop() if positions else "first"


class EngineDeployment:
    """Holds the LLM; batches prompts of concurrent requests, one batch at a time."""

    def __init__(self, *, llm: str, device: str, max_batch_size: int, batch_wait_s: float) -> None:
        # Here, not above: of the replicas only those that hold a model need to load what reads one.
        from recipe_ray.model.llm import load_llm

        self._engine = CompletionEngine(load_llm(llm, device))
        batched = serve.batch(max_batch_size=max_batch_size, batch_wait_timeout_s=batch_wait_s)
        self._complete_batch = batched(self._complete_together)

    async def complete(self, prompt: Prompt) -> Completion | Refusal:
        """See `CompletionEngine.complete`."""
        return await self._complete_batch(prompt)

    async def _complete_together(self, prompts: list[Prompt]) -> list[Completion | Refusal]:
        # One thread at a time uses the tokenizer and the LLM; the loop stays free to gather the next batch.
        return await asyncio.to_thread(self._engine.complete, prompts)
