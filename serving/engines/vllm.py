"""The frozen LLM on vLLM: continuous batches, with the continuous prompts of facts given as prompt embeddings."""

import asyncio
import importlib
import itertools
import math
import os
from collections.abc import AsyncGenerator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from functools import partial
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase

from recipe_ray.config import ChatPosition, PromptPosition
from recipe_ray.errors import ConfigError, ModelError, ServiceError
from recipe_ray.model.decoding_rows import Job, Piece, Row
from recipe_ray.model.decoding_sampling import MIN_LOGPROB, NOT_FINITE, ScoredToken
from recipe_ray.model.decoding_text import decoder_of
from recipe_ray.model.hub import loading, model_source
from recipe_ray.model.llm import LLMDtype
from serving.engines.answers import Answers
from serving.engines.guard import Guard
from serving.engines.prompts import Layout
from serving.engines.vllm_requests import MAX_LOGPROBS, UNSUPPORTED, Admission, mixed_prompt
from serving.messages import (
    Chunk,
    Completion,
    GenerationRequest,
    Refusal,
    Sampling,
)

MIN_TOP_P = 1e-9  # the most probable token alone, as 0 means; vLLM wants more than 0
# What the constructor's own arguments say, or what prompt embeddings need.
_OURS = frozenset(
    {
        "model", "tokenizer", "dtype", "max_num_seqs", "tensor_parallel_size", "enable_prompt_embeds",
        "skip_tokenizer_init", "max_logprobs", "generation_config", "speculative_config",
    }
)  # fmt: skip


