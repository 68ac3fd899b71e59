"""No test talks to anything but this machine."""

from __future__ import annotations

import ipaddress
import socket
import sys
from typing import Any, cast

__all__ = ["forbid_network"]

_CALLS = frozenset(("socket.connect", "socket.sendto", "socket.sendmsg", "socket.getaddrinfo", "socket.gethostbyname"))


class NetworkForbiddenError(BaseException):
    """Not an :class:`Exception`, so that no code under test takes it for a failure of the network and goes on."""


def forbid_network() -> None:
    """From now on this process reaches loopback and Unix sockets only.

    An audit hook sees every call of Python's sockets, whoever makes it, and nothing needs to be replaced.
    """
    sys.addaudithook(_check)


def _check(event: str, arguments: tuple[Any, ...]) -> None:
    if event not in _CALLS:
        return
    if isinstance(arguments[0], socket.socket) and arguments[0].family not in (socket.AF_INET, socket.AF_INET6):
        return
    place: object = arguments[1] if event in ("socket.connect", "socket.sendto", "socket.sendmsg") else arguments[0]
    host = cast("tuple[object, ...]", place)[0] if isinstance(place, tuple) else place
    if not _is_here(host):
        raise NetworkForbiddenError(f"a test wants to reach {host!r}; only loopback is allowed")


def _is_here(host: object) -> bool:
    name = host.decode("ascii", "replace") if isinstance(host, bytes) else host
    if name is None or name in ("", "localhost"):
        return True
    try:
        address = ipaddress.ip_address(str(name))
    except ValueError:
        return False
    # An unspecified address is one to listen on.
    return address.is_loopback or address.is_unspecified
