"""Whether the service lives, can work, and how it is."""

from __future__ import annotations

import dataclasses
from importlib.metadata import version

from fastapi import APIRouter, Request, Response

from agent_orchestra.api.auth import Reader
from agent_orchestra.api.problems import described
from agent_orchestra.api.routing import StatusOut, routing_status_out
from agent_orchestra.api.wire import AgentsHealthOut, ProvidersOut, ReadyOut, process_out, providers_out, registry_out
from agent_orchestra.runtime.orchestra import Orchestra

__all__ = ["router"]

router = APIRouter(tags=["status"])


@router.get("/healthz")
async def get_alive() -> dict[str, str]:
    """Answers as long as the process does."""
    return {"status": "alive"}


@router.get("/readyz", responses={503: {"model": ReadyOut, "description": "Not ready."}})
async def get_ready(request: Request, response: Response) -> ReadyOut:
    """Whether the database can be reached, its migrations are current, and requests should be sent here.

    A service that is told to stop says first of all that it is not ready, so that others are asked in its place.
    """
    orchestra: Orchestra = request.app.state.orchestra
    checks = {**await orchestra.storage_ready(), "accepting": orchestra.accepting}
    ready = all(checks.values())
    response.status_code = 200 if ready else 503
    return ReadyOut(ready=ready, checks=checks)


@router.get("/v1/status")
async def get_status(caller: Reader) -> StatusOut:
    """The state of this process and of what it needs."""
    health = await caller.orchestra.health(tenant=caller.tenant)
    return StatusOut(
        version=version("agent-orchestra"),
        uptime=health.uptime,
        in_flight=health.in_flight,
        ready=all(health.storage.values()),
        checks=dict(health.storage),
        agents=AgentsHealthOut(**dataclasses.asdict(health.agents)),
        registry=registry_out(caller.orchestra.get_agents(tenant=caller.tenant)),
        process=process_out(caller.orchestra.monitoring.process()) if caller.is_operator else None,
        routing=routing_status_out(caller),
    )


@router.get("/v1/providers", responses=described(422))
async def get_providers(caller: Reader, fresh: bool = False) -> ProvidersOut:
    """Which vendors of models are configured and answer. Each is asked at most once a minute, but with ``fresh``."""
    return providers_out(await caller.orchestra.get_providers(fresh=fresh))