class VllmEngine:
    """A frozen LLM that vLLM runs in processes of its own. One event loop uses it.

    Args:
        llm: Hugging Face id, path or short name.
        position, chat_position: where the virtual tokens of edits stand, in a text and in a chat.
        max_batch_size: prompts that are completed together; others wait, in order.
        tensor_parallel: GPUs that the LLM is spread over, all of one machine.
        dtype: `auto` is bfloat16 on a GPU and float32 on a CPU, as the editor was trained with.
        device: auto, cpu or cuda. Which of them there is depends on the build of vLLM alone.
        options: more arguments of vLLM's engine, such as `gpu_memory_utilization` and `max_model_len`.

    Raises:
        ConfigError: vLLM is not installed, is built for another device, or does not know an option.
        ModelError: there is no such LLM, or vLLM cannot run it.
    """

    def __init__(
        self,
        *,
        llm: str,
        position: PromptPosition,
        max_batch_size: int,
        chat_position: ChatPosition = "as_text",
        tensor_parallel: int = 1,
        dtype: LLMDtype = "auto",
        device: str = "auto",
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.unsupported = UNSUPPORTED
        self._name = llm
        self._vllm = _load_vllm()
        built_for = str(self._vllm.platform.device_type)
        if device != "auto" and torch.device(device).type != built_for:
            raise ConfigError(
                f"device is {device!r}, but the vllm that is installed is built for {built_for!r}; "
                f"give device auto, or install the other build (docs/vllm.md)"
            )
        source = model_source(llm, "llm")
        code = {"trust_remote_code": bool((options or {}).get("trust_remote_code", False))}
        with loading(llm, "LLM"):
            self._tokenizer = cast(PreTrainedTokenizerBase, AutoTokenizer.from_pretrained(source, **code))
            self._eos = _eos_token_ids(source, self._tokenizer, **code)
        self._decode = decoder_of(self._tokenizer)
        self._answers = Answers(llm, self._tokenizer)
        self._engine = self._start(
            llm,
            {
                "model": source,
                "dtype": dtype if dtype != "auto" else "float32" if built_for == "cpu" else "bfloat16",
                "max_num_seqs": max_batch_size,
                "tensor_parallel_size": tensor_parallel,
                "enable_prompt_embeds": True,
                "max_logprobs": MAX_LOGPROBS,
                "generation_config": "vllm",  # a request says how to decode, not the model's authors
            },
            # In a Ray replica vLLM would ask Ray for workers beyond the GPUs that the replica was given.
            {"distributed_executor_backend": "mp" if tensor_parallel > 1 else "uni", "disable_log_stats": True}
            | dict(options or {}),
        )
        self._guard = Guard([process.pid for process in self._engine.engine_core.resources.engine_manager.processes])
        config = self._engine.model_config
        self._admission = Admission(
            layout=Layout(
                name=llm,
                tokenizer=self._tokenizer,
                vocabulary=int(config.get_vocab_size()),
                position=position,
                chat_position=chat_position,
            ),
            max_length=int(config.max_model_len),
            width=int(config.get_inputs_embeds_size()),
            dtype=config.dtype,
        )
        self._tokenizing = ThreadPoolExecutor(1, thread_name_prefix="tokenize")  # off the loop, which streams
        self._closed = False

    def _start(self, llm: str, ours: dict[str, Any], options: dict[str, Any]) -> Any:
        if wrong := sorted(_OURS & set(options)):
            raise ConfigError(
                f"option {wrong[0]!r} of vLLM is set by the engine itself, or excludes edits; leave it out"
            )
        try:
            arguments = self._vllm.AsyncEngineArgs(**ours, **options)
        except TypeError as error:
            raise ConfigError(f"options of vLLM: {error}; name arguments of its AsyncEngineArgs") from error
        try:
            return self._vllm.AsyncLLM.from_engine_args(arguments)
        except (ValueError, RuntimeError, OSError) as error:
            reason = " ".join(str(error).split())[:500]
            raise ModelError(
                f"llm {llm}: vLLM cannot run it ({reason}); its log says more, and the engine transformers may run it"
            ) from error

    async def complete(self, request: GenerationRequest) -> Completion | Refusal:
        """Complete a prompt; cancelling the call takes it off vLLM's batch.

        Raises:
            ServiceError: the engine has died, or was closed meanwhile.
        """
        job = await self._admit(request, stream=False)
        if isinstance(job, Refusal):
            return job
        async with aclosing(self._pieces(job, request.request_id)) as pieces:
            piece = await anext(pieces)
        return self._answers.completion(job, piece)

    async def stream(self, request: GenerationRequest) -> AsyncGenerator[Chunk | Refusal, None]:
        """Complete a prompt piece by piece; closing the iterator takes it off vLLM's batch.

        Raises:
            ServiceError: the engine has died, or was closed meanwhile.
        """
        job = await self._admit(request, stream=True)
        if isinstance(job, Refusal):
            yield job
            return
        async with aclosing(self._pieces(job, request.request_id)) as pieces:
            async for piece in pieces:
                yield self._answers.chunk(job, piece)

    async def warm_up(self) -> None:
        """Answer a few short requests, edited and unedited; the first log-probabilities alone compile for seconds.

        Raises:
            ServiceError: one of them was refused.
        """
        virtual_PD = np.zeros((1, self._admission.width), dtype=np.float32)
        samplings = (Sampling(max_tokens=2, logprobs=1), Sampling(max_tokens=2, temperature=1.0, top_p=0.9, seed=0))
        for virtual, sampling in itertools.product((None, virtual_PD), samplings):
            request = GenerationRequest(request_id="warm-up", prompt=(0,), virtual_PD=virtual, sampling=sampling)
            if isinstance(answer := await self.complete(request), Refusal):
                raise ServiceError(f"the engine of {self._name} cannot answer: {answer.message}")

    def check_health(self) -> None:
        """Nothing where vLLM runs.

        Raises:
            ServiceError: its process has died, or the engine was closed.
        """
        if self._closed:
            raise self._gone()
        if self._engine.errored:
            raise self._gone() from self._engine.dead_error

    def close(self) -> None:
        """End vLLM's processes; what is unanswered fails."""
        if self._closed:
            return
        self._closed = True
        # Shutting down alone would leave who waits for tokens waiting for ever.
        self._engine.output_processor.propagate_error(self._vllm.EngineDeadError())
        self._guard.close()
        self._engine.shutdown()
        self._tokenizing.shutdown(wait=False, cancel_futures=True)

    def _gone(self) -> ServiceError:
        if self._closed:
            return ServiceError(f"the engine of {self._name} is closed")
        return ServiceError(f"vLLM's engine of {self._name} has died; its log says why, and it has to be started anew")

    async def _admit(self, request: GenerationRequest, *, stream: bool) -> Job | Refusal:
        self.check_health()
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._tokenizing, partial(self._admission.admit, request, stream=stream))

    async def _pieces(self, job: Job, request_id: str) -> AsyncGenerator[Piece, None]:
        """What there is to tell of a job, the last of which alone finishes; closing aborts."""
        row = Row(job, self._decode, self._eos)
        async with aclosing(self._tokens(job, request_id)) as tokens:
            async for token, scored in tokens:
                piece = row.record(token, scored)
                if piece is not None:
                    if piece.finish is not None:
                        break
                    yield piece
        assert piece is not None  # `_tokens` ends by an error alone
        yield piece

    async def _tokens(self, job: Job, request_id: str) -> AsyncGenerator[tuple[int, ScoredToken | None], None]:
        """New tokens as vLLM gives them, until who asks stops asking."""
        finish = None
        generating: AsyncGenerator[Any, None] = self._engine.generate(self._prompt(job), self._params(job), request_id)
        try:
            async with aclosing(generating) as outputs:
                async for output in outputs:
                    new = output.outputs[0]
                    finish = new.finish_reason
                    for token, scores in zip(new.token_ids, new.logprobs or itertools.repeat(None), strict=False):
                        yield self._scored(int(token), scores, job.logprobs)
        except self._vllm.EngineDeadError as error:
            raise self._gone() from error
        raise ServiceError(f"vLLM gave up a request (finish reason {finish!r}); its log says why")

    def _scored(self, token: int, scores: Any, num_top: int | None) -> tuple[int, ScoredToken | None]:
        """A token with vLLM's log-probabilities at its place, which hold its own and the most probable ones'."""
        if scores is None:
            return token, None
        if math.isnan(scores[token].logprob):
            return NOT_FINITE, None
        ranked = sorted(scores.items(), key=lambda item: -item[1].logprob)[:num_top]
        return token, ScoredToken(
            token_id=token,
            logprob=max(float(scores[token].logprob), MIN_LOGPROB),
            top=tuple((other, max(float(score.logprob), MIN_LOGPROB)) for other, score in ranked),
        )

    def _prompt(self, job: Job) -> Any:
        """Plain token ids, so that vLLM finds them in its prefix cache; mixed with embeddings where facts apply."""
        if job.virtual_PD is None:
            return self._vllm.tokens_input(list(job.prompt_ids))
        virtual_PD = torch.from_numpy(job.virtual_PD).to(self._admission.dtype)
        rows = mixed_prompt(job.prompt_ids, virtual_PD, start=job.start)
        return self._vllm.embeds_input(rows.embeds_TD, prompt_token_ids=rows.ids, is_token_ids=rows.is_token)

    def _params(self, job: Job) -> Any:
        return self._vllm.SamplingParams(
            max_tokens=job.max_new_tokens,
            temperature=job.temperature,
            top_p=max(job.top_p, MIN_TOP_P),
            seed=None if job.seed is None else job.seed & (2**63 - 1),  # -1 would mean none
            logprobs=job.logprobs,
            # End and text are told here, so that both engines cut an answer at the same character.
            ignore_eos=True,
            stop_token_ids=[] if job.ignore_eos else list(self._eos),
            detokenize=False,
            output_kind=self._vllm.RequestOutputKind.DELTA,
        )


