"""What agents give back reaches the record whatever it is, or is refused; and what is secret reaches no file."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from agent_orchestra import Agent, open_orchestra
from agent_orchestra.adapters.sql.database import open_database
from agent_orchestra.adapters.sql.keys import SqlKeyStore
from agent_orchestra.core.access import Scope
from agent_orchestra.core.request import Answer, Failure, Reply, Usage
from agent_orchestra.errors import AgentFailed
from agent_orchestra.runtime.keys import Keys


def _raises(error: Exception) -> Callable[[str], object]:
    def run(content: str) -> object:
        raise error

    return run


_HOSTILE: dict[str, Callable[[str], object]] = {
    "a NUL in the text": lambda _: "a\0b",
    "half a character in the text": lambda _: "a\ud800b",
    "a NUL in the value": lambda _: {"a": ["\0"]},
    "a NUL in a key of the value": lambda _: {"\0": 1},
    "half a character in the value": lambda _: {"a": "\ud800"},
    "a value beside a text": lambda _: Reply(output="fine", value="\0"),
    "a number without end": lambda _: {"a": 10**400},
    "deep nesting": lambda _: _nested(500),
    "a cost that is no number": lambda _: Reply(output="fine", usage=Usage(cost_usd=float("nan"))),
    "more tokens than a number holds": lambda _: Reply(output="fine", usage=Usage(input_tokens=2**70)),
    "a NUL in the agent's own failure": _raises(AgentFailed("closed\0", cause="\0")),
    "half a character in the agent's own failure": _raises(AgentFailed("closed\ud800", cause="\udfff")),
    "no number in the agent's own failure": _raises(AgentFailed("closed", share=float("inf"))),
}


def _nested(depth: int) -> list[object]:
    value: list[object] = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize("name", _HOSTILE)
async def test_a_request_ends_on_record_whatever_its_agent_gives_back(
    database_url: str, tmp_path: Path, name: str
) -> None:
    """It would otherwise run for ever: in its conversation, and for everyone who waits for it."""
    config = tmp_path / "orchestra.yaml"
    config.write_text("server: {shutdown_grace: 0.2}")
    async with open_orchestra(database_url, config=config) as orchestra:
        await orchestra.register_agent(Agent(id="hostile", kind="function"), run=_HOSTILE[name])
        ended: object = None
        try:
            async with asyncio.timeout(5):
                ended = await orchestra.process_request("hello", agent_id="hostile")
        except AgentFailed as error:
            ended = error
        (conversation,) = await orchestra.get_conversations()
        said = await orchestra.get_messages(conversation.id)
        record = await orchestra.get_request(said[0].request_id or "")

    assert isinstance(ended, Answer | AgentFailed)
    if isinstance(ended, Answer):
        assert record.end == ended
    else:
        assert isinstance(record.end, Failure)
        assert record.end.code == ended.code


async def test_no_file_has_a_keys_secret(sqlite_url: str, tmp_path: Path) -> None:
    database = await open_database(sqlite_url)
    key, text = await Keys(SqlKeyStore(database)).create("acme", [Scope.ADMIN])
    while_open = _everything_in(tmp_path)
    await database.close()
    prefix, key_id, secret = text.split("_", 2)

    assert (prefix, key_id) == ("orc", key.id)
    for found in (while_open, _everything_in(tmp_path)):
        assert key.id.encode() in found
        assert key.digest.encode() in found
        assert secret.encode() not in found


def _everything_in(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.iterdir()))
