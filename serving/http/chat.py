"""`POST /v1/chat/completions`."""

import contextlib
from collections.abc import AsyncGenerator

from fastapi import APIRouter, Request, Response

from serving.http import sse
from serving.http.answers import (
    ChatAnswer,
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatDelta,
    ChatMessageAnswer,
    chat_logprobs,
    recipe_answer,
)
from serving.http.generate import Job, Stream, complete, make_job, model_of, query_of
from serving.http.openapi import JSON, STREAM
from serving.http.strict import StrictRoute
from serving.http.wire import ChatRequest, Message
from serving.messages import ChatMessage, Sampling

router = APIRouter(prefix="/v1", tags=["inference"], route_class=StrictRoute)


@router.post("/chat/completions", response_model=ChatAnswer, responses={200: STREAM})
async def create_chat_completion(request: Request, body: ChatRequest) -> Response:
    """Answer a chat, with the facts that its last user message is about.

    Facts are looked up by the end of that message, or by `recipe.query`. Every choice tells what was applied. With
    `stream` the answer is server-sent events, each a `chat.completion.chunk`; the first of a choice has `recipe`.
    """
    job = _job(request, body)
    if body.stream:
        include_usage = body.stream_options is not None and bool(body.stream_options.include_usage)
        return await sse.stream(request, _events(job, include_usage=include_usage), deadline=job.deadline)
    choices, usage = await sse.unless_left(request, complete(job))
    answer = ChatAnswer(
        id=job.answer_id,
        object="chat.completion",
        created=job.created,
        model=job.entry.name,
        choices=[
            ChatChoice(
                index=index,
                message=ChatMessageAnswer(role="assistant", content=completion.text),
                logprobs=None if job.sampling.logprobs is None else chat_logprobs(completion.logprobs),
                finish_reason=completion.finish_reason,
                recipe=recipe_answer(found),
            )
            for index, (found, completion) in enumerate(choices)
        ],
        usage=usage,
    )
    return Response(answer.model_dump_json(), media_type=JSON)


def _job(request: Request, body: ChatRequest) -> Job:
    entry = model_of(request, body.model)
    chat = tuple(_turn(message) for message in body.messages)
    return make_job(
        request,
        entry,
        body,
        prefix="chatcmpl",
        prompts=[chat],
        prompts_field="messages",
        queries=[_query(chat, entry.query_chars)],
        sampling=Sampling(
            max_tokens=body.max_completion_tokens or body.max_tokens,
            temperature=body.temperature or 0.0,
            top_p=1.0 if body.top_p is None else body.top_p,
            seed=body.seed,
            stop=body.stop,
            ignore_eos=bool(body.ignore_eos),
            logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        ),
    )


def _turn(message: Message) -> ChatMessage:
    # OpenAI's newer word for system, which the templates of LLMs do not know.
    role = "system" if message.role == "developer" else message.role
    return ChatMessage(role=role, content=message.content)


def _query(chat: tuple[ChatMessage, ...], query_chars: int) -> str | None:
    said = next((message.content for message in reversed(chat) if message.role == "user"), "")
    return query_of(said, query_chars) or None


async def _events(job: Job, *, include_usage: bool) -> AsyncGenerator[bytes, None]:
    chunk = ChatChunk(
        id=job.answer_id, object="chat.completion.chunk", created=job.created, model=job.entry.name, choices=[]
    )
    if include_usage:
        chunk.usage = None  # told as null until the end
    stream = Stream(job)
    begun: set[int] = set()
    async with contextlib.aclosing(stream.pieces()) as pieces:
        async for index, found, piece in pieces:
            if index not in begun:
                begun.add(index)
                turn = ChatChunkChoice(
                    index=index,
                    delta=ChatDelta(role="assistant", content=""),
                    logprobs=None,
                    finish_reason=None,
                    recipe=recipe_answer(found),
                )
                yield _event(chunk, turn)
            if piece.text or piece.logprobs:
                said = ChatChunkChoice(
                    index=index,
                    delta=ChatDelta(content=piece.text),
                    logprobs=None if job.sampling.logprobs is None else chat_logprobs(piece.logprobs),
                    finish_reason=None,
                )
                yield _event(chunk, said)
            if piece.finish_reason:
                end = ChatChunkChoice(index=index, delta=ChatDelta(), logprobs=None, finish_reason=piece.finish_reason)
                yield _event(chunk, end)
    if include_usage:
        chunk.usage = stream.usage
        yield _event(chunk)
    yield sse.DONE


def _event(chunk: ChatChunk, *choices: ChatChunkChoice) -> bytes:
    return sse.event(chunk.model_copy(update={"choices": list(choices)}).model_dump_json(exclude_unset=True))
