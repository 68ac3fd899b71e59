"""The operator's own router: what it may be, what it may give, and that nothing it does harms a request."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import AsyncGenerator, Callable, Sequence
from contextvars import ContextVar
from typing import Final

import numpy as np
import pytest

from agent_orchestra.adapters.own_router import FunctionRouter, own_router
from agent_orchestra.core.agent import Agent
from agent_orchestra.core.message import Author, Message
from agent_orchestra.core.routing import Choice
from agent_orchestra.errors import ConfigurationError
from agent_orchestra.runtime.router import OwnRouter, OwnRouterFailed, RouteRequest
from tests.services.waiting import wait_until

PATIENT: Final = 60.0
AGENTS: Final = {name: Agent(id=name, kind="offline") for name in ("billing", "support", "travel")}


def request(text: str = "I was charged twice") -> RouteRequest:
    history = [Message(id="m1", seq=1, author=Author.USER, content="hello", created_ms=1)]
    return RouteRequest(
        text=text, agents=AGENTS, user_id="ann", context={"plan": "gold"}, active_agent="support", history=history
    )


async def chosen(function: Callable[..., object], *, timeout: float = PATIENT) -> Choice | None:
    router: OwnRouter = FunctionRouter(function, timeout=timeout)
    return await router.choose(request())


async def code_of(function: Callable[..., object], *, timeout: float = PATIENT) -> str:
    """Why there is no choice."""
    with pytest.raises(OwnRouterFailed) as caught:
        await chosen(function, timeout=timeout)
    return caught.value.code


def giving(given: object) -> Callable[[RouteRequest], object]:
    return lambda _: given


# --- functions that settings name


def by_plan(asked: RouteRequest) -> str | None:
    return "billing" if asked.context.get("plan") == "gold" else None


def nothing() -> None: ...


def two(asked: RouteRequest, more: object) -> None: ...


def keyword(*, asked: RouteRequest) -> None: ...


# --- what it may be


async def test_a_function_is_found_by_its_name() -> None:
    router = own_router(f"{__name__}:by_plan")
    assert await router.choose(request()) == Choice(agents=("billing",))


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("by_plan", "not of the form 'module:function'"),
        ("no.such.module:route", "cannot be imported"),
        (f"{__name__}:no_such_function", "has no 'no_such_function'"),
        (f"{__name__}:AGENTS", "cannot be called"),
        (f"{__name__}:nothing", "must take one argument"),
        (f"{__name__}:two", "must take one argument"),
        (f"{__name__}:keyword", "must take one argument"),
    ],
)
def test_what_is_not_there_is_said_at_the_start(target: str, says: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^routing\.custom: ") as caught:
        own_router(target)
    assert says in caught.value.detail


async def test_a_function_is_given_all_that_is_known_of_the_request() -> None:
    given: list[RouteRequest] = []
    await chosen(given.append)
    assert given == [request()]


async def test_a_function_may_be_async() -> None:
    async def route(asked: RouteRequest) -> str:
        await asyncio.sleep(0)
        return "travel"

    assert await chosen(route) == Choice(agents=("travel",))
    assert await chosen(functools.partial(route)) == Choice(agents=("travel",))


async def test_a_function_may_give_what_is_to_be_awaited() -> None:
    async def route(asked: RouteRequest) -> str:
        return "travel"

    def called(asked: RouteRequest) -> object:
        return route(asked)

    assert await chosen(called) == Choice(agents=("travel",))


async def test_an_object_that_can_be_called_may_be_async() -> None:
    class Fitted:
        async def __call__(self, asked: RouteRequest) -> str:
            return "travel"

    assert await chosen(Fitted()) == Choice(agents=("travel",))


async def test_a_function_that_is_not_async_runs_beside_the_loop_and_knows_its_context() -> None:
    tenant: ContextVar[str] = ContextVar("tenant")
    tenant.set("acme")
    threads: list[tuple[int, str]] = []

    def route(asked: RouteRequest) -> None:
        threads.append((threading.get_ident(), tenant.get()))

    await chosen(route)
    [(thread, seen)] = threads
    assert thread != threading.get_ident()
    assert seen == "acme"


# --- what it may give


@pytest.mark.parametrize(
    ("given", "choice"),
    [
        (None, None),
        ("billing", Choice(agents=("billing",))),
        (["billing", "travel"], Choice(agents=("billing", "travel"))),
        (("billing",), Choice(agents=("billing",))),
        (["billing", "travel", "billing"], Choice(agents=("billing", "travel"))),
        ({"agent": "billing"}, Choice(agents=("billing",))),
        ({"agents": ["travel", "billing"], "confidence": 0.5}, Choice(agents=("travel", "billing"), confidence=0.5)),
        ({"agent": "billing", "confidence": 1, "reason": "VIP"}, Choice(agents=("billing",), reason="VIP")),
        ({"agent": "billing", "confidence": np.float32(0.5)}, Choice(agents=("billing",), confidence=0.5)),
        ({"agent": "billing", "reason": "\0" + "x" * 600}, Choice(agents=("billing",), reason="\ufffd" + "x" * 499)),
        (
            Choice(agents=("billing",), confidence=0.0, reason="a guess"),
            Choice(agents=("billing",), confidence=0.0, reason="a guess"),
        ),
    ],
    ids=repr,
)
async def test_a_choice_has_several_forms(given: object, choice: Choice | None) -> None:
    assert await chosen(giving(given)) == choice


async def test_of_several_agents_those_count_that_can_take_the_request() -> None:
    assert await chosen(giving(["away", "travel", "gone"])) == Choice(agents=("travel",))


@pytest.mark.parametrize(
    "given", ["admin", ["admin", "root"], {"agent": "admin"}, Choice(agents=("admin",)), "Billing"]
)
async def test_agents_that_are_not_there_are_no_choice(given: object) -> None:
    assert await code_of(giving(given)) == "own_router_unknown_agent"


@pytest.mark.parametrize(
    "given",
    [
        5,
        True,
        b"billing",
        {"billing"},
        [],
        ["billing", 5],
        [["billing"]],
        {},
        {"agent": None},
        {"agent": "billing", "agents": ["billing"]},
        {"agent": "billing", "score": 1.0},
        {5: "billing"},
        {"agent": "billing", "confidence": "0.5"},
        {"agent": "billing", "confidence": None},
        {"agent": "billing", "confidence": True},
        {"agent": "billing", "confidence": 1.1},
        {"agent": "billing", "confidence": -0.1},
        {"agent": "billing", "confidence": float("nan")},
        {"agent": "billing", "reason": None},
        Choice(agents=()),
        Choice(agents=("billing",), confidence=2.0),
        AGENTS["billing"],
        np.array(["billing"]),
    ],
    ids=repr,
)
async def test_anything_else_is_no_choice(given: object) -> None:
    assert await code_of(giving(given)) == "own_router_invalid"


# --- what it may do


class Secretive(Exception):
    pass


@pytest.mark.parametrize(
    "error",
    [Secretive, SystemExit, KeyboardInterrupt, GeneratorExit, StopIteration, asyncio.CancelledError, TimeoutError],
)
async def test_what_it_raises_ends_its_own_call_and_is_not_told(error: type[BaseException]) -> None:
    def route(asked: RouteRequest) -> None:
        raise error("hunter2 is the password")

    async def later(asked: RouteRequest) -> None:
        raise error("hunter2 is the password")

    for function in (route, later):
        with pytest.raises(OwnRouterFailed) as caught:
            await chosen(function)
        assert caught.value.code == "own_router_raised"
        assert "hunter2" not in f"{caught.value} {caught.value!r}"


async def test_what_it_raises_is_the_cause() -> None:
    def route(asked: RouteRequest) -> None:
        raise Secretive

    with pytest.raises(OwnRouterFailed) as caught:
        await chosen(route)
    assert isinstance(caught.value.__cause__, Secretive)


async def test_an_async_function_that_takes_too_long_is_cancelled() -> None:
    ended: list[str] = []

    async def route(asked: RouteRequest) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(asked.text)

    assert await code_of(route, timeout=0.01) == "own_router_timeout"
    await wait_until(lambda: bool(ended), "the call goes on")


async def test_to_cancel_a_request_is_to_cancel_the_call() -> None:
    steps: list[str] = []

    async def route(asked: RouteRequest) -> None:
        steps.append("began")
        try:
            await asyncio.Event().wait()
        finally:
            steps.append("ended")

    task = asyncio.create_task(chosen(route))
    await wait_until(lambda: steps == ["began"], "the function was not called")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await wait_until(lambda: steps == ["began", "ended"], "the call goes on")


@pytest.fixture
async def stuck() -> AsyncGenerator[Callable[[RouteRequest], str]]:
    """A function that does not end until the test does."""
    done = threading.Event()
    calls: list[int] = []
    ended: list[int] = []

    def route(asked: RouteRequest) -> str:
        if asked.text == "quick":
            return "billing"
        calls.append(1)
        done.wait(30)
        ended.append(1)
        raise Secretive

    yield route
    done.set()
    await wait_until(lambda: len(ended) == len(calls), "threads are left")


async def test_a_thread_that_does_not_end_is_not_waited_for(stuck: Callable[[RouteRequest], str]) -> None:
    router = FunctionRouter(stuck, timeout=0.01)
    with pytest.raises(OwnRouterFailed, match="own_router_timeout"):
        await router.choose(request())
    assert (await FunctionRouter(stuck, timeout=PATIENT).choose(request("quick"))) == Choice(agents=("billing",))


async def test_threads_that_do_not_end_do_not_pile_up(stuck: Callable[[RouteRequest], str]) -> None:
    router = FunctionRouter(stuck, timeout=0.01)
    codes: list[str] = []
    for _ in range(20):
        with pytest.raises(OwnRouterFailed) as caught:
            await router.choose(request())
        codes.append(caught.value.code)
    assert codes == ["own_router_timeout"] * 16 + ["own_router_busy"] * 4


async def test_once_they_have_ended_the_function_is_called_again() -> None:
    done = threading.Event()

    def route(asked: RouteRequest) -> str:
        done.wait(30)
        return "billing"

    router = FunctionRouter(route, timeout=0.01)
    for _ in range(16):
        with pytest.raises(OwnRouterFailed, match="own_router_timeout"):
            await router.choose(request())
    with pytest.raises(OwnRouterFailed, match="own_router_busy"):
        await router.choose(request())
    done.set()

    while True:
        try:
            assert await router.choose(request()) == Choice(agents=("billing",))
            break
        except OwnRouterFailed:
            # A thread takes a moment to end, and to begin.
            await asyncio.sleep(0.01)


async def test_requests_are_decided_side_by_side() -> None:
    together = threading.Barrier(8, timeout=30)

    def route(asked: RouteRequest) -> str:
        together.wait()
        return "billing"

    router = FunctionRouter(route, timeout=PATIENT)
    choices: Sequence[Choice | None] = await asyncio.gather(*(router.choose(request()) for _ in range(8)))
    assert choices == [Choice(agents=("billing",))] * 8
