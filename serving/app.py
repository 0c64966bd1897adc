"""`serve run serving.app:build_app editor=… table=…`: checks what is to be served and puts the parts together."""

from typing import Any

import ray
from ray import serve
from ray.serve import Application, Deployment
from ray.serve.config import AutoscalingConfig, BackpressureConfig
from ray.serve.context import _get_global_client  # no public way tells where Serve listens

from recipe_ray.errors import ConfigError
from recipe_ray.model.editor import read_config, read_identity
from recipe_ray.model.hub import absolute_model
from recipe_ray.model.llm import check_prompt_width, llm_width
from recipe_ray.store.files import absolute_editor, localize_editor
from recipe_ray.store.table import FactTable
from serving.engine import EngineDeployment
from serving.http.context import Limits
from serving.ingress import IngressDeployment, ModelParts
from serving.keys import check_exposure
from serving.retriever import RetrieverDeployment
from serving.settings import INGRESS_CPUS, SHARD_CPUS, WRITER_CPUS, AppArgs, ModelArgs
from serving.shards import IndexShardDeployment
from serving.writer import WriterDeployment

# Above what the parts take and queue, so that an overload is answered by us, in OpenAI's shape, and not by the proxy.
_MAX_REQUESTS = 4096
_REQUESTS = 64  # in work in one ingress, beyond which another is added
_LOOKUPS = 256  # that one query encoder has in work: small, and batched as they come
_DRAIN_S = 30.0  # a replica that goes ends its answers first
_HEALTH_S = 5.0  # how soon a dead engine is noticed


def build_app(args: AppArgs) -> Application:
    """Build the application.

    Raises:
        EditorError: no editor there, or it does not fit the LLM.
        TableError: no table there, or another editor encoded it.
        ModelError: no such LLM.
        ConfigError: two models of one name, or it would listen beyond this machine without keys.
    """
    names = [_name(model) for model in args.models]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ConfigError(f"two models are called {twice[0]!r}; give one another model_name")
    if (host := _host()) is not None:
        check_exposure(host, args.keys, open=args.open)
    parts = [
        _parts(name, model, args, number) for number, (name, model) in enumerate(zip(names, args.models, strict=True))
    ]
    in_ingress = sum(model.retriever_cpus for model in args.models if not model.num_retrievers)
    return _deployment(
        IngressDeployment,
        **_scaled(args.num_ingresses, args.max_ingresses, _REQUESTS, args),
        ray_actor_options={"num_cpus": INGRESS_CPUS + in_ingress},
        max_ongoing_requests=_MAX_REQUESTS,
        max_queued_requests=_MAX_REQUESTS,
    ).bind(
        parts,
        keys=args.keys,
        limits=Limits(
            body_bytes=args.max_body_bytes,
            prompts=args.max_prompts,
            prompt_chars=args.max_prompt_chars,
            new_tokens=args.max_new_tokens,
            facts=args.max_facts,
            concurrency=args.max_concurrency,
            timeout_s=args.timeout_s,
        ),
    )


def _name(model: ModelArgs) -> str:
    return model.model_name or model.llm or read_identity(localize_editor(model.editor)).llm


def _host() -> str | None:
    """Where Serve listens, once it runs; what starts it checks before."""
    client = _get_global_client(raise_if_no_controller_running=False) if ray.is_initialized() else None
    return None if client is None else client.http_config.host


