"""The generation engine as Ray Serve runs it: one frozen LLM a replica, on transformers or on vLLM."""

from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing, contextmanager
from typing import TYPE_CHECKING, Any, Literal, cast

from recipe_ray.config import ChatPosition, PromptPosition
from recipe_ray.errors import ConfigError
from serving.engines.protocol import Engine
from serving.messages import Chunk, Completion, GenerationRequest, Refusal
from serving.metrics import RayObserver

if TYPE_CHECKING:
    from recipe_ray.model.llm import LLMDtype, Quantization

EngineKind = Literal["transformers", "vllm"]


def build_engine(
    *,
    llm: str,
    kind: EngineKind = "transformers",
    device: str = "auto",
    position: PromptPosition = "first",
    chat_position: ChatPosition = "as_text",
    max_batch_size: int = 32,
    max_cached_tokens: int | None = None,
    dtype: "LLMDtype" = "auto",
    quantization: "Quantization | None" = None,
    trust_remote_code: bool = False,
    safetensors_only: bool = True,
    tensor_parallel: int = 1,
    options: Mapping[str, Any] | None = None,
) -> Engine:
    """Load an LLM into an engine.

    Args:
        llm: frozen LLM, by Hugging Face id, path or short name.
        kind: what runs it.
        device: auto, cpu, cuda or cuda:N.
        position, chat_position: where the virtual tokens of edits stand, in a text and in a chat.
        max_batch_size: prompts completed together.
        max_cached_tokens: of transformers: prompts in the batch times the length that the longest may reach; None for
            what the memory allows.
        dtype: of the weights; auto is bfloat16 on a GPU and float32 on a CPU.
        quantization: of transformers: linear layers in int8 or int4, by bitsandbytes.
        trust_remote_code: run Python that the LLM's repository brings along.
        safetensors_only: refuse weights in other formats, which are pickles.
        tensor_parallel: of vLLM: GPUs that the LLM is spread over.
        options: of vLLM: more arguments of its engine.

    Raises:
        ConfigError: options that the engine does not have, a device or a package that this machine lacks.
        ModelError: no such LLM, or one that the engine cannot run.
    """
    # Imported here: of the replicas only those that hold a model need to load what runs one.
    if kind == "vllm":
        _refuse(kind, quantization=quantization, max_cached_tokens=max_cached_tokens)
        from serving.engines.vllm import VllmEngine

        ours: dict[str, Any] = {"trust_remote_code": True} if trust_remote_code else {}
        if safetensors_only:
            ours |= {"load_format": "safetensors"}
        return VllmEngine(
            llm=llm,
            position=position,
            chat_position=chat_position,
            max_batch_size=max_batch_size,
            tensor_parallel=tensor_parallel,
            dtype=dtype,
            device=device,
            options=ours | dict(options or {}),
        )
    _refuse(kind, tensor_parallel=None if tensor_parallel == 1 else tensor_parallel, options=options or None)
    from recipe_ray.model.llm import load_llm
    from serving.engines.transformers import TransformersEngine

    return TransformersEngine(
        load_llm(
            llm,
            device,
            dtype=dtype,
            quantization=quantization,
            trust_remote_code=trust_remote_code,
            safetensors_only=safetensors_only,
        ),
        position=position,
        chat_position=chat_position,
        max_batch_size=max_batch_size,
        max_cached_tokens=max_cached_tokens,
    )


class EngineDeployment:
    """One engine, ready once it has answered.

    Args:
        model: what metrics call it.
        arguments: those of `build_engine`.
    """

    # Serve awaits it, and counts the replica as started no sooner: the first user does not wait for the warm-up.
    async def __init__(self, *, model: str, **arguments: Any) -> None:  # type: ignore[misc]
        self._model = model
        self._observer = RayObserver()
        self._num_prompts = 0
        self._engine = build_engine(**arguments)
        await self._engine.warm_up()

    async def complete(self, request: GenerationRequest) -> Completion | Refusal:
        """See `Engine.complete`."""
        with self._counted():
            return await self._engine.complete(request)

    async def stream(self, request: GenerationRequest) -> AsyncGenerator[Chunk | Refusal, None]:
        """See `Engine.stream`."""
        pieces = cast("AsyncGenerator[Chunk | Refusal, None]", self._engine.stream(request))
        with self._counted():
            async with aclosing(pieces):  # when Serve drops this generator, the row leaves at once
                async for piece in pieces:
                    yield piece

    def check_health(self) -> None:
        """Serve asks, every few seconds, and replaces the replica if this raises."""
        self._observer.batch_size(self._model, self._num_prompts)
        self._engine.check_health()

    @contextmanager
    def _counted(self) -> Iterator[None]:
        self._num_prompts += 1
        try:
            yield
        finally:
            self._num_prompts -= 1

    def __del__(self) -> None:
        if hasattr(self, "_engine"):  # the LLM was loaded
            self._engine.close()


def _refuse(kind: EngineKind, **options: object) -> None:
    for name, value in options.items():
        if value is not None:
            raise ConfigError(f"{name} is {value!r}, but the engine is {kind}, which has no such option; leave it out")