def _eos_token_ids(source: str, tokenizer: PreTrainedTokenizerBase, **code: bool) -> frozenset[int]:
    """What ends a text, as `FrozenLLM` has it: chat models name several tokens in their generation config."""
    try:
        stated = GenerationConfig.from_pretrained(source).eos_token_id
    except OSError:  # most base models have none
        stated = GenerationConfig.from_model_config(AutoConfig.from_pretrained(source, **code)).eos_token_id
    if stated is None:
        stated = tokenizer.eos_token_id
    if stated is None:
        return frozenset()
    return frozenset([stated] if isinstance(stated, int) else stated)


class _Vllm(NamedTuple):
    """The parts of vLLM that are used."""

    platform: Any
    AsyncEngineArgs: Any
    AsyncLLM: Any
    SamplingParams: Any
    RequestOutputKind: Any
    EngineDeadError: type[Exception]
    tokens_input: Any
    embeds_input: Any


def _load_vllm() -> _Vllm:
    """Import vLLM, late: it takes seconds, and most installations are without it."""
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")  # it would tell its makers about model and machine
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")  # a fork of a process with threads may hang
    try:
        sampling = importlib.import_module("vllm.sampling_params")
        inputs = importlib.import_module("vllm.inputs")
        return _Vllm(
            platform=importlib.import_module("vllm.platforms").current_platform,
            AsyncEngineArgs=importlib.import_module("vllm.engine.arg_utils").AsyncEngineArgs,
            AsyncLLM=importlib.import_module("vllm.v1.engine.async_llm").AsyncLLM,
            SamplingParams=sampling.SamplingParams,
            RequestOutputKind=sampling.RequestOutputKind,
            EngineDeadError=importlib.import_module("vllm.v1.engine.exceptions").EngineDeadError,
            tokens_input=inputs.tokens_input,
            embeds_input=inputs.embeds_input,
        )
    except ModuleNotFoundError as error:
        if error.name != "vllm":
            raise ConfigError(f"vllm cannot be imported ({error}); install it as docs/vllm.md says") from error
        raise ConfigError(
            "vllm is not installed; install it in an environment of its own (docs/vllm.md), or serve with the engine "
            "transformers"
        ) from error
