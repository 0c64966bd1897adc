"""What an operator sets: the arguments of the Serve application."""

import math
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from recipe_ray.errors import ConfigError
from recipe_ray.facts import DEFAULT_NAMESPACE

INGRESS_CPUS = 0.1  # of an ingress that parses and waits; one that retrieves takes a model's retriever_cpus beside
WRITER_CPUS = 0.3  # it waits, most of the time, and encodes what is put
SHARD_CPUS = 0.25
_NOT_CUSTOM = ("CPU", "GPU", "memory", "object_store_memory")  # Ray takes these by other names


class ModelArgs(BaseModel):
    """One LLM with its editor and its table of facts, behind the endpoint by its name."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    editor: str
    """Trained editor: a directory that every node sees, s3://, or the name of a published one."""
    table: str
    """Table of facts: a path that every node sees, or s3://."""
    llm: str | None = None
    """Frozen LLM, by Hugging Face id, path or short name (docs/training.md); the editor's own if not given."""
    model_name: str | None = None
    """Name of the model over HTTP; the LLM's if not given, which is a whole path where the LLM is one."""
    namespace: str = DEFAULT_NAMESPACE
    """Namespace of the requests that name none."""
    snapshot: int | None = Field(default=None, ge=0)
    """Serve this version of the table for ever and refuse to write; if not given, the newest, and all that follow."""

    engine: Literal["transformers", "vllm"] = "transformers"
    """What generates; vllm needs an environment of its own (docs/vllm.md)."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the LLM computes: cpu, cuda, or auto for cuda where the cluster has a GPU for each engine. Queries are
    encoded on the CPU."""
    gpus: float | None = Field(default=None, ge=0)
    """GPUs of one engine, as a fraction where engines share one; one on cuda and none on cpu if not given."""
    cpus: float = Field(default=1, gt=0)
    """CPU cores of one engine."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """Of the LLM's weights; auto is bfloat16 on a GPU and float32 on a CPU."""
    quantization: Literal["int8", "int4"] | None = None
    """Load the LLM's weights in fewer bits (transformers with bitsandbytes, on a GPU)."""
    tensor_parallel: int = Field(default=1, ge=1)
    """GPUs that one vllm engine spreads the LLM over."""
    vllm_options: dict[str, bool | int | float | str] | None = None
    """More arguments of vllm's engine, such as gpu_memory_utilization where engines share a GPU (docs/vllm.md)."""
    trust_remote_code: bool = False
    """Run Python code that comes with the LLM's files, and take weights that are not safetensors."""

    num_engines: int = Field(default=1, ge=1)
    """Replicas of the LLM; the least of them where `max_engines` is more."""
    max_engines: int | None = Field(default=None, ge=1)
    """Replicas under load; `num_engines` if not given."""
    num_retrievers: int = Field(default=0, ge=0)
    """Replicas of the query encoder; 0 keeps it in the ingress, which saves a message a request."""
    max_retrievers: int | None = Field(default=None, ge=1)
    """Replicas of the query encoder under load; `num_retrievers` if not given."""
    retriever_cpus: float = Field(default=0.4, gt=0)
    """CPU cores of one query encoder."""
    num_index_shards: int = Field(default=0, ge=0)
    """Parts of the index, each a deployment of its own; 0 keeps the whole with each query encoder."""
    shard_replicas: int = Field(default=1, ge=1)
    """Replicas of each part of the index."""
    shard_replicas_per_node: int | None = Field(default=None, ge=1)
    """Most replicas of one part on one node: 1 keeps a part answering when a node is lost, and needs as many nodes as
    there are replicas. If not given, Serve spreads them as it sees fit."""
    shard_resources: dict[str, float] | None = None
    """Ray's custom resources that every replica of a part takes: with {index: 1}, and one `index` on each node that is
    meant for parts, no two lie on one node."""

    max_batch_size: int = Field(default=32, ge=1)
    """Prompts that one engine completes together."""
    max_cached_tokens: int | None = Field(default=None, ge=1)
    """Tokens that one engine keeps keys and values of, padding included; 4096 a prompt of a batch if not given."""
    query_chars: int = Field(default=512, ge=1)
    """Of a long completion prompt, how many characters of its end are the query."""
    on_lost_shard: Literal["fail", "unedited"] = "fail"
    """What becomes of a request whose part of the index does not answer: 503, or an unedited answer that says so."""
    retrieval_timeout_s: float = Field(default=5.0, gt=0)
    """Seconds after which a part of the index counts as lost."""

    @property
    def engine_limit(self) -> int:
        """Most engines."""
        return max(self.num_engines, self.max_engines or 0)

    @property
    def retriever_limit(self) -> int:
        """Most query encoders that are deployments of their own."""
        return max(self.num_retrievers, self.max_retrievers or 0) if self.num_retrievers else 0

    @property
    def num_cpus(self) -> float:
        """CPU cores of the model's parts at the start, ingress apart."""
        retrieving = self.retriever_cpus * max(1, self.num_retrievers)
        return self.cpus * self.num_engines + retrieving + WRITER_CPUS + self._shard_cpus

    @property
    def resources(self) -> dict[str, float]:
        """Custom resources of the model's parts."""
        num = self.num_index_shards * self.shard_replicas
        return {name: amount * num for name, amount in (self.shard_resources or {}).items()}

    @property
    def _shard_cpus(self) -> float:
        return SHARD_CPUS * self.num_index_shards * self.shard_replicas

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.device == "cuda" and self.gpus == 0:
            raise ConfigError(f"device is {self.device}, but gpus is 0; give gpus more than 0, or device cpu")
        if self.device == "cpu" and self.gpus:
            raise ConfigError(f"device is cpu, but gpus is {self.gpus:g}; leave gpus out, or give device cuda")
        if self.max_engines is not None and self.max_engines < self.num_engines:
            raise ConfigError(
                f"max_engines is {self.max_engines}, but num_engines is {self.num_engines}; give max_engines at least "
                "that"
            )
        if self.max_retrievers is not None and self.max_retrievers < max(1, self.num_retrievers):
            raise ConfigError(
                f"max_retrievers is {self.max_retrievers}, but num_retrievers is {self.num_retrievers}; give "
                "max_retrievers at least that"
            )
        if self.max_retrievers is not None and self.num_retrievers == 0:
            raise ConfigError("max_retrievers is given, but num_retrievers is 0: none to add to; give num_retrievers")
        for name in ("shard_resources", "shard_replicas_per_node"):
            if getattr(self, name) and not self.num_index_shards:
                raise ConfigError(f"{name} is given, but num_index_shards is 0: there are no parts; give it too")
        for name, amount in (self.shard_resources or {}).items():
            if amount <= 0 or name in _NOT_CUSTOM:
                raise ConfigError(
                    f"shard_resources has {name} {amount:g}; give custom resources (not {', '.join(_NOT_CUSTOM)}), "
                    "each more than 0"
                )
        if self.quantization and self.engine == "vllm":
            raise ConfigError(
                "quantization is of the engine transformers; give vllm weights that are quantised already"
            )
        if self.vllm_options and self.engine != "vllm":
            raise ConfigError("vllm_options is of the engine vllm; give engine vllm, or leave it out")
        if self.tensor_parallel > 1 and self.engine != "vllm":
            raise ConfigError("tensor_parallel is of the engine vllm; give engine vllm, or leave it out")
        return self


