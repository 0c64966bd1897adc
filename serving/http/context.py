"""What every route needs: the models, who may do what, and how much."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from fastapi import Request

from serving.backend import Backend
from serving.http.access import Access, Caller
from serving.observer import Observer


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one call, and one key, may take.

    Attributes:
        body_bytes: of a request.
        prompts: in one completion request, times `n`.
        prompt_chars: of one prompt.
        new_tokens: of one answer.
        facts: in one write.
        concurrency: requests of one key at a time; a key may have its own.
        timeout_s: after which a request is given up.
    """

    body_bytes: int = 4 << 20
    prompts: int = 64
    prompt_chars: int = 400_000
    new_tokens: int = 1024
    facts: int = 1000
    concurrency: int = 256
    timeout_s: float = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelEntry:
    """One model behind the endpoint.

    Attributes:
        name: what `model` says in a request.
        backend: its parts.
        namespace: of requests that name none.
        query_chars: of a long completion prompt, how much of its end is the query; a chat's is its last user message.
        unsupported: fields that its engine cannot serve (`echo` and prompt log-probabilities of vLLM), with the reason.
    """

    name: str
    backend: Backend
    namespace: str = "default"
    query_chars: int = 512
    unsupported: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """All of it. The first model is the one of requests that name none."""

    models: Mapping[str, ModelEntry]
    access: Access
    limits: Limits
    observer: Observer


def service_of(request: Request) -> Service:
    """The service that a request came to."""
    service: Service = request.app.state.service
    return service


def caller_of(request: Request) -> Caller:
    """Who sent it, as the access middleware found out."""
    caller: Caller = request.state.caller
    return caller
