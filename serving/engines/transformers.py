"""The frozen LLM on transformers, CPU or GPU: a thread runs the continuous batch, event loops wait for its tokens."""

import asyncio
import itertools
import logging
import threading
from collections.abc import AsyncGenerator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from queue import Empty, SimpleQueue
from types import MappingProxyType

import numpy as np
import torch

from recipe_ray.config import ChatPosition, PromptPosition
from recipe_ray.errors import ServiceError
from recipe_ray.model.decoding import Decoder, Job, Piece, Row
from recipe_ray.model.decoding_rows import NO_ECHO
from recipe_ray.model.llm import FrozenLLM
from serving.engines.answers import Answers
from serving.engines.echo import echo_of
from serving.engines.prompts import Layout, is_chat, job_of, new_tokens_of, virtual_tokens_of
from serving.messages import Chunk, Completion, GenerationRequest, Refusal, Sampling

LONG_PROMPT = 4096  # characters: from here on another thread makes tokens of them, and the event loop goes on

_logger = logging.getLogger(__name__)


class TransformersEngine:
    """A frozen LLM that completes concurrent requests in one continuous batch. Any event loop may use it.

    Args:
        llm: the LM.
        position, chat_position: where the virtual tokens of edits stand, in a text and in a chat.
        max_batch_size: prompts that are completed together; others wait, in order.
        max_cached_tokens: see `Decoder`.
    """

    unsupported: Mapping[str, str] = MappingProxyType({})

    def __init__(
        self,
        llm: FrozenLLM,
        *,
        position: PromptPosition = "first",
        chat_position: ChatPosition = "as_text",
        max_batch_size: int = 32,
        max_cached_tokens: int | None = None,
    ) -> None:
        self._llm = llm
        self._layout = Layout(
            name=llm.name,
            tokenizer=llm.tokenizer,
            vocabulary=int(llm.model.config.get_text_config().vocab_size),
            position=position,
            chat_position=chat_position,
        )
        decoder = Decoder(llm, max_rows=max_batch_size, max_cached_tokens=max_cached_tokens)
        self._max_cached_tokens = decoder.max_cached_tokens
        self._answers = Answers(llm.name, llm.tokenizer)
        self._tokenizing = ThreadPoolExecutor(1, thread_name_prefix="tokenize")
        self._worker = _Worker(decoder, llm.name)

    async def complete(self, request: GenerationRequest) -> Completion | Refusal:
        """Complete a prompt; cancelling the call takes its row out of the batch.

        Raises:
            ServiceError: the engine has died, or was closed meanwhile.
        """
        job = await self._admit(request, stream=False)
        if isinstance(job, Refusal):
            return job
        answer: asyncio.Future[Piece | Exception] = asyncio.get_running_loop().create_future()
        call = self._worker.submit(job, partial(_answer, answer))
        try:
            piece = await answer
        finally:
            if not answer.done() or answer.cancelled():
                self._worker.cancel(call)
        if isinstance(piece, Exception):
            return _refused(piece)
        return self._answers.completion(job, piece)

    async def stream(self, request: GenerationRequest) -> AsyncGenerator[Chunk | Refusal, None]:
        """Complete a prompt piece by piece; closing the iterator takes its row out of the batch.

        Raises:
            ServiceError: the engine has died, or was closed meanwhile.
        """
        job = await self._admit(request, stream=True)
        if isinstance(job, Refusal):
            yield job
            return
        pieces: asyncio.Queue[Piece | Exception] = asyncio.Queue()
        call = self._worker.submit(job, pieces.put_nowait)
        finish = None
        try:
            while finish is None:
                piece = await pieces.get()
                if isinstance(piece, Exception):
                    finish = "failed"
                    yield _refused(piece)
                    return
                finish = piece.finish
                yield self._answers.chunk(job, piece)
        finally:
            if finish is None:
                self._worker.cancel(call)

    async def warm_up(self) -> None:
        """Answer a short edited and a short unedited request.

        Raises:
            ServiceError: one of them was refused.
        """
        virtual_PD = np.zeros((1, self._llm.width), dtype=np.float32)
        for virtual, batch in itertools.product((None, virtual_PD), (1, 2)):
            request = GenerationRequest(
                request_id="warm-up", prompt=(0,), virtual_PD=virtual, sampling=Sampling(max_tokens=2)
            )
            for answer in await asyncio.gather(*(self.complete(request) for _ in range(batch))):
                if isinstance(answer, Refusal):
                    raise ServiceError(f"the engine of {self._llm.name} cannot answer: {answer.message}")

    def check_health(self) -> None:
        """Nothing where the batch runs.

        Raises:
            ServiceError: its thread has died, or the engine was closed.
        """
        self._worker.check()

    def close(self) -> None:
        """Stop; what is unanswered fails."""
        self._worker.close()
        self._tokenizing.shutdown(wait=False, cancel_futures=True)

    async def _admit(self, request: GenerationRequest, *, stream: bool) -> Job | Refusal:
        self.check_health()
        prompt = request.prompt
        if is_chat(prompt):
            num_characters = sum(len(message.content) for message in prompt)
        else:
            num_characters = len(prompt) if isinstance(prompt, str) else 0
        if num_characters < LONG_PROMPT:
            return self._job(request, stream=stream)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._tokenizing, lambda: self._job(request, stream=stream))

    def _job(self, request: GenerationRequest, *, stream: bool) -> Job | Refusal:
        placed = self._layout.place(request)
        if isinstance(placed, Refusal):
            return placed
        virtual_PD = virtual_tokens_of(self._llm, request)
        if isinstance(virtual_PD, Refusal):
            return virtual_PD
        bounded = self._max_cached_tokens < self._llm.max_length
        max_new_tokens = new_tokens_of(
            request,
            num_prompt=len(placed.token_ids),
            num_virtual=0 if virtual_PD is None else len(virtual_PD),
            max_length=min(self._max_cached_tokens, self._llm.max_length),
            limit=f"the engine of {self._llm.name} has memory for"
            if bounded
            else f"the context of {self._llm.name} is",
        )
        if isinstance(max_new_tokens, Refusal):
            return max_new_tokens
        sampling, echo = request.sampling, NO_ECHO
        if sampling.echo:
            with_places = sampling.logprobs is not None
            echo = echo_of(self._llm.tokenizer, request.prompt, placed.token_ids, with_places=with_places)
        return job_of(request, placed, virtual_PD, max_new_tokens=max_new_tokens, stream=stream, echo=echo)


