"""The application: its operations, its guards, and the OpenAPI document."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from taskqueue import __version__
from taskqueue.direct.errors import ClientError
from taskqueue.gateway import queues, schedules, stored, tasks
from taskqueue.gateway.guards import Guards
from taskqueue.gateway.models import NewMessage, NewTask
from taskqueue.gateway.problems import MEDIA_TYPE, Problem, ProblemDetails, problem_of
from taskqueue.gateway.services import Services
from taskqueue.gateway.settings import GatewaySettings
from taskqueue.kubernetes.client import ApiError
from taskqueue.logs import EventLog

log = EventLog(__name__)

_DESCRIPTION = (
    "Tasks, TaskQueues and TaskSchedules over HTTP. Each request is made with the caller's own "
    "token: x-kubernetes-access says what that must be allowed to do in the namespace, in the API "
    "group taskqueue.dev."
)


def make_app(
    services: Services,
    settings: GatewaySettings,
    *,
    desk: bool = False,
    clock: Callable[[], float] = time.monotonic,
) -> ASGIApp:
    """Return the application with its guards; the services are closed when it ends."""
    app = make_api()
    app.state.services = services
    return Guards(app, settings=settings, desk=desk, clock=clock)


def make_api() -> FastAPI:
    """Return the operations, without guards and services."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await app.state.services.close()

    app = FastAPI(
        title="taskqueue gateway",
        version=__version__,
        description=_DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        separate_input_output_schemas=False,
    )
    for module in (tasks, queues, schedules, stored):
        app.include_router(module.router)
    app.add_api_route("/healthz", _alive, include_in_schema=False)
    app.add_api_route("/readyz", _ready, include_in_schema=False)
    _add_error_handlers(app)
    app.openapi = lambda: openapi_document(app)  # type: ignore[method-assign]
    return app


async def _alive() -> Response:
    return Response("ok", media_type="text/plain")


async def _ready(request: Request) -> Response:
    if request.app.state.services.draining.is_set():
        raise Problem(503, "Draining", "the gateway is about to end: ask another replica")
    return Response("ok", media_type="text/plain")


def _add_error_handlers(app: FastAPI) -> None:
    async def answer(request: Request, error: Exception) -> Response:
        problem = problem_of(error)
        if problem.status == 500:
            log.error(
                "request.failed", method=request.method, path=request.url.path, error=repr(error)
            )
        return _problem(request, problem)

    async def answer_http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)  # noqa: S101
        reason = {404: "NotFound", 405: "MethodNotAllowed"}.get(error.status_code, "Refused")
        detail = f"{request.method} {request.url.path}: {error.detail}: see /openapi.json"
        return _problem(
            request, Problem(error.status_code, reason, detail, dict(error.headers or {}))
        )

    async def answer_invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)  # noqa: S101
        found = "; ".join(
            f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()[:20]
        )
        return _problem(request, Problem(422, "Invalid", f"the request is not valid: {found}"))

    for kind in (Problem, ApiError, ClientError, Exception):
        app.add_exception_handler(kind, answer)
    app.add_exception_handler(HTTPException, answer_http)
    app.add_exception_handler(RequestValidationError, answer_invalid)


def _problem(request: Request, problem: Problem) -> Response:
    return Response(
        problem.body(request.url.path),
        status_code=problem.status,
        media_type=MEDIA_TYPE,
        headers=dict(problem.headers),
    )


def openapi_document(app: FastAPI) -> dict[str, Any]:
    """Return the OpenAPI document."""
    document = get_openapi(
        title=app.title,
        version=app.version,
        description=app.description,
        routes=app.routes,
        separate_input_output_schemas=False,
    )
    schemas = document["components"]["schemas"]
    schemas.pop("HTTPValidationError", None)
    schemas.pop("ValidationError", None)
    schemas["ProblemDetails"] = ProblemDetails.model_json_schema()
    schemas |= _request_schemas()
    document["components"]["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer"}}
    document["security"] = [{"bearer": []}]
    return document


def _request_schemas() -> dict[str, Any]:
    """Return the schemas of bodies. In them no other field is allowed, in answers there may be."""
    _, found = models_json_schema(
        [(NewTask, "validation"), (NewMessage, "validation")],
        ref_template="#/components/schemas/Given{model}",
    )
    schemas = {f"Given{name}": schema for name, schema in found["$defs"].items()}
    for schema in schemas.values():
        if "properties" in schema:
            schema["additionalProperties"] = False
    for model in (NewTask, NewMessage):
        schemas[model.__name__] = schemas.pop(f"Given{model.__name__}")
    return schemas
