"""The services of the tests keep their own promises."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from pathlib import Path

import psycopg
import pytest

from tests.services.network import NetworkForbiddenError
from tests.services.postgres import PostgresServer
from tests.services.waiting import wait_until

_ROOT = Path(__file__).parents[2]
_LAUNCH = """
import sys
from tests.services.postgres import find_install, launched

install = find_install()
assert install is not None
with launched(install) as server:
    print(server.folder, server.pid, flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("address", ["192.0.2.1", "2001:db8::1", "example.com", b"example.com"])
def test_nothing_but_this_machine_is_reached(address: str | bytes) -> None:
    with pytest.raises(NetworkForbiddenError):
        socket.getaddrinfo(address, 80)


def test_no_address_is_connected_to_but_those_of_this_machine() -> None:
    with socket.socket() as outward, pytest.raises(NetworkForbiddenError):
        outward.connect(("192.0.2.1", 80))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as outward, pytest.raises(NetworkForbiddenError):
        outward.sendto(b"x", ("192.0.2.1", 80))


def test_loopback_is_reached() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        client.sendall(b"x")
        connection, _ = server.accept()
        with connection:
            assert connection.recv(1) == b"x"


def test_postgres_is_the_release_that_we_support(postgres: PostgresServer) -> None:
    with psycopg.connect(postgres.url("postgres")) as connection:
        assert connection.info.server_version // 10_000 == 18


@pytest.mark.slow
async def test_killed_tests_leave_no_server_behind(postgres_install: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _LAUNCH, cwd=_ROOT, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    folder, pid = (await process.stdout.readline()).decode().split()
    assert _is_there(int(pid), folder) == (True, True)

    process.kill()
    await process.communicate()

    await wait_until(lambda: _is_there(int(pid), folder) == (False, False), f"the server {pid} is still there")


def _is_there(pid: int, folder: str) -> tuple[bool, bool]:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False, Path(folder).exists()
    return True, Path(folder).exists()
