"""What an operator sets: the arguments of the Serve application."""

import math
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from recipe_ray.errors import ConfigError
from recipe_ray.facts import DEFAULT_NAMESPACE

INGRESS_CPUS = 0.1  # it parses and waits


class AppArgs(BaseModel):
    """Arguments of `serving.app:build_app`, the same in `serve run`, in serving/config.yaml and in jobs/serve.py."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    editor: str
    """Trained editor: a directory that every node sees, or s3://."""
    table: str
    """Table of facts: a path that every node sees, or s3://."""
    llm: str | None = None
    """Frozen LLM, by Hugging Face id, path or `testbed`; the one the editor was trained for if not given."""
    model_name: str | None = None
    """Name of the model over HTTP; the LLM's id if not given."""
    namespace: str = DEFAULT_NAMESPACE
    """Namespace of the requests that name none."""
    snapshot: int | None = Field(default=None, ge=0)
    """Version of the table to serve; the newest at the start if not given."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the LLM computes: cpu, cuda, or auto for cuda where the cluster has a GPU for each engine. Queries are
    encoded on the CPU."""
    gpus: float | None = Field(default=None, ge=0)
    """GPUs of one engine, as a fraction where engines share one; one on cuda and none on cpu if not given."""
    cpus: float = Field(default=1, gt=0)
    """CPU cores of one engine; a retriever takes half of that."""
    num_engines: int = Field(default=1, ge=1)
    """Replicas of the LLM."""
    num_retrievers: int = Field(default=1, ge=1)
    """Replicas of the query encoder with its index."""
    max_batch_size: int = Field(default=8, ge=1)
    """Prompts that one engine completes together."""
    batch_wait_s: float = Field(default=0.01, ge=0)
    """Seconds a prompt waits for others to share a batch."""
    max_new_tokens: int = Field(default=256, ge=1)
    """Most tokens that a request may ask for."""
    timeout_s: float = Field(default=120, gt=0)
    """Seconds after which a request is given up."""

    @property
    def num_cpus(self) -> int:
        """CPU cores of the whole application, rounded up."""
        return math.ceil(INGRESS_CPUS + self.cpus * (self.num_engines + self.num_retrievers / 2))

    @model_validator(mode="after")
    def _device_and_gpus_agree(self) -> Self:
        if self.device == "cuda" and self.gpus == 0:
            raise ConfigError(f"device is {self.device}, but gpus is 0; give gpus more than 0, or device cpu")
        if self.device == "cpu" and self.gpus:
            raise ConfigError(f"device is cpu, but gpus is {self.gpus:g}; leave gpus out, or give device cuda")
        return self


class ServerArgs(AppArgs):
    """Arguments of jobs/serve.py: the application and where it listens."""

    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 lets other machines in, and there is no login."""
    port: int = Field(default=8000, ge=1, le=65535)
    """Port to listen on."""

    def app_args(self) -> AppArgs:
        """The application's part."""
        return AppArgs(**self.model_dump(exclude={"host", "port"}))
