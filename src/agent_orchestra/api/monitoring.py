"""The alerts of the service over HTTP."""

from __future__ import annotations

from fastapi import APIRouter

from agent_orchestra.api.auth import Reader
from agent_orchestra.api.problems import described
from agent_orchestra.api.wire import AlertsOut, alert_out
from agent_orchestra.errors import Forbidden
from agent_orchestra.runtime.orchestra import DEFAULT_TENANT

__all__ = ["router"]

router = APIRouter(prefix="/v1", tags=["status"])


@router.get("/alerts", responses=described(403))
async def list_alerts(caller: Reader) -> AlertsOut:
    """The rules of ``alerts``, and how each stands in this process. They are the operator's, not of other tenants."""
    if not caller.is_operator:
        raise Forbidden(f"alerts are of the whole service: only keys of the tenant '{DEFAULT_TENANT}' see them")
    return AlertsOut(alerts=[alert_out(standing) for standing in caller.orchestra.monitoring.alerts()])