class ServiceArgs(BaseModel):
    """What holds for all models of the endpoint."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    keys: str | None = None
    """File of API keys, local or s3:// (jobs/keys.py makes it). Without one everybody may do everything, so only
    addresses of this machine are listened on."""
    open: bool = False
    """Listen on other addresses without keys: something in front asks for a login."""
    num_ingresses: int = Field(default=1, ge=1)
    """Processes that take requests; the least of them where `max_ingresses` is more."""
    max_ingresses: int | None = Field(default=None, ge=1)
    """Processes that take requests under load; `num_ingresses` if not given."""
    upscale_delay_s: float = Field(default=10.0, ge=0)
    """Seconds of load after which replicas are added: a burst shorter than that is queued."""
    downscale_delay_s: float = Field(default=300.0, ge=0)
    """Seconds of less load after which replicas are taken away: loading an LLM takes minutes."""
    max_waiting: int = Field(default=256, ge=1)
    """Prompts that one ingress keeps waiting for engines; the next are told 429."""
    max_body_bytes: int = Field(default=4 << 20, ge=1024)
    """Of a request."""
    max_prompts: int = Field(default=64, ge=1)
    """Prompts of a request, times n."""
    max_prompt_chars: int = Field(default=400_000, ge=1)
    """Of one prompt."""
    max_new_tokens: int = Field(default=1024, ge=1)
    """Most tokens that a request may ask for."""
    max_facts: int = Field(default=1000, ge=1)
    """Facts of one write."""
    max_concurrency: int = Field(default=256, ge=1)
    """Requests of one key at a time, where the key has no limit of its own."""
    timeout_s: float = Field(default=120, gt=0)
    """Seconds after which a request is given up."""

    @model_validator(mode="after")
    def _at_least(self) -> Self:
        if self.max_ingresses is not None and self.max_ingresses < self.num_ingresses:
            raise ConfigError(
                f"max_ingresses is {self.max_ingresses}, but num_ingresses is {self.num_ingresses}; give "
                "max_ingresses at least that"
            )
        return self


_MODEL_FIELDS = frozenset(ModelArgs.model_fields)


class AppArgs(ServiceArgs):
    """Arguments of `serving.app:build_app`, the same in `serve run` and in serving/config.yaml.

    A single model's may stand beside the service's, without `models`.
    """

    models: tuple[ModelArgs, ...] = Field(min_length=1)
    """What is served; the first is the model of requests that name none."""

    @model_validator(mode="before")
    @classmethod
    def _one_model(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        of_model = {name: value for name, value in data.items() if name in _MODEL_FIELDS}
        if "models" in data:
            if of_model:
                raise ConfigError(f"{sorted(of_model)[0]} stands beside models; write it into one of them")
            return data
        return {**{name: value for name, value in data.items() if name not in _MODEL_FIELDS}, "models": [of_model]}

    @property
    def num_cpus(self) -> int:
        """CPU cores of the whole application at the start, rounded up."""
        return math.ceil(INGRESS_CPUS * self.num_ingresses + sum(model.num_cpus for model in self.models))


class ServerArgs(ModelArgs, ServiceArgs):
    """Arguments of jobs/serve.py: one model, the service, and where it listens."""

    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 lets other machines in, and asks for --keys."""
    port: int = Field(default=8000, ge=1, le=65535)
    """Port to listen on."""

    def app_args(self) -> AppArgs:
        """The application's part."""
        return AppArgs.model_validate(self.model_dump(exclude={"host", "port"}))