def _parts(name: str, model: ModelArgs, args: AppArgs, number: int) -> ModelParts:
    """Check one model and make its deployments; their names carry its number where there are several."""
    editor = absolute_editor(model.editor)
    config, identity = read_config(localize_editor(editor)), read_identity(localize_editor(editor))
    llm = absolute_model(model.llm or identity.llm)  # replicas run in other folders
    check_prompt_width(llm, llm_width(llm), identity.llm_width)
    table = FactTable.open(model.table, model.snapshot)
    table.check_editor(identity)
    suffix = "" if len(args.models) == 1 else f"-{number}"
    device, gpus = engine_placement(model)

    writer = _deployment(
        WriterDeployment,
        suffix,
        num_replicas=1,
        ray_actor_options={"num_cpus": WRITER_CPUS},
        max_ongoing_requests=_MAX_REQUESTS,  # most of them only wait for the next version
        max_queued_requests=_MAX_REQUESTS,
    ).bind(
        table=table.uri,
        editor=editor,
        llm=llm,
        safetensors_only=not model.trust_remote_code,
        version=model.snapshot,
    )
    shards = [
        _deployment(
            IndexShardDeployment,
            f"{suffix}-{shard}",
            num_replicas=model.shard_replicas,
            max_replicas_per_node=model.shard_replicas_per_node,
            ray_actor_options={"num_cpus": SHARD_CPUS, "resources": model.shard_resources or {}},
            max_ongoing_requests=_LOOKUPS,
            max_queued_requests=_MAX_REQUESTS,
        ).bind(
            table=table.uri,
            fingerprint=identity.fingerprint,
            shard=shard,
            num_index_shards=model.num_index_shards,
            writer=writer,
            version=model.snapshot,
        )
        for shard in range(model.num_index_shards)
    ]
    retriever: dict[str, Any] = {
        "editor": editor,
        "table": table.uri,
        "writer": writer,
        "shards": shards,
        "on_lost_shard": model.on_lost_shard,
        "timeout_s": model.retrieval_timeout_s,
        "version": model.snapshot,
    }
    engine = _deployment(
        EngineDeployment,
        suffix,
        **_scaled(model.num_engines, model.engine_limit, model.max_batch_size, args),
        ray_actor_options={"num_cpus": model.cpus, "num_gpus": gpus},
        max_ongoing_requests=2 * model.max_batch_size,  # a batch in work, and the next rows ready as old ones end
        max_queued_requests=args.max_waiting,
        health_check_period_s=_HEALTH_S,
    ).bind(
        model=name,
        llm=llm,
        kind=model.engine,
        device=device,
        position=config.prompt_position,
        chat_position=config.chat_position,
        max_batch_size=model.max_batch_size,
        max_cached_tokens=model.max_cached_tokens,
        dtype=model.dtype,
        quantization=model.quantization,
        tensor_parallel=model.tensor_parallel,
        options=model.vllm_options,
        trust_remote_code=model.trust_remote_code,
        safetensors_only=not model.trust_remote_code,
    )
    return ModelParts(
        name=name,
        engine_kind=model.engine,
        engine=engine,
        writer=writer,
        retriever=_deployment(
            RetrieverDeployment,
            suffix,
            **_scaled(model.num_retrievers, model.retriever_limit, _LOOKUPS / 8, args),
            ray_actor_options={"num_cpus": model.retriever_cpus},
            max_ongoing_requests=_LOOKUPS,
            max_queued_requests=args.max_waiting,
        ).bind(**retriever)
        if model.num_retrievers
        else retriever,
        namespace=model.namespace,
        query_chars=model.query_chars,
    )


def engine_placement(args: ModelArgs) -> tuple[str, float]:
    """Device of an engine, and how many GPUs Ray has to give it."""
    gpus = args.gpus
    if gpus is None and args.device == "auto":
        available = ray.cluster_resources().get("GPU", 0) if ray.is_initialized() else 0
        gpus = float(available >= args.num_engines * args.tensor_parallel) * args.tensor_parallel
    if gpus is None:
        gpus = float(args.device != "cpu") * args.tensor_parallel
    return args.device if args.device != "auto" else "cuda" if gpus else "cpu", gpus


def _scaled(least: int, most: int | None, target: float, args: AppArgs) -> dict[str, Any]:
    """Replicas as Serve takes them: a number, or a range that follows the requests in work."""
    if most is None or most <= least:
        return {"num_replicas": least}
    return {
        "autoscaling_config": AutoscalingConfig(
            min_replicas=least,
            max_replicas=most,
            target_ongoing_requests=target,
            upscale_delay_s=args.upscale_delay_s,
            downscale_delay_s=args.downscale_delay_s,
        )
    }


def _deployment(part: type, suffix: str = "", **options: Any) -> Deployment:
    # Constructors load files: a second try for a storage that hiccups, not Serve's twenty, which hide the error.
    return serve.deployment(
        part,
        name=part.__name__.removesuffix("Deployment") + suffix,
        max_constructor_retry_count=2,
        graceful_shutdown_timeout_s=_DRAIN_S,
        backpressure_config=BackpressureConfig(status_code=429, retry_after_s=1),
        **options,
    )
