"""The facade: what a program calls that embeds an orchestra."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agent_orchestra import Author, Filter, InputPolicy, Role, Status
from agent_orchestra.core.agent import Agent
from agent_orchestra.core.stream import END, StreamEvent
from agent_orchestra.errors import (
    AgentFailed,
    ConversationNotFound,
    InvalidInput,
    NoAgentMatches,
    RequestNotFound,
)
from agent_orchestra.runtime.orchestra import make_request
from agent_orchestra.testing import ScriptedAgent, temporary_orchestra
from tests.runtime.parts import conversation_of, opened, text_of, types_of


async def echo(content: str) -> str:
    return f"{content}!"


async def speak(_: str) -> AsyncIterator[str]:
    for piece in ("one ", "two ", "three"):
        yield piece


# --- requests


async def test_a_request_with_a_listener_is_the_same_call(tmp_path: Path) -> None:
    async with opened(tmp_path) as parts:
        await parts.agent("speak", speak)
        told: list[StreamEvent] = []
        answer = await parts.orchestra.process_request("speak", emit=told.append)
        assert types_of(told) == ["routed", "started", "completed"]
        assert text_of(told) == answer.output == "one two three"
        assert [event.data["text"] for event in told if "text" in event.data] == ["one ", "two ", "three"]
        assert told[0].data["agent"] == answer.agent
        assert told[1].data == {"agent": "speak", "instance": answer.instance}
        assert told[-1].position == END
        assert told[-1].data["output"] == answer.output
        assert told[-1].data["request_id"] == answer.request_id


async def test_a_listener_hears_the_failure_too(tmp_path: Path) -> None:
    async with opened(tmp_path) as parts:
        await parts.agent("scripted", ScriptedAgent([AgentFailed("no")]))
        told: list[StreamEvent] = []
        with pytest.raises(AgentFailed):
            await parts.orchestra.process_request("scripted", emit=told.append)
        assert types_of(told) == ["routed", "started", "failed"]


async def test_a_refused_request_tells_nothing(tmp_path: Path) -> None:
    async with opened(tmp_path) as parts:
        told: list[StreamEvent] = []
        with pytest.raises(NoAgentMatches):
            await parts.orchestra.process_request("nobody", emit=told.append)
        with pytest.raises(InvalidInput):
            await parts.orchestra.process_request("", emit=told.append)
        assert told == []


async def test_messages_go_on_in_their_conversation(tmp_path: Path) -> None:
    async with opened(tmp_path) as parts:
        await parts.agent("echo", echo)
        await parts.agent("speak", speak)
        conversation = await parts.orchestra.create_conversation(user_id="u")
        first = await parts.orchestra.process_message(conversation.id, "echo")
        assert (first.agent, first.stage, first.conversation_id) == ("echo", "lexical", conversation.id)
        again = await parts.orchestra.process_message(conversation.id, "and then?")
        assert (again.agent, again.stage) == ("echo", "conversation")
        other = await parts.orchestra.process_message(conversation.id, "speak")
        assert other.agent == "speak"
        kept = await parts.orchestra.get_conversation(conversation.id)
        assert (kept.active_agent, kept.last_seq, kept.user_id) == ("speak", 6, "u")
        assert kept.updated_ms >= kept.created_ms


async def test_a_failed_request_leaves_the_active_agent_and_its_own_message(tmp_path: Path) -> None:
    async with opened(tmp_path) as parts:
        await parts.agent("echo", echo)
        await parts.agent("scripted", ScriptedAgent([AgentFailed("no")]))
        conversation = await parts.orchestra.create_conversation()
        await parts.orchestra.process_message(conversation.id, "echo")
        with pytest.raises(AgentFailed):
            await parts.orchestra.process_message(conversation.id, "scripted")
        assert (await parts.orchestra.get_conversation(conversation.id)).active_agent == "echo"
        assert [line[1:] for line in await conversation_of(parts, conversation.id)] == [
            ("user", "echo"),
            ("assistant", "echo!"),
            ("user", "scripted"),
        ]


async def test_a_capability_a_named_agent_and_a_fallback(tmp_path: Path) -> None:
    async with opened(tmp_path, fallback="last") as parts:
        await parts.orchestra.register_agent(Agent(id="last", kind="function"), run=echo)
        await parts.orchestra.register_agent(Agent(id="able", kind="function", capabilities=("Do",)), run=echo)
        able = await parts.orchestra.process_request("whatever", capability="do")
        assert (able.agent, able.stage, able.confidence) == ("able", "capability", 1.0)
        named = await parts.orchestra.process_request("whatever", agent_id="last")
        assert (named.agent, named.stage) == ("last", "explicit")
        last = await parts.orchestra.process_request("whatever")
        assert (last.agent, last.stage, last.confidence) == ("last", "fallback", 0.0)
        assert parts.orchestra.resolve_agent("do").agent.id == "able"
        assert parts.orchestra.resolve_agent("able.thing").agent.id == "able"
        with pytest.raises(NoAgentMatches):
            parts.orchestra.resolve_agent("nothing")


async def test_tenants_see_nothing_of_each_other(tmp_path: Path) -> None:
    async with opened(tmp_path) as parts:
        orchestra = parts.orchestra
        for tenant in ("a", "b"):
            await parts.agent("echo", echo, tenant=tenant)
        answer = await orchestra.process_request("echo", tenant="a")
        here = answer.conversation_id
        with pytest.raises(ConversationNotFound):
            await orchestra.get_conversation(here, tenant="b")
        with pytest.raises(ConversationNotFound):
            await orchestra.get_messages(here, tenant="b")
        with pytest.raises(ConversationNotFound):
            await orchestra.add_message(here, "x", tenant="b")
        with pytest.raises(ConversationNotFound):
            await orchestra.process_message(here, "echo", tenant="b")
        with pytest.raises(RequestNotFound):
            await orchestra.get_request(answer.request_id, tenant="b")
        assert await orchestra.get_conversations(tenant="b") == []
        assert len(await orchestra.get_messages(here, tenant="a")) == 2


async def test_a_request_is_known_by_what_it_asks() -> None:
    one, two = (make_request("x", tenant="t", context={"b": 1, "a": 2}) for _ in range(2))
    assert one.id != two.id
    assert one.fingerprint == two.fingerprint
    assert one.fingerprint == make_request("x", tenant="t", context={"a": 2, "b": 1}).fingerprint
    others = [
        make_request("y", tenant="t", context={"a": 2, "b": 1}),
        make_request("x", tenant="t"),
        make_request("x", tenant="t", context={"a": 2, "b": 1}, user_id="u"),
        make_request("x", tenant="t", context={"a": 2, "b": 1}, agent_id="u"),
        make_request("x", tenant="t", context={"a": 2, "b": 1}, capability="u"),
        make_request("x", tenant="t", context={"a": 2, "b": 1}, conversation_id="u"),
    ]
    prints = {request.fingerprint for request in (one, *others)}
    assert len(prints) == len(others) + 1
    assert one.received_ms <= two.received_ms
    assert one.id < two.id


# --- agents


async def test_agents_by_filter() -> None:
    async with temporary_orchestra() as orchestra:
        agents = [
            Agent(id="b", kind="function", role=Role.SPECIALIST, domain="d", capabilities=("Do",), provider="p"),
            Agent(id="a", kind="function", enabled=False),
            Agent(id="c", kind="function", capabilities=("do", "more")),
        ]
        for agent in agents:
            await orchestra.register_agent(agent, run=echo)

        def found(wanted: Filter | None = None) -> list[str]:
            return [entry.agent.id for entry in orchestra.get_agents(wanted)]

        assert found() == ["a", "b", "c"]
        assert found(Filter(role=Role.SPECIALIST)) == ["b"]
        assert found(Filter(role=Role.WORKER)) == ["a", "c"]
        assert found(Filter(domain="d")) == ["b"]
        assert found(Filter(provider="p")) == ["b"]
        assert found(Filter(capability="DO")) == ["b", "c"]
        assert found(Filter(capability="do", domain="d")) == ["b"]
        assert found(Filter(status=Status.IDLE)) == ["b", "c"]
        assert found(Filter(status=Status.DISABLED)) == ["a"]
        assert found(Filter(status=Status.BUSY)) == []


async def test_kinds_come_with_the_schema_of_their_settings() -> None:
    async with temporary_orchestra() as orchestra:
        assert set(orchestra.kinds) >= {"function", "offline"}
        assert all(schema["type"] == "object" for schema in orchestra.kinds.values())


async def test_health_of_the_whole() -> None:
    async with temporary_orchestra() as orchestra:
        health = await orchestra.health()
        assert health.storage == {"reachable": True, "migrations": True}
        assert (health.in_flight, health.agents.total_agents, health.agents.system_health) == (0, 0, "healthy")
        await orchestra.register_agent(Agent(id="a", kind="function"), run=echo)
        later = await orchestra.health()
        assert later.uptime >= health.uptime >= 0
        assert later.agents.healthy_agents == later.agents.total_agents == 1


# --- conversations


async def test_conversations_are_listed_newest_first_in_pages() -> None:
    async with temporary_orchestra() as orchestra:
        made = [await orchestra.create_conversation(user_id=f"u{number % 2}") for number in range(7)]
        newest = [conversation.id for conversation in reversed(made)]
        listed: list[str] = []
        before: str | None = None
        while page := await orchestra.get_conversations(before=before, limit=3):
            listed += [conversation.id for conversation in page]
            before = listed[-1]
        assert listed == newest
        assert [c.id for c in await orchestra.get_conversations(user_id="u0")] == [
            c.id for c in reversed(made) if c.user_id == "u0"
        ]
        assert await orchestra.get_conversations(user_id="nobody") == []
        with pytest.raises(ConversationNotFound):
            await orchestra.get_conversations(before="gone")


async def test_a_conversation_is_what_it_was_made_as() -> None:
    async with temporary_orchestra(conversations={"input_policy": "reject"}) as orchestra:
        made = await orchestra.create_conversation(
            conversation_id="mine", user_id="u", context={"a": [1, None]}, input_policy=InputPolicy.INTERRUPT
        )
        assert await orchestra.get_conversation("mine") == made
        assert (made.active_agent, made.last_seq, made.context) == (None, 0, {"a": [1, None]})
        assert (await orchestra.create_conversation()).input_policy is InputPolicy.REJECT
        with pytest.raises(InvalidInput):
            await orchestra.create_conversation(user_id="\0")
        with pytest.raises(InvalidInput):
            await orchestra.create_conversation(context={"a": float("nan")})


@pytest.mark.parametrize("word", ["a\ud800", "a\0"], ids=["half", "nul"])
async def test_a_conversation_of_an_id_that_cannot_be_stored_is_refused(word: str) -> None:
    async with temporary_orchestra() as orchestra:
        with pytest.raises(InvalidInput):
            await orchestra.create_conversation(conversation_id=word)


async def test_messages_are_read_in_pages() -> None:
    async with temporary_orchestra() as orchestra:
        conversation = await orchestra.create_conversation()
        for number in range(5):
            added = await orchestra.add_message(conversation.id, f"note {number}", author=Author.SYSTEM)
            assert (added.seq, added.author) == (number + 1, Author.SYSTEM)
        page = await orchestra.get_messages(conversation.id, after=1, limit=2)
        assert [message.seq for message in page] == [2, 3]
        assert await orchestra.get_messages(conversation.id, after=5) == []
        with pytest.raises(ConversationNotFound):
            await orchestra.get_messages("gone")
        with pytest.raises(ConversationNotFound):
            await orchestra.add_message("gone", "x")
        with pytest.raises(InvalidInput):
            await orchestra.add_message(conversation.id, "  ")
        assert (await orchestra.get_conversation(conversation.id)).last_seq == 5


async def test_a_message_that_was_added_is_history_to_the_next_agent() -> None:
    async with temporary_orchestra() as orchestra:
        agent = ScriptedAgent(["fine"])
        await orchestra.register_agent(Agent(id="s", kind="function", keywords=("go",)), run=agent)
        conversation = await orchestra.create_conversation()
        await orchestra.add_message(conversation.id, "be brief", author=Author.SYSTEM)
        await orchestra.process_message(conversation.id, "go")
        assert [(m.author, m.content) for m in agent.calls[0].history] == [(Author.SYSTEM, "be brief")]
