"""For tests of programs that use Agent Orchestra: a real orchestra that leaves nothing behind, and agents by script.

async with temporary_orchestra() as orchestra:
    agent = ScriptedAgent(["first answer", ValueError(), After(0.2, "late answer")])
    await orchestra.register_agent(Agent(id="scripted", kind="function"), run=agent)
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from agent_orchestra.bootstrap import open_from_settings
from agent_orchestra.core.values import Json
from agent_orchestra.runtime.executor import Call
from agent_orchestra.runtime.orchestra import Orchestra
from agent_orchestra.settings import load_settings

__all__ = ["After", "ScriptedAgent", "temporary_orchestra"]


@dataclass(frozen=True, slots=True)
class After:
    """A reply, or an error, that comes after so many seconds."""

    seconds: float
    then: Json | BaseException = ""


class ScriptedAgent:
    """A function for an agent that gives what its script says, call by call, and keeps what it was asked.

    An entry is what a function may give back, an exception to raise, or :class:`After`. A call beyond the end of the
    script raises :class:`AssertionError`: the test did not expect it.
    """

    def __init__(self, script: Iterable[Json | BaseException | After]) -> None:
        self._script = iter(script)
        self.calls: list[Call] = []

    async def __call__(self, content: str, call: Call) -> Json:
        self.calls.append(call)
        try:
            entry = next(self._script)
        except StopIteration:
            raise AssertionError(f"call {len(self.calls)} ({content!r}) is not in the script") from None
        if isinstance(entry, After):
            await asyncio.sleep(entry.seconds)
            entry = entry.then
        if isinstance(entry, BaseException):
            raise entry
        return entry


@asynccontextmanager
async def temporary_orchestra(**settings: Mapping[str, object]) -> AsyncGenerator[Orchestra]:
    """An orchestra on an SQLite file that is gone after the block.

    ``settings``: sections by name, such as ``orchestrator={"request_timeout": 2}``. It reads the environment, but not
    ``orchestra.yaml``.
    """
    with tempfile.TemporaryDirectory(prefix="orchestra-") as folder:
        path = Path(folder)
        nothing = path / "nothing.yaml"
        nothing.touch()
        database = {"url": f"sqlite:///{path / 'orchestra.db'}", **settings.pop("database", {})}
        async with open_from_settings(load_settings(nothing, database=database, **settings)) as orchestra:
            yield orchestra
