"""The agents of these tests: functions that services in other processes can import too."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from agent_orchestra import Call

SECRET = "hunter2-is-the-password"


def echo(content: str) -> str:
    return content


def giving(value: object) -> Callable[[str], object]:
    """A function that gives this back, whatever it is asked."""

    def gives(_: str) -> object:
        return value

    return gives


def ledger(content: str, call: Call) -> str:
    """Writes the content as one line of the file that the request names: proof that it ran."""
    line = f"{content}\n".encode()
    descriptor = os.open(str(call.context["ledger"]), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, line)
    finally:
        os.close(descriptor)
    return f"wrote {content}"


def raising(content: str, call: Call) -> str:
    if "ledger" in call.context:
        ledger(content, call)
    raise ValueError(f"{SECRET}: {content}")


async def raising_async(content: str) -> str:
    await asyncio.sleep(0)
    raise ValueError(f"{SECRET}: {content}")


async def raising_in_stream(content: str) -> AsyncIterator[str]:
    yield "half of "
    yield "the answer"
    raise ValueError(f"{SECRET}: {content}")


async def quitting(content: str) -> str:
    raise SystemExit(content)


async def interrupting(content: str) -> str:
    raise KeyboardInterrupt(content)


def quitting_in_thread(content: str) -> str:
    raise SystemExit(content)


async def never(content: str) -> str:
    await asyncio.Event().wait()
    return content


def never_in_thread(_: str) -> str:
    while True:
        time.sleep(3_600)


async def gated(content: str, call: Call) -> AsyncIterator[str]:
    """Tells half of the content, waits until the file that the request names is there, and tells the rest."""
    half = len(content) // 2
    yield content[:half]
    while not Path(str(call.context["gate"])).exists():  # noqa: ASYNC110, ASYNC240  another process opens the gate
        await asyncio.sleep(0.005)
    yield content[half:]
