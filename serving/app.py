"""`serve run serving.app:build_app editor=… table=…`: checks what is to be served and puts the parts together."""

from typing import Any

import ray
from ray import serve
from ray.serve import Application, Deployment

from recipe_ray.model.editor import read_identity
from recipe_ray.model.llm import check_prompt_width, llm_width
from recipe_ray.store.files import absolute, localize
from recipe_ray.store.table import FactTable
from serving.engine import EngineDeployment
from serving.ingress import IngressDeployment
from serving.openai import MAX_PROMPTS
from serving.retriever import MAX_BATCH_SIZE, RetrieverDeployment
from serving.settings import INGRESS_CPUS, AppArgs

_MAX_WAITING = 4 * MAX_PROMPTS  # of one ingress before one part: a whole request must fit, whatever waits already
# Above what the parts take and queue, so that an overload is answered by us, in OpenAI's shape, and not by the proxy.
_MAX_REQUESTS = 1024


def build_app(args: AppArgs) -> Application:
    """Build the application, one snapshot for all replicas.

    Raises:
        EditorError: no editor there, or it does not fit the LLM.
        TableError: no table there, or another editor encoded it.
        ModelError: no such LLM.
    """
    editor = absolute(args.editor)
    identity = read_identity(localize(editor))
    llm = args.llm or identity.llm
    check_prompt_width(llm, llm_width(llm), identity.llm_width)
    table = FactTable.open(args.table, args.snapshot)
    table.check_editor(identity)

    device, gpus = engine_placement(args)
    retriever = _deployment(
        RetrieverDeployment,
        num_replicas=args.num_retrievers,
        ray_actor_options={"num_cpus": args.cpus / 2},
        max_ongoing_requests=2 * MAX_BATCH_SIZE,  # one batch in work, one gathering
        max_queued_requests=_MAX_WAITING,
    ).bind(
        editor=editor,
        table=table.uri,
        # Resolved here, once: replicas that each took the newest would disagree after the next commit.
        version=table.version,
        device="cpu",
        batch_wait_s=args.batch_wait_s,
    )
    engine = _deployment(
        EngineDeployment,
        num_replicas=args.num_engines,
        ray_actor_options={"num_cpus": args.cpus, "num_gpus": gpus},
        max_ongoing_requests=2 * args.max_batch_size,  # one batch in work, one gathering
        max_queued_requests=_MAX_WAITING,
    ).bind(llm=llm, device=device, max_batch_size=args.max_batch_size, batch_wait_s=args.batch_wait_s)
    return _deployment(
        IngressDeployment,
        ray_actor_options={"num_cpus": INGRESS_CPUS},
        max_ongoing_requests=_MAX_REQUESTS,
        max_queued_requests=_MAX_REQUESTS,
    ).bind(
        retriever,
        engine,
        model_name=args.model_name or llm,
        namespace=args.namespace,
        snapshot=table.version,
        max_new_tokens=args.max_new_tokens,
        timeout_s=args.timeout_s,
    )


def engine_placement(args: AppArgs) -> tuple[str, float]:
    """Device of an engine, and how many GPUs Ray has to give it."""
    gpus = args.gpus
    if gpus is None and args.device == "auto":
        available = ray.cluster_resources().get("GPU", 0) if ray.is_initialized() else 0
        gpus = float(available >= args.num_engines)
    if gpus is None:
        gpus = float(args.device != "cpu")
    return args.device if args.device != "auto" else "cuda" if gpus else "cpu", gpus


def _deployment(part: type, **options: Any) -> Deployment:
    # Constructors load files: a second try for a storage that hiccups, not Serve's twenty, which hide the error.
    return serve.deployment(
        part, name=part.__name__.removesuffix("Deployment"), max_constructor_retry_count=2, **options
    )
