"""Whether the service lives, can work, and how it is."""

from __future__ import annotations

import dataclasses
from importlib.metadata import version

from fastapi import APIRouter, Response

from agent_orchestra.api.auth import Reader
from agent_orchestra.api.wire import AgentsHealthOut, Opened, ReadyOut, StatusOut

__all__ = ["router"]

router = APIRouter(tags=["status"])


@router.get("/healthz")
async def get_alive() -> dict[str, str]:
    """Answers as long as the process does."""
    return {"status": "alive"}


@router.get("/readyz", responses={503: {"model": ReadyOut, "description": "Not ready."}})
async def get_ready(response: Response, orchestra: Opened) -> ReadyOut:
    """Whether the database can be reached, and its migrations are current."""
    checks = dict((await orchestra.health()).storage)
    ready = all(checks.values())
    response.status_code = 200 if ready else 503
    return ReadyOut(ready=ready, checks=checks)


@router.get("/v1/status")
async def get_status(orchestra: Opened, principal: Reader) -> StatusOut:
    """The state of this process and of what it needs."""
    health = await orchestra.health(tenant=principal.tenant)
    return StatusOut(
        version=version("agent-orchestra"),
        uptime=health.uptime,
        in_flight=health.in_flight,
        ready=all(health.storage.values()),
        checks=dict(health.storage),
        agents=AgentsHealthOut(**dataclasses.asdict(health.agents)),
    )
