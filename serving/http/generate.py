"""From a checked request to answers: which facts, which prompts to the engine, and what is counted."""

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from fastapi import Request

from recipe_ray.text import canonical
from serving import errors
from serving.errors import ApiError
from serving.http.access import Caller
from serving.http.answers import Found, Usage, usage
from serving.http.context import ModelEntry, Service, caller_of, service_of
from serving.http.facts_wire import deletion
from serving.http.observe import note_model
from serving.http.sse import merge
from serving.http.wire import MAX_INT64, GenerationBody, RecipeOptions
from serving.keys import Scope
from serving.messages import (
    ChatMessage,
    Chunk,
    Completion,
    Declined,
    Finding,
    GenerationRequest,
    Lookup,
    Refusal,
    Sampling,
)
from serving.observer import EditOutcome

logger = logging.getLogger(__name__)

Prompt = str | tuple[int, ...] | tuple[ChatMessage, ...]

_OUTCOMES: dict[Declined, EditOutcome] = {
    "edits_off": "off",
    "echo": "off",
    "no_query": "off",
    "empty_table": "empty",
    "empty_namespace": "empty",
    "below_sentinel": "below_sentinel",
    "shard_lost": "shard_lost",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A request, checked.

    Attributes:
        namespace: whose facts.
        answer_id: of the whole answer.
        created: seconds since 1970.
        prompts: one or more.
        lookups: one for each prompt, or why nothing is looked up for it.
        n: choices for each prompt.
        started, deadline: by the event loop's clock.
    """

    service: Service
    entry: ModelEntry
    namespace: str
    answer_id: str
    created: int
    prompts: tuple[Prompt, ...]
    lookups: tuple[Lookup | Declined, ...]
    sampling: Sampling
    n: int
    started: float
    deadline: float

    @property
    def num_draws(self) -> int:
        """Generations for each prompt: greedy ones would all be equal."""
        return self.n if self.sampling.temperature > 0 else 1

    def choices_of(self, generation: int) -> range:
        """Indices of the choices that a generation answers, of all choices in the order of prompts."""
        prompt, draw = divmod(generation, self.num_draws)
        first = prompt * self.n + draw
        return range(first, first + self.n // self.num_draws)


def model_of(request: Request, name: str | None, scope: Scope = "infer") -> ModelEntry:
    """The model that a request names, or the first that its key may use.

    Raises:
        ApiError: 403, the key lacks the scope; 404, there is no such model for it.
    """
    caller = caller_of(request)
    caller.check(scope)
    models = {name: entry for name, entry in service_of(request).models.items() if caller.may_use(name)}
    entry = next(iter(models.values()), None) if name is None else models.get(name)
    if entry is None:
        raise errors.model_not_found(name or "", list(models))
    note_model(request, entry.name)
    return entry


def refuse_unsupported(entry: ModelEntry, asked: GenerationBody) -> None:
    """Refuse fields that the model's engine cannot serve.

    Raises:
        ApiError: 400 naming the field.
    """
    for name, reason in entry.unsupported.items():
        value = getattr(asked, name, None)
        if value is not None and value is not False and value != ():
            said = f"'{name}' is not supported by this model: {reason}; leave it out"
            raise ApiError(400, said, param=name, code="unsupported_value")


def make_job(
    request: Request,
    entry: ModelEntry,
    asked: GenerationBody,
    *,
    prefix: str,
    prompts: Sequence[Prompt],
    prompts_field: str,
    queries: Sequence[str | None],
    declined: Declined = "no_query",
    sampling: Sampling,
) -> Job:
    """Check a request against the service's limits.

    Args:
        request: that it came with.
        entry: the model.
        asked: its body.
        prefix: of the answer's id.
        prompts: to complete.
        prompts_field: what the body calls them.
        queries: each prompt's own words to look up, None where it has none; the body may give another for all.
        declined: why a prompt has none.
        sampling: how to decode.

    Raises:
        ApiError: 400 naming the field; 404, the namespace is not one of the key's.
    """
    service, caller = service_of(request), caller_of(request)
    limits, recipe, n = service.limits, asked.recipe or RecipeOptions(), asked.n or 1
    if len(prompts) * n > limits.prompts:
        field = "n" if len(prompts) == 1 else prompts_field
        said = (
            f"asks for {len(prompts) * n} answers (prompts times 'n'); ask for at most {limits.prompts} in one request"
        )
        raise ApiError(400, f"'{field}' {said}", param=field, code="invalid_value")
    length = max(map(_length, prompts))
    if length > limits.prompt_chars:
        said = f"is {length} characters or tokens long, and {limits.prompt_chars} are read; shorten it"
        raise ApiError(400, f"'{prompts_field}' {said}", param=prompts_field, code="context_length_exceeded")
    if sampling.max_tokens is not None and sampling.max_tokens > limits.new_tokens:
        field = "max_completion_tokens" if getattr(asked, "max_completion_tokens", None) else "max_tokens"
        said = f"is {sampling.max_tokens}; this server gives at most {limits.new_tokens}"
        raise ApiError(400, f"'{field}' {said}", param=field, code="invalid_value")
    refuse_unsupported(entry, asked)
    if not recipe.edits:
        queries, declined = [None] * len(prompts), "edits_off"
    elif recipe.query is not None:
        if len(recipe.query) > limits.prompt_chars:
            said = f"is {len(recipe.query)} characters long, and {limits.prompt_chars} are read; shorten it"
            raise ApiError(400, f"'recipe.query' {said}", param="recipe.query", code="invalid_value")
        queries = [recipe.query] * len(prompts)
    namespace = _namespace(caller, entry, recipe, needed=any(query is not None for query in queries))
    now = asyncio.get_running_loop().time()
    return Job(
        service=service,
        entry=entry,
        namespace=namespace,
        answer_id=f"{prefix}-{uuid.uuid4().hex}",
        created=int(time.time()),
        prompts=tuple(prompts),
        lookups=tuple(declined if query is None else _lookup(query, namespace, recipe) for query in queries),
        sampling=sampling,
        n=n,
        started=now,
        deadline=now + limits.timeout_s,
    )


def _length(prompt: Prompt) -> int:
    """In characters, or tokens."""
    if isinstance(prompt, str):
        return len(prompt)
    return sum(len(part.content) if isinstance(part, ChatMessage) else 1 for part in prompt)


def _lookup(query: str, namespace: str, recipe: RecipeOptions) -> Lookup:
    return Lookup(
        query=query,
        namespace=namespace,
        top_k=recipe.top_k,
        snapshot=recipe.snapshot,
        min_snapshot=recipe.min_snapshot,
    )


def _namespace(caller: Caller, entry: ModelEntry, recipe: RecipeOptions, *, needed: bool) -> str:
    """Whose facts; checked before anything is looked up, and where nothing will be only if it was named."""
    if recipe.namespace is not None:
        namespace = deletion("any", recipe.namespace, param="recipe.namespace").namespace  # as the table spells it
        caller.check("infer", namespace, param="recipe.namespace")
        return namespace
    if not needed:
        return entry.namespace
    return caller.default_namespace(entry.namespace, param="recipe.namespace")


def query_of(text: str, num_chars: int) -> str:
    """The end of a text, where its question is: at most `num_chars` characters, from the beginning of a word.

    In canonical form; empty where nothing is to be seen.
    """
    text = canonical(text)
    end = text[-num_chars:]
    if len(text) > num_chars and text[-num_chars - 1] != " ":
        end = end.partition(" ")[2] or end  # the first word is the end of one
    return end.strip()


async def retrieve(job: Job) -> list[Found]:
    """What to apply to each prompt; all of one snapshot.

    Raises:
        ApiError: a query is refused, or the retriever cannot answer.
    """
    lookups = [lookup for lookup in job.lookups if isinstance(lookup, Lookup)]
    findings = iter(await _find(job, lookups) if lookups else [])
    found: list[Found] = [next(findings) if isinstance(lookup, Lookup) else lookup for lookup in job.lookups]
    for of_prompt in found:
        declined = of_prompt.declined if isinstance(of_prompt, Finding) else of_prompt
        job.service.observer.edit(
            model=job.entry.name,
            outcome="applied" if declined is None else _OUTCOMES[declined],
            margin=_margin(of_prompt) if isinstance(of_prompt, Finding) else None,
        )
    return found


async def _find(job: Job, lookups: Sequence[Lookup]) -> list[Finding]:
    started = time.perf_counter()
    answers = await job.entry.backend.find(lookups)
    job.service.observer.retrieval(model=job.entry.name, seconds=time.perf_counter() - started)
    findings = []
    for answer in answers:
        if isinstance(answer, Refusal):
            raise errors.refused(answer)
        findings.append(answer)
    return findings


def _margin(finding: Finding) -> float | None:
    if finding.score is None or finding.sentinel_score is None:
        return None
    return finding.score - finding.sentinel_score


def _generation_requests(job: Job, found: Sequence[Found]) -> list[GenerationRequest]:
    """`num_draws` for each prompt, one after the other."""
    return [
        GenerationRequest(
            request_id=f"{job.answer_id}-{number}-{draw}",
            prompt=prompt,
            virtual_PD=_virtual_PD(of_prompt),
            sampling=replace(job.sampling, seed=_seed(job.sampling, draw)),
        )
        for number, (prompt, of_prompt) in enumerate(zip(job.prompts, found, strict=True))
        for draw in range(job.num_draws)
    ]


def _virtual_PD(found: Found) -> npt.NDArray[np.floating[Any]] | None:
    if not isinstance(found, Finding) or not found.facts:
        return None
    prompts = [fact.prompt_PD for fact in found.facts]
    return prompts[0] if len(prompts) == 1 else np.concatenate(prompts)


def _seed(sampling: Sampling, draw: int) -> int | None:
    """Not negative, which not every generator of random numbers takes."""
    return None if sampling.seed is None else (sampling.seed + draw) & MAX_INT64


@contextlib.asynccontextmanager
async def _in_time(job: Job) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout_at(job.deadline):
            yield
    except TimeoutError as error:
        raise errors.timed_out(job.service.limits.timeout_s) from error


async def complete(job: Job) -> tuple[list[tuple[Found, Completion]], Usage]:
    """Every choice, prompt by prompt, and what was counted.

    Raises:
        ApiError: a part refuses, cannot answer, or takes too long.
    """
    async with _in_time(job):
        found = await retrieve(job)
        started = time.perf_counter()
        answers = await job.entry.backend.complete(_generation_requests(job, found))
        seconds = time.perf_counter() - started
    choices: list[tuple[Found, Completion]] = []
    num_prompt = num_new = 0
    completions = []
    for generation, answer in enumerate(answers):
        if isinstance(answer, Refusal):
            raise errors.refused(answer)
        completions.append(answer)
        prompt, draw = divmod(generation, job.num_draws)
        copies = len(job.choices_of(generation))
        choices += [(found[prompt], answer)] * copies
        num_prompt += answer.num_prompt_tokens if draw == 0 else 0
        num_new += answer.num_new_tokens * copies
    for answer in completions:
        job.service.observer.tokens(
            model=job.entry.name, num_prompt=answer.num_prompt_tokens, num_new=answer.num_new_tokens, seconds=seconds
        )
    return choices, usage(num_prompt, num_new)


class Stream:
    """The pieces of all choices as they come.

    Attributes:
        usage: so far; a prompt's tokens are counted once, however many choices it has.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._last: dict[int, Chunk] = {}

    async def pieces(self) -> AsyncGenerator[tuple[int, Found, Chunk], None]:
        """Index of the choice, what is applied to it, and what is new of it.

        Raises:
            ApiError: a part refuses, cannot answer, or takes too long.
        """
        job, observer, model = self._job, self._job.service.observer, self._job.entry.name
        async with _in_time(job):
            found = await retrieve(job)
        sources = [job.entry.backend.stream(request) for request in _generation_requests(job, found)]
        started = time.perf_counter()
        try:
            async with contextlib.aclosing(merge(sources, deadline=job.deadline)) as chunks:
                async for generation, chunk in chunks:
                    if isinstance(chunk, Refusal):
                        raise errors.refused(chunk)
                    if chunk.num_new_tokens and not any(last.num_new_tokens for last in self._last.values()):
                        now = asyncio.get_running_loop().time()
                        observer.first_token(model=model, seconds=now - job.started)
                    self._last[generation] = chunk
                    for index in job.choices_of(generation):
                        yield index, found[generation // job.num_draws], chunk
            if len(self._last) < len(sources) or not all(last.finish_reason for last in self._last.values()):
                logger.error("an engine's stream ended before its answer did")
                raise errors.failed()
        except TimeoutError as error:
            raise errors.timed_out(job.service.limits.timeout_s) from error
        finally:
            seconds = time.perf_counter() - started
            for last in self._last.values():
                observer.tokens(
                    model=model, num_prompt=last.num_prompt_tokens, num_new=last.num_new_tokens, seconds=seconds
                )

    @property
    def usage(self) -> Usage:
        """See the class."""
        num_prompt = sum(
            last.num_prompt_tokens for generation, last in self._last.items() if generation % self._job.num_draws == 0
        )
        num_new = sum(
            last.num_new_tokens * len(self._job.choices_of(generation)) for generation, last in self._last.items()
        )
        return usage(num_prompt, num_new)
