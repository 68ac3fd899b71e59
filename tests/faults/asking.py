"""A client as a careful program would be one: every question has a key, and is asked again until there is an answer."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx

__all__ = ["AGENTS", "Asker", "Asking"]

#: The agents of the services that are tried here.
AGENTS: Final = tuple(
    {
        "id": name,
        "kind": "function",
        "limits": {"concurrency": 1_000},
        "settings": {"function": f"tests.api.functions:{name}"},
    }
    for name in ("echo", "ledger", "gated", "never", "never_in_thread")
)


@dataclass(slots=True)
class Asking:
    """What all clients were told: answers by key, and the codes of what was recorded as failed."""

    answers: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])
    failures: dict[str, str] = field(default_factory=dict[str, str])
    sent: list[str] = field(default_factory=list[str])


class Asker:
    """Asks question after question in one conversation, until it is told to stop."""

    def __init__(self, name: str, client: httpx.AsyncClient, ledger: Path, told: Asking) -> None:
        self.name = name
        self.conversation_id = f"talk-{name}"
        self._client = client
        self._ledger = ledger
        self._told = told

    async def run(self, stop: asyncio.Event) -> None:
        number = 0
        while not stop.is_set():
            number += 1
            await self._ask(f"{self.name}-{number}")

    async def _ask(self, key: str) -> None:
        body: Mapping[str, Any] = {
            "content": key,
            "agent_id": "ledger",
            "conversation_id": self.conversation_id,
            "context": {"ledger": str(self._ledger)},
        }
        self._told.sent.append(key)
        while True:
            try:
                response = await self._client.post("/v1/orchestrate", json=body, headers={"Idempotency-Key": key})
            except httpx.TransportError:
                # The service is gone: it comes back, and is asked the same with the same key.
                await asyncio.sleep(0.1)
                continue
            if response.status_code == 200:
                self._told.answers[key] = response.json()
                return
            code = response.json()["code"]
            if code == "interrupted":
                self._told.failures[key] = code
                return
            assert response.status_code == 503, response.text
            await asyncio.sleep(0.02)
