"""The HTTP ingress: joins the HTTP interface to the retriever and the engine, and names their failures."""

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, ReplicaUnavailableError
from ray.serve.handle import DeploymentHandle

from serving import errors
from serving.http import create_http_app
from serving.messages import Completion, Finding, Lookup, Prompt, Refusal

logger = logging.getLogger("ray.serve")


class HandleBackend:
    """`serving.http.Backend` over deployment handles: a call for each prompt, so that any replica may take it."""

    def __init__(self, retriever: DeploymentHandle[Any], engine: DeploymentHandle[Any]) -> None:
        self._retriever = retriever
        self._engine = engine

    async def find(self, lookups: Sequence[Lookup]) -> list[Finding]:
        """See `Backend.find`."""
        return await _call_each(self._retriever.find, lookups)

    async def complete(self, prompts: Sequence[Prompt]) -> list[Completion | Refusal]:
        """See `Backend.complete`."""
        return await _call_each(self._engine.complete, prompts)


async def _call_each(method: Any, messages: Sequence[Any]) -> list[Any]:
    """Call a deployment's method with each message; where one call fails the others are cancelled.

    Raises:
        ApiError: the deployment is overloaded, away, or failed.
    """
    responses = [method.remote(message) for message in messages]
    answered = False
    try:
        answers = await asyncio.gather(*responses)
        answered = True
    except BackPressureError as error:
        raise errors.overloaded() from error
    except (RayActorError, DeploymentUnavailableError, ReplicaUnavailableError) as error:
        logger.warning("a part of the application is away: %s", error)
        raise errors.unavailable() from error
    except RayTaskError as error:
        logger.exception("a part of the application failed")
        raise errors.failed() from error
    finally:
        if not answered:
            for response in responses:
                response.cancel()
    return answers


@serve.ingress()
class IngressDeployment:
    """Takes HTTP requests; holds no model."""

    def __init__(self, retriever: DeploymentHandle[Any], engine: DeploymentHandle[Any], **http: Any) -> None:
        self._backend = HandleBackend(retriever, engine)
        self._http = http

    def __serve_build_asgi_app__(self) -> FastAPI:
        return create_http_app(self._backend, **self._http)
