"""A fleet of scripted instances: started, told how to behave, asked what they got, frozen and killed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from typing import Any, Final

from tests.chaos.instances import Called, Script
from tests.services.service import PROJECT

__all__ = ["Called", "Fleet", "Script", "running_fleet"]

_START_SECONDS: Final = 30.0
#: A list of calls is one line.
_LONGEST_LINE: Final = 1 << 26


@dataclass(slots=True, kw_only=True)
class _Process:
    process: subprocess.Popen[bytes]
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    busy: asyncio.Lock


class Fleet:
    """Instances that run, by their ids."""

    def __init__(self) -> None:
        self.urls: dict[str, str] = {}
        self._of: dict[str, _Process] = {}
        self._processes: list[_Process] = []

    async def start(self, ids: Sequence[str]) -> None:
        """Starts one process with these instances."""
        process = _launched(ids)
        try:
            told = json.loads(await asyncio.to_thread(_first_line, process))
            reader, writer = await asyncio.open_connection("127.0.0.1", told["control"], limit=_LONGEST_LINE)
        except BaseException:
            _end(process)
            raise
        running = _Process(process=process, reader=reader, writer=writer, busy=asyncio.Lock())
        self._processes.append(running)
        for instance_id, port in told["ports"].items():
            self.urls[instance_id] = f"http://127.0.0.1:{port}/"
            self._of[instance_id] = running

    async def follow(self, script: Script, *ids: str) -> None:
        """From now on these instances, or all, behave like that."""
        for instance_id in ids or self.urls:
            await self._told(instance_id, script=asdict(script))

    async def calls(self, instance_id: str) -> list[Called]:
        """The calls that an instance got, in that order."""
        return [Called(**called) for called in (await self._told(instance_id))["calls"]]

    async def connections(self, instance_id: str) -> int:
        """How many connections an instance has open."""
        return (await self._told(instance_id))["connections"]

    def signal(self, instance_id: str, number: signal.Signals) -> None:
        """Sends the whole process of an instance a signal: SIGKILL ends it at once, SIGSTOP freezes it."""
        os.kill(self._of[instance_id].process.pid, number)

    def ended(self, instance_id: str) -> bool:
        """Whether the process of an instance has ended."""
        return self._of[instance_id].process.poll() is not None

    async def close(self) -> None:
        for running in self._processes:
            running.writer.close()
            with contextlib.suppress(ConnectionError):
                await running.writer.wait_closed()
            _end(running.process)

    async def _told(self, instance_id: str, **asked: object) -> dict[str, Any]:
        running = self._of[instance_id]
        async with running.busy:
            running.writer.write(json.dumps({"id": instance_id, **asked}).encode() + b"\n")
            await running.writer.drain()
            return json.loads(await running.reader.readline())


def _launched(ids: Sequence[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.chaos.instances", *ids],
        cwd=PROJECT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        # Ctrl-C in the terminal is for who runs the scenarios; the instances end when that has ended.
        start_new_session=True,
    )


def _first_line(process: subprocess.Popen[bytes]) -> bytes:
    assert process.stdout is not None
    assert select.select([process.stdout], [], [], _START_SECONDS)[0], "the instances did not start"
    return process.stdout.readline()


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.communicate()


@asynccontextmanager
async def running_fleet(*processes: Sequence[str]) -> AsyncGenerator[Fleet]:
    """A fleet that is gone after the block. ``processes``: the ids of the instances that share one, as ``abcd``."""
    fleet = Fleet()
    try:
        for ids in processes:
            await fleet.start(list(ids))
        yield fleet
    finally:
        await fleet.close()
