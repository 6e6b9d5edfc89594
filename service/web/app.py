"""The HTTP side: metrics for Prometheus and health for whoever watches over the process."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from service.metrics import Metrics


def make_app(metrics: Metrics, *, unready_because: Callable[[], str]) -> Starlette:
    """The HTTP application. `unready_because` says what the service still waits for; nothing when it serves."""

    async def show_metrics(request: Request) -> Response:
        return Response(metrics.exposition(), media_type=CONTENT_TYPE_PLAIN_0_0_4)

    async def healthz(request: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def readyz(request: Request) -> Response:
        reason = unready_because()
        return PlainTextResponse(f"{reason}\n" if reason else "ok\n", status_code=503 if reason else 200)

    routes = [Route("/metrics", show_metrics), Route("/healthz", healthz), Route("/readyz", readyz)]
    return Starlette(routes=routes)
