"""`POST /v1/completions`."""

import contextlib
from collections.abc import AsyncGenerator

from fastapi import APIRouter, Request, Response

from serving.http import sse
from serving.http.answers import CompletionAnswer, CompletionChoice, completion_logprobs, recipe_answer
from serving.http.generate import Job, Stream, complete, make_job, model_of, query_of
from serving.http.openapi import JSON, STREAM
from serving.http.strict import StrictRoute
from serving.http.wire import CompletionRequest
from serving.messages import Sampling

router = APIRouter(prefix="/v1", tags=["inference"], route_class=StrictRoute)


@router.post("/completions", response_model=CompletionAnswer, responses={200: STREAM})
async def create_completion(request: Request, body: CompletionRequest) -> Response:
    """Complete prompts, each with the facts that it is about.

    Facts are looked up by the end of each prompt's text, or by `recipe.query`, for each prompt of a list by itself;
    token ids and echoed prompts have no words to look up and are completed unedited without it. With `stream` the
    answer is server-sent events of the same shape.
    """
    job = _job(request, body)
    if body.stream:
        include_usage = body.stream_options is not None and bool(body.stream_options.include_usage)
        return await sse.stream(request, _events(job, include_usage=include_usage), deadline=job.deadline)
    choices, usage = await sse.unless_left(request, complete(job))
    answer = CompletionAnswer(
        id=job.answer_id,
        object="text_completion",
        created=job.created,
        model=job.entry.name,
        choices=[
            CompletionChoice(
                index=index,
                text=completion.text,
                logprobs=None if job.sampling.logprobs is None else completion_logprobs(completion.logprobs),
                finish_reason=completion.finish_reason,
                recipe=recipe_answer(found),
            )
            for index, (found, completion) in enumerate(choices)
        ],
        usage=usage,
    )
    return Response(answer.model_dump_json(), media_type=JSON)


def _job(request: Request, body: CompletionRequest) -> Job:
    entry = model_of(request, body.model)
    return make_job(
        request,
        entry,
        body,
        prefix="cmpl",
        prompts=body.prompt,
        prompts_field="prompt",
        queries=[None if body.echo else _query(prompt, entry.query_chars) for prompt in body.prompt],
        # A prompt to score holds its answer, which would give the fact away (paper section 4.2).
        declined="echo" if body.echo else "no_query",
        sampling=Sampling(
            max_tokens=body.max_tokens,
            temperature=body.temperature or 0.0,
            top_p=1.0 if body.top_p is None else body.top_p,
            seed=body.seed,
            stop=body.stop,
            ignore_eos=bool(body.ignore_eos),
            logprobs=body.logprobs,
            echo=bool(body.echo),
        ),
    )


def _query(prompt: str | tuple[int, ...], query_chars: int) -> str | None:
    return query_of(prompt, query_chars) or None if isinstance(prompt, str) else None


async def _events(job: Job, *, include_usage: bool) -> AsyncGenerator[bytes, None]:
    chunk = CompletionAnswer(
        id=job.answer_id, object="text_completion", created=job.created, model=job.entry.name, choices=[]
    )
    if include_usage:
        chunk.usage = None  # told as null until the end
    stream = Stream(job)
    begun: set[int] = set()
    async with contextlib.aclosing(stream.pieces()) as pieces:
        async for index, found, piece in pieces:
            is_first = index not in begun
            if not (is_first or piece.text or piece.logprobs or piece.finish_reason):
                continue
            begun.add(index)
            choice = CompletionChoice(
                index=index,
                text=piece.text,
                logprobs=None if job.sampling.logprobs is None else completion_logprobs(piece.logprobs),
                finish_reason=piece.finish_reason,
            )
            if is_first:
                choice.recipe = recipe_answer(found)
            yield _event(chunk.model_copy(update={"choices": [choice]}))
    if include_usage:
        yield _event(chunk.model_copy(update={"usage": stream.usage}))
    yield sse.DONE


def _event(chunk: CompletionAnswer) -> bytes:
    return sse.event(chunk.model_dump_json(exclude_unset=True))
