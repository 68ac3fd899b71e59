"""What it costs to have the library imported and the service running, before and after it has worked."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from benchmarks.harness import Case, Figures, Question
from benchmarks.service import Client, Service, program, serving

__all__ = ["QUESTIONS"]

_REQUESTS: Final = 1_000


def imports(quick: bool) -> Figures:
    """Fresh interpreters, less what an interpreter takes that imports nothing; the best of a few."""
    times = 2 if quick else 5
    bare = _seconds([sys.executable, "-c", "pass"], times)
    package = _seconds([sys.executable, "-c", "import agent_orchestra"], times)
    names = _seconds([sys.executable, "-c", "from agent_orchestra import Orchestra, open_orchestra"], times)
    return {
        "`import agent_orchestra`, s": max(package - bare, 0.0),
        "`from agent_orchestra import Orchestra, open_orchestra`, s": max(names - bare, 0.0),
        "`orchestra --help`, s": _seconds([program(), "--help"], times),
    }


def service(quick: bool) -> Figures:
    psutil: Any = import_module("psutil")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with serving(folder) as fresh:
            process = psutil.Process(fresh.process.pid)
            idle = process.memory_info().rss
            asyncio.run(_ask(fresh, 50 if quick else _REQUESTS))
            after = process.memory_info().rss
        with serving(folder) as again:
            pass
    return {
        "`orchestra serve` to ready, new database, s": fresh.seconds,
        "`orchestra serve` to ready, existing database, s": again.seconds,
        "resident memory, idle, MB": idle / 1e6,
        f"resident memory after {_REQUESTS:,} requests, MB": after / 1e6,
    }


def _seconds(command: list[str], times: int) -> float:
    taken: list[float] = []
    for _ in range(times):
        began = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        taken.append(time.perf_counter() - began)
    return min(taken)


async def _ask(running: Service, requests: int) -> None:
    loop = asyncio.get_running_loop()
    _, client = await loop.create_connection(lambda: Client(running.host), running.host, running.port)
    for _ in range(requests):
        await client.ask(None)
    client.close()


QUESTIONS: Final = (
    Question(
        name="imports",
        title="Time to import, and to a first word",
        note="Each in fresh processes, less the time of a bare interpreter for the imports.",
        cases=(Case(name="Agent Orchestra", measure=imports),),
        aims={
            "`import agent_orchestra`, s": 0.3,
            "`from agent_orchestra import Orchestra, open_orchestra`, s": 0.3,
            "`orchestra --help`, s": 0.4,
        },
    ),
    Question(
        name="service",
        title="Start and memory of the service",
        note="From the start of the process until `/readyz` answers 200, with one agent; then resident memory.",
        cases=(Case(name="Agent Orchestra", measure=service),),
        aims={
            "`orchestra serve` to ready, new database, s": 2.0,
            "`orchestra serve` to ready, existing database, s": 2.0,
            "resident memory, idle, MB": 120.0,
            f"resident memory after {_REQUESTS:,} requests, MB": 120.0,
        },
    ),
)
