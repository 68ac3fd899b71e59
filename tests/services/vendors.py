"""``llmock`` in a process of its own: it answers as every vendor does, goes wrong as it is told, and judges who asked.

The fixtures of its pytest plugin are not used: they run its server in a thread of the tests, and point SDKs at it
through the environment.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any, Final

import httpx
from llmock.journal import RequestRecord
from llmock.scenarios import Behavior, behavior_to_dict
from llmock.verdict import Finding

__all__ = ["Llmock", "Verdict", "running_llmock"]

#: As for a service of ours: it ends when nobody holds the other end of its standard input, so tests that are killed
#: leave none behind.
_COMMAND: Final = """
import os, threading
def end_with_parent():
    while os.read(0, 1):
        pass
    os._exit(70)
threading.Thread(target=end_with_parent, daemon=True).start()
from llmock.cli import app
app()
"""
_START_SECONDS: Final = 30.0
_LISTENING: Final = re.compile(r"running on (http://\S+)")
#: It waits for requests that are under way before it tells of requests: two seconds.
_ANSWER_SECONDS: Final = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """How well clients coped. ``passed`` is without errors; warnings are findings too."""

    passed: bool
    calls: int
    attempts: int
    faults: int
    findings: tuple[Finding, ...]

    @property
    def codes(self) -> tuple[str, ...]:
        """What was found, in llmock's words: ``retry_after_ignored``, ``gave_up``..."""
        return tuple(finding.code for finding in self.findings)


class Llmock:
    """A server that runs. What is queued, and what is asked of it here, is no request to a vendor."""

    def __init__(self, url: str, pid: int) -> None:
        self.url = url
        self.pid = pid

    @property
    def openai(self) -> str:
        """Where Chat Completions and Responses are, as SDKs take it."""
        return f"{self.url}/v1"

    @property
    def anthropic(self) -> str:
        return f"{self.url}/anthropic"

    @property
    def google(self) -> str:
        """Version ``v1beta`` alone is there; the SDK asks for another unless it is told."""
        return f"{self.url}/gemini"

    async def queue(self, *behaviors: Behavior) -> None:
        """Tells what the next requests that match are to meet; one request may meet one of each type.

        Raises :class:`httpx.HTTPStatusError` for what it does not take.
        """
        await self._call("POST", "scenario", {"behaviors": [behavior_to_dict(behavior) for behavior in behaviors]})

    async def requests(self) -> tuple[RequestRecord, ...]:
        """What vendors were asked, in that order; it waits a little for answers that are under way."""
        known = {field.name for field in fields(RequestRecord)}
        told = (await self._call("GET", "requests"))["requests"]
        return tuple(RequestRecord(**{name: each[name] for name in known}) for each in told)

    async def verdict(self) -> Verdict:
        """Its judgement of all requests since the last reset."""
        told = await self._call("GET", "verdict")
        findings = tuple(
            Finding(seqs=tuple(each.pop("requests")), **each)
            for each in (dict(finding) for finding in told["findings"])
        )
        return Verdict(
            passed=told["passed"],
            calls=told["calls"],
            attempts=told["attempts"],
            faults=told["faults_injected"],
            findings=findings,
        )

    async def reset(self) -> None:
        """Forgets requests, what is queued, and what was used of a quota. Options stay."""
        await self._call("POST", "reset")

    async def _call(self, method: str, place: str, body: object = None) -> dict[str, Any]:
        # Without TLS there is nothing to verify, and to load certificates takes longer than the call.
        async with httpx.AsyncClient(timeout=_ANSWER_SECONDS, trust_env=False, verify=False) as client:
            response = await client.request(method, f"{self.url}/_llmock/{place}", json=body)
        response.raise_for_status()
        return response.json()


@contextmanager
def running_llmock(*options: str) -> Generator[Llmock]:
    """A server on a free port that answers, and that is gone after the block, or with the tests.

    ``options`` are those of ``llmock serve`` but for host, port and log. Raises :class:`RuntimeError` with its log when
    it does not start.
    """
    command = [sys.executable, "-c", _COMMAND, "serve", "--host", "127.0.0.1", "--port", "0", *options]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LLMOCK_")}
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen(
            command,
            env={**environment, "PYTHONUNBUFFERED": "1", "NO_COLOR": "1"},
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            # Ctrl-C in the terminal is for the tests; they end the server when they have ended.
            start_new_session=True,
        ) as process,
    ):
        try:
            yield Llmock(_started(process, log.fileno()), process.pid)
        finally:
            process.kill()


def _started(process: subprocess.Popen[bytes], log: int) -> str:
    """The URL that the server tells once it takes connections."""
    give_up = time.monotonic() + _START_SECONDS
    while True:
        # The server writes where the file's position is, so that is left alone.
        told = os.pread(log, 1 << 20, 0).decode("utf-8", "replace")
        if found := _LISTENING.search(told):
            return found[1]
        if process.poll() is not None or time.monotonic() > give_up:
            raise RuntimeError(f"llmock did not start: {told[-2_000:]}")
        time.sleep(0.02)
