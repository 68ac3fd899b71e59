"""Whose request it is, and whether it may be made."""

from __future__ import annotations

import ipaddress
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Final

from fastapi import Depends, Request

from agent_orchestra.core.access import Principal, Scope, allows
from agent_orchestra.errors import Forbidden, Unauthenticated
from agent_orchestra.runtime.orchestra import DEFAULT_TENANT, Orchestra

__all__ = ["Administrator", "Caller", "Guest", "Reader", "Runner", "is_loopback"]

#: On loopback the caller is the person at the machine.
Guest: Final = Principal(tenant=DEFAULT_TENANT, scopes=frozenset(Scope))


def is_loopback(host: str) -> bool:
    """Whether an address or a name means this machine and can be reached from no other."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True, slots=True)
class Caller:
    """An open orchestra, and the one on whose behalf it is asked."""

    orchestra: Orchestra
    principal: Principal

    @property
    def tenant(self) -> str:
        return self.principal.tenant

    @property
    def is_operator(self) -> bool:
        """Whether the service itself is theirs to look at: figures that are of all tenants at once."""
        return self.principal.tenant == DEFAULT_TENANT


def _requires(scope: Scope) -> Callable[[Request], Awaitable[Caller]]:
    async def caller(request: Request) -> Caller:
        orchestra: Orchestra = request.app.state.orchestra
        text = _key(request)
        if text is None:
            if request.app.state.keys_required:
                raise Unauthenticated("send a key as 'Authorization: Bearer …'; 'orchestra keys create' makes one")
            found = Guest
        else:
            found = await orchestra.keys.authenticate(text)
        if not allows(found.scopes, scope):
            raise Forbidden(f"this key lacks the scope '{scope}'")
        return Caller(orchestra, found)

    return caller


def _key(request: Request) -> str | None:
    authorization = request.headers.get("authorization")
    if authorization is None:
        return request.headers.get("x-api-key")
    scheme, _, text = authorization.partition(" ")
    if scheme.lower() != "bearer" or not text.strip():
        raise Unauthenticated("the Authorization header must be 'Bearer' and a key")
    return text.strip()


Reader = Annotated[Caller, Depends(_requires(Scope.READ))]
Runner = Annotated[Caller, Depends(_requires(Scope.RUN))]
Administrator = Annotated[Caller, Depends(_requires(Scope.ADMIN))]