class _Call:
    """One job, as the event loop that waits for it and the thread that does it see it."""

    __slots__ = ("hand_over", "job", "loop", "row")

    def __init__(self, job: Job, hand_over: Callable[[Piece | Exception], object]) -> None:
        self.job = job
        self.hand_over = hand_over  # runs in `loop`
        self.loop = asyncio.get_running_loop()
        self.row: Row | None = None


class _Worker:
    """The thread that runs a decoder."""

    def __init__(self, decoder: Decoder, name: str) -> None:
        self._decoder = decoder
        self._name = name
        self._calls: dict[Row, _Call] = {}  # the thread's own
        self._commands: SimpleQueue[tuple[str, _Call | None]] = SimpleQueue()
        self._lock = threading.Lock()  # nothing is submitted to a thread that has taken its last command
        self._ended: str | None = None
        self._thread = threading.Thread(target=self._run, name="decode", daemon=True)
        self._thread.start()

    def submit(self, job: Job, hand_over: Callable[[Piece | Exception], object]) -> _Call:
        """Have a job done; its pieces, or why there are none, are handed over in the running event loop."""
        call = _Call(job, hand_over)
        with self._lock:
            self.check()
            self._commands.put(("add", call))
        return call

    def cancel(self, call: _Call) -> None:
        """Nobody waits for a job any more."""
        self._commands.put(("cancel", call))

    def check(self) -> None:
        """Nothing while the thread runs, else its last words."""
        if self._ended is not None:
            raise ServiceError(self._ended)

    def close(self) -> None:
        """End the thread after the step that it is at."""
        self._commands.put(("close", None))
        self._thread.join()

    def _run(self) -> None:
        ended = f"the engine of {self._name} is closed"
        try:
            while self._obey():
                try:
                    pieces = self._decoder.step()
                except torch.OutOfMemoryError as error:
                    self._give_up(error)
                else:
                    self._hand_over(pieces)
        except BaseException as error:
            ended = f"the engine of {self._name} has died ({error!r}); a new replica replaces it"
            _logger.exception("the engine of %s has died", self._name)
        finally:
            with self._lock:
                self._ended = ended
            self._tell([(call, ServiceError(ended)) for call in (*self._calls.values(), *self._unread())])

    def _obey(self) -> bool:
        """Do as told; waits for commands where there is nothing else to do. False where it is time to end."""
        while True:
            try:
                what, call = self._commands.get(block=not self._decoder.busy)
            except Empty:
                return True
            if call is None:
                return False
            if what == "add":
                call.row = self._decoder.add(call.job)
                self._calls[call.row] = call
            elif call.row in self._calls:
                self._decoder.cancel(call.row)
                del self._calls[call.row]

    def _hand_over(self, pieces: list[Piece]) -> None:
        told: list[tuple[_Call, Piece | Exception]] = []
        for piece in pieces:
            if call := self._calls.get(piece.row):
                told.append((call, piece))
                if piece.finish is not None:
                    del self._calls[piece.row]
        self._tell(told)

    def _give_up(self, error: torch.OutOfMemoryError) -> None:
        """No memory for these rows: they fail, the engine lives."""
        _logger.error("the engine of %s ran out of memory with %d requests", self._name, len(self._calls))
        calls, self._calls = list(self._calls.values()), {}
        self._decoder.reset()
        torch.cuda.empty_cache()
        self._tell([(call, error) for call in calls])

    def _unread(self) -> list[_Call]:
        calls = []
        while not self._commands.empty():
            what, call = self._commands.get()
            if call is not None and what == "add":
                calls.append(call)
        return calls

    def _tell(self, told: list[tuple[_Call, Piece | Exception]]) -> None:
        """Wake each event loop once, whatever it has to hear."""
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[_Call, Piece | Exception]]] = {}
        for call, item in told:
            by_loop.setdefault(call.loop, []).append((call, item))
        for loop, items in by_loop.items():
            try:
                loop.call_soon_threadsafe(_tell_here, items)
            except RuntimeError:  # the loop was closed while its requests ran: nobody waits
                for call, _ in items:
                    self.cancel(call)


def _tell_here(items: list[tuple[_Call, Piece | Exception]]) -> None:
    for call, item in items:
        call.hand_over(item)


def _answer(answer: "asyncio.Future[Piece | Exception]", item: Piece | Exception) -> None:
    if not answer.done():  # cancelled, and the thread did not know
        answer.set_result(item)


def _refused(error: Exception) -> Refusal:
    """What to tell of a request that the engine gave up.

    Raises:
        ServiceError: the engine itself has ended.
    """
    if isinstance(error, ServiceError):
        raise error
    return Refusal(
        message="the engine ran out of memory; try again, with a shorter prompt or fewer tokens",
        code="engine_out_of_memory",
        status=503,
    )
