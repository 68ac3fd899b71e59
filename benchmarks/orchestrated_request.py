"""The cost of one orchestrated request: routed, answered by an agent that does nothing, and put on record.

Every request adds the user's message and the agent's to a conversation. A conversation has 25 turns: the first finds no
history, the last one 48 messages, all of which the agent is given. Then the next conversation begins.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from benchmarks.harness import Case, Figures, Question, quantile
from benchmarks.service import QUESTION, REPLY, Client, Service, serving

__all__ = ["QUESTIONS"]

_TURNS: Final = 25
_WARM_UP: Final = 2
#: The longest that a load may last, so that a service which answers slowly ends the measurement too.
_LOAD_SECONDS: Final = 60.0

#: Takes a conversation's number and a turn's number, and has that turn answered.
Turn = Callable[[int, int], Awaitable[None]]


# --- in process


def ours(quick: bool) -> Figures:
    return asyncio.run(_ours(quick, "NORMAL"))


def ours_full(quick: bool) -> Figures:
    return asyncio.run(_ours(quick, "FULL"))


def langgraph(quick: bool) -> Figures:
    return asyncio.run(_langgraph(quick, None, "async"))


def langgraph_normal(quick: bool) -> Figures:
    return asyncio.run(_langgraph(quick, "NORMAL", "async"))


def langgraph_exit(quick: bool) -> Figures:
    return asyncio.run(_langgraph(quick, "NORMAL", "exit"))


async def _ours(quick: bool, synchronous: str) -> Figures:
    from agent_orchestra import Agent, open_orchestra

    async def answer(content: str) -> str:  # noqa: ARG001
        return REPLY

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "orchestra.db")
        os.environ["ORCHESTRA_DATABASE__SYNCHRONOUS"] = synchronous
        async with open_orchestra(path) as orchestra:
            await orchestra.register_agent(Agent(id="notes", kind="function", keywords=("note", "meeting")), answer)
            conversations: dict[int, str] = {}

            async def turn(conversation: int, _: int) -> None:
                done = await orchestra.process_request(QUESTION, conversation_id=conversations.get(conversation))
                conversations[conversation] = done.conversation_id
                assert done.output == REPLY

            return await _turns(turn, quick)


async def _langgraph(quick: bool, synchronous: str | None, durability: str) -> Figures:
    """One node over one list of messages: the least that LangGraph can be asked to do and to record."""
    graphs: Any = import_module("langgraph.graph")
    savers: Any = import_module("langgraph.checkpoint.sqlite.aio")
    messages: Any = import_module("langchain_core.messages")

    async def node(_: Any) -> Any:
        return {"messages": [messages.AIMessage(REPLY)]}

    # It looks at the annotations of a node to find out what the node takes.
    node.__annotations__.clear()
    with tempfile.TemporaryDirectory() as folder:
        async with savers.AsyncSqliteSaver.from_conn_string(str(Path(folder, "langgraph.db"))) as saver:
            await saver.setup()
            if synchronous is not None:
                await saver.conn.execute(f"PRAGMA synchronous={synchronous}")
            builder = graphs.StateGraph(graphs.MessagesState)
            builder.add_node("notes", node)
            builder.add_edge(graphs.START, "notes")
            builder.add_edge("notes", graphs.END)
            graph = builder.compile(checkpointer=saver)
            threads: dict[int, str] = {}

            async def turn(conversation: int, number: int) -> None:
                thread = threads.setdefault(conversation, str(uuid.uuid4()))
                state = await graph.ainvoke(
                    {"messages": [messages.HumanMessage(QUESTION)]},
                    {"configurable": {"thread_id": thread}},
                    durability=durability,
                )
                assert len(state["messages"]) == 2 * number + 2
                assert state["messages"][-1].content == REPLY

            return await _turns(turn, quick)


async def _turns(turn: Turn, quick: bool) -> Figures:
    """One after the other: some conversations unmeasured, then those that count."""
    measured = 4 if quick else 20
    for conversation in range(-_WARM_UP, 0):
        for number in range(_TURNS):
            await turn(conversation, number)
    first: list[float] = []
    later: list[float] = []
    for conversation in range(measured):
        for number in range(_TURNS):
            began = time.perf_counter()
            await turn(conversation, number)
            (later if number else first).append((time.perf_counter() - began) * 1_000)
    return {
        "turn in a conversation, p50 ms": quantile(later, 0.5),
        "turn in a conversation, p99 ms": quantile(later, 0.99),
        "first turn of a conversation, p50 ms": quantile(first, 0.5),
        "one at a time, requests/s": 1_000 * len(first + later) / sum(first + later),
    }


# --- over HTTP


def ours_http(quick: bool) -> Figures:
    import uvloop

    with tempfile.TemporaryDirectory() as folder, serving(Path(folder)) as service:
        return uvloop.run(_load(service, quick))


async def _load(service: Service, quick: bool) -> Figures:
    loop = asyncio.get_running_loop()
    clients = [
        (await loop.create_connection(lambda: Client(service.host), service.host, service.port))[1] for _ in range(32)
    ]
    each = 5 if quick else 2 * _TURNS
    await _clients(clients, 5, 1)
    figures: Figures = {}
    for some, requests in ((clients[:1], each * 10), (clients, each * 2)):
        for turns, words in ((_TURNS, "in its conversation"), (1, "each a new conversation")):
            began = time.perf_counter()
            taken = await asyncio.wait_for(_clients(some, requests, turns), _LOAD_SECONDS)
            seconds = time.perf_counter() - began
            what = f"{len(some)} client{'s' if len(some) > 1 else ''}, {words}"
            figures[f"{what}, requests/s"] = len(taken) / seconds
            figures[f"{what}, p50 ms"] = quantile(taken, 0.5)
            figures[f"{what}, p99 ms"] = quantile(taken, 0.99)
    for client in clients:
        client.close()
    return figures


async def _clients(clients: Sequence[Client], requests: int, turns: int) -> list[float]:
    """The milliseconds of each request. Every client asks so many, and begins a new conversation after some turns."""

    async def one(client: Client) -> list[float]:
        taken: list[float] = []
        conversation: str | None = None
        for number in range(requests):
            began = time.perf_counter()
            conversation = await client.ask(conversation if number % turns else None)
            taken.append((time.perf_counter() - began) * 1_000)
        return taken

    return [milliseconds for taken in await asyncio.gather(*map(one, clients)) for milliseconds in taken]


QUESTIONS: Final = (
    Question(
        name="in-process",
        title="One orchestrated request, in process",
        note=(
            "Conversations of 25 turns on SQLite in a file with a write-ahead log; the agent does nothing. LangGraph: "
            "a graph of one node with `AsyncSqliteSaver`, which by itself waits for the disk at every commit "
            "(`synchronous=FULL`); we do not unless told to, so both are measured both ways. With `durability=exit` it "
            "records nothing before a request has ended. Ours records the request before it runs, and routes it."
        ),
        cases=(
            Case(name="Agent Orchestra", measure=ours),
            Case(name="LangGraph", measure=langgraph),
            Case(name="LangGraph, `NORMAL`", measure=langgraph_normal),
            Case(name="LangGraph, `NORMAL`, `durability=exit`", measure=langgraph_exit),
            Case(name="Agent Orchestra, `FULL`", measure=ours_full),
        ),
        aims={"turn in a conversation, p50 ms": 1.0, "first turn of a conversation, p50 ms": 1.0},
    ),
    Question(
        name="http",
        title="One orchestrated request, over HTTP",
        note=(
            "The service is one process, the clients are another, over loopback with kept connections; every answer is "
            "checked. A client that stays in its conversation begins a new one after 25 turns."
        ),
        cases=(Case(name="Agent Orchestra", measure=ours_http),),
        aims={
            "32 clients, in its conversation, requests/s": 1_000.0,
            "32 clients, each a new conversation, requests/s": 1_000.0,
        },
    ),
)
