"""Which models there are, and whether they can answer."""

import asyncio
from typing import Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel

from serving.errors import ApiError, model_not_found
from serving.http.context import ModelEntry, caller_of, service_of
from serving.http.strict import StrictRoute

_STATUS_TIMEOUT_S = 5.0  # shorter than what probes wait

router = APIRouter(prefix="/v1", tags=["inference"], route_class=StrictRoute)
health_router = APIRouter(tags=["health"])  # probes may add what they like to the path


class Model(BaseModel):
    """A model behind the endpoint."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelList(BaseModel):
    """All of them that the key may use."""

    object: Literal["list"]
    data: list[Model]


class Alive(BaseModel):
    """The process answers."""

    status: Literal["ok"]


class ReadyModel(BaseModel):
    """A model that answers, and the version of the table that it serves."""

    snapshot: int


class Ready(BaseModel):
    """All models answer."""

    status: Literal["ready"]
    models: dict[str, ReadyModel]


@router.get("/models")
async def list_models(request: Request) -> ModelList:
    """The models that the key may use; the first is the one of requests that name none."""
    return ModelList(object="list", data=_models(request))


@router.get("/models/{model_id:path}")
async def retrieve_model(request: Request, model_id: str) -> Model:
    """One model; its id may hold slashes."""
    models = _models(request)
    for model in models:
        if model.id == model_id:
            return model
    raise model_not_found(model_id, [model.id for model in models])


def _models(request: Request) -> list[Model]:
    caller = caller_of(request)
    return [
        Model(id=name, object="model", created=request.app.state.started, owned_by="recipe-ray")
        for name in service_of(request).models
        if caller.may_use(name)
    ]


@health_router.get("/healthz")
async def healthz() -> Alive:
    """Whether the process is alive; says nothing of the parts behind it."""
    return Alive(status="ok")


@health_router.get("/readyz")
async def readyz(request: Request) -> Ready:
    """Whether every model can answer."""
    entries = list(service_of(request).models.values())
    found = await asyncio.gather(*(_snapshot(entry) for entry in entries))
    models = {
        entry.name: ReadyModel(snapshot=snapshot)
        for entry, snapshot in zip(entries, found, strict=True)
        if snapshot is not None
    }
    if len(models) < len(entries):
        away = ", ".join(entry.name for entry in entries if entry.name not in models)
        raise ApiError(503, f"not ready: {away}; try again later", code="unavailable", headers={"Retry-After": "5"})
    return Ready(status="ready", models=models)


async def _snapshot(entry: ModelEntry) -> int | None:
    try:
        async with asyncio.timeout(_STATUS_TIMEOUT_S):
            return (await entry.backend.status()).snapshot
    except (ApiError, TimeoutError):
        return None
