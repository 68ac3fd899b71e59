"""What Backend promises, over functions in all their forms, over the offline backend and over several agents."""

from __future__ import annotations

import asyncio
import functools
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from agent_orchestra.adapters.function import FunctionBackend, wrapped
from agent_orchestra.adapters.offline import OfflineBackend
from agent_orchestra.core.agent import Agent
from agent_orchestra.core.plan import made
from agent_orchestra.core.request import Reply, Usage
from agent_orchestra.core.values import Json
from agent_orchestra.errors import AgentFailed, InvalidAgent
from agent_orchestra.runtime.coordinator import Coordinator, PlanBackend
from agent_orchestra.runtime.executor import Backend, Call, Emit, Executor, Pool
from agent_orchestra.runtime.instances import Dispatching, Unobserved
from agent_orchestra.runtime.registry import Registered, Roster, Source
from agent_orchestra.runtime.telemetry import Telemetry
from tests.runtime.parts import Lines
from tests.services.waiting import wait_until

NOTES = ["Parcels leave Zürich on Tuesday.\n\nReturns are free for 30 days.", "Invoices are sent by mail. 📬"]
SECRET = "hunter2: the message of a foreign error"


def _call(content: str = "when do parcels leave?") -> Call:
    agent = Agent(id="orders", kind="function", capabilities=("track", "return"))
    return Call(request_id="r1", conversation_id="c1", tenant="acme", agent=agent, content=content)


def _ignore(_: str) -> None:
    return


# --- functions in every form that give "<content>, answered": in one piece, or in three


def plain(content: str) -> str:
    return f"{content}, answered"


def plain_with_call(content: str, call: Call) -> str:
    assert call.content == content
    return f"{content}, answered"


def plain_with_default(content: str, ending: str = "answered") -> str:
    return f"{content}, {ending}"


def plain_with_rest(*arguments: object) -> str:
    return f"{arguments[0]}, answered"


async def awaited(content: str) -> str:
    await asyncio.sleep(0)
    return f"{content}, answered"


async def awaited_with_call(content: str, call: Call) -> str:
    await asyncio.sleep(0)
    return f"{call.content}, answered"


def told(content: str) -> Iterator[str]:
    yield content
    yield ""
    yield ", "
    yield "answered"


def told_with_call(content: str, call: Call) -> Iterator[str]:
    yield call.content
    yield ", answered"


async def told_slowly(content: str) -> AsyncIterator[str]:
    for piece in (content, ", ", "answered"):
        await asyncio.sleep(0)
        yield piece


async def told_slowly_with_call(content: str, call: Call) -> AsyncIterator[str]:
    yield call.content
    yield ", answered"


class Plain:
    def __call__(self, content: str) -> str:
        return f"{content}, answered"

    def method(self, content: str, call: Call) -> str:
        return f"{content}, answered"

    async def awaited_method(self, content: str) -> str:
        return f"{content}, answered"


class Awaited:
    async def __call__(self, content: str, call: Call) -> str:
        return f"{call.content}, answered"


class Told:
    def __call__(self, content: str) -> Iterator[str]:
        yield from (content, ", answered")


class ToldSlowly:
    async def __call__(self, content: str, call: Call) -> AsyncIterator[str]:
        yield content
        yield ", answered"


def _from(start: object, content: str) -> str:
    return f"{content}, answered"


async def _awaited_from(start: object, content: str) -> str:
    return f"{content}, answered"


def _told_from(start: object, content: str) -> Iterator[str]:
    yield from (content, ", answered")


async def _told_slowly_from(start: object, content: str) -> AsyncIterator[str]:
    yield content
    yield ", answered"


def _in_one_line() -> Callable[[str], str]:
    return lambda content: f"{content}, answered"


def _giving(given: object) -> Callable[[str], object]:
    return lambda _: given


WHOLE: list[Callable[..., object]] = [
    plain,
    plain_with_call,
    plain_with_default,
    plain_with_rest,
    awaited,
    awaited_with_call,
    _in_one_line(),
    Plain(),
    Plain().method,
    Plain().awaited_method,
    Awaited(),
    functools.partial(_from, 1),
    functools.partial(_awaited_from, 1),
]
IN_PIECES: list[Callable[..., object]] = [
    told,
    told_with_call,
    told_slowly,
    told_slowly_with_call,
    Told(),
    ToldSlowly(),
    functools.partial(_told_from, 1),
    functools.partial(_told_slowly_from, 1),
]


def _name(value: object) -> str:
    inner = value.func if isinstance(value, functools.partial) else value
    return getattr(inner, "__name__", type(inner).__name__).strip("_")


def _together() -> Backend:
    functions: dict[str, Callable[..., object]] = {"a": plain, "b": told}
    entries = {
        agent_id: Registered(
            tenant="acme",
            agent=Agent(id=agent_id, kind="function"),
            source=Source.CODE,
            pool=Pool([wrapped(agent_id, function)]),
            updated_ms=0,
        )
        for agent_id, function in functions.items()
    }
    executor = Executor(policy=Dispatching(), max_output_chars=1_000, observer=Unobserved())
    coordinator = Coordinator(
        roster=lambda _: Roster(entries),
        executor=executor,
        wrap=wrapped,
        telemetry=Telemetry(Lines(), detailed=False),
    )
    return PlanBackend(coordinator, made(["a", "b"]))


@pytest.fixture(params=[*WHOLE, *IN_PIECES, OfflineBackend, PlanBackend], ids=_name)
def backend(request: pytest.FixtureRequest) -> Backend:
    if request.param is PlanBackend:
        return _together()
    if request.param is OfflineBackend:
        return OfflineBackend(NOTES, 2)
    return FunctionBackend("orders", request.param)


# --- what every backend does


async def test_the_pieces_make_up_the_output(backend: Backend) -> None:
    pieces: list[str] = []

    reply = await backend.run(_call(), pieces.append)

    assert reply.output
    assert "".join(pieces) in ("", reply.output)


async def test_twenty_at_once_do_not_mix(backend: Backend) -> None:
    questions = [f"{word} {number}" for number in range(10) for word in ("parcels", "invoices")]
    heard: list[list[str]] = [[] for _ in questions]
    alone = [(await backend.run(_call(question), _ignore)).output for question in questions]

    replies = await asyncio.gather(
        *(backend.run(_call(question), heard[n].append) for n, question in enumerate(questions))
    )

    assert [reply.output for reply in replies] == alone
    assert len(set(alone)) > 1
    assert all("".join(pieces) in ("", output) for pieces, output in zip(heard, alone, strict=True))


async def test_an_emit_that_refuses_ends_the_call(backend: Backend) -> None:
    """As when there is too much output: the agent must not go on talking to nobody."""

    def refuse(_: str) -> None:
        raise AgentFailed("too long", cause="output_too_long")

    pieces: list[str] = []
    await backend.run(_call(), pieces.append)
    if not pieces:
        await backend.run(_call(), refuse)
        return
    with pytest.raises(AgentFailed) as raised:
        await backend.run(_call(), refuse)
    assert raised.value.data == {"cause": "output_too_long"}


# --- functions


@pytest.mark.parametrize("function", WHOLE, ids=_name)
async def test_a_function_gives_its_output_whole(function: Callable[..., object]) -> None:
    pieces: list[str] = []

    reply = await FunctionBackend("orders", function).run(_call("asked"), pieces.append)

    assert reply == Reply(output="asked, answered")
    assert pieces == []


@pytest.mark.parametrize("function", IN_PIECES, ids=_name)
async def test_a_generator_tells_its_output(function: Callable[..., object]) -> None:
    pieces: list[str] = []

    reply = await FunctionBackend("orders", function).run(_call("asked"), pieces.append)

    assert reply == Reply(output="asked, answered")
    assert len(pieces) > 1
    assert "".join(pieces) == "asked, answered"


@pytest.mark.parametrize(
    ("given", "reply"),
    [
        ("text", Reply(output="text")),
        ("", Reply(output="")),
        (None, Reply(output="")),
        ({"größe": [1, 2.5, None]}, Reply(output='{"größe": [1, 2.5, null]}', value={"größe": [1, 2.5, None]})),
        (["a", True], Reply(output='["a", true]', value=["a", True])),
        (("a", 1), Reply(output='["a", 1]', value=["a", 1])),
        (0, Reply(output="0", value=0)),
        (False, Reply(output="false", value=False)),
        (Reply(output="text", value={"a": 1}, usage=Usage(input_tokens=7)),) * 2,
    ],
    ids=repr,
)
async def test_what_a_function_may_give_back(given: Json | Reply, reply: Reply) -> None:
    async def gives(content: str) -> object:
        return given

    for function in (_giving(given), gives):
        assert await FunctionBackend("orders", function).run(_call(), _ignore) == reply


@pytest.mark.parametrize("given", [object(), {1, 2}, float("nan"), {"a": float("inf")}, {"a": b"x"}, Reply(output=1)])  # type: ignore[arg-type]
async def test_what_is_neither_text_nor_json_is_the_agents_failure(given: object) -> None:
    with pytest.raises(AgentFailed) as raised:
        await FunctionBackend("orders", _giving(given)).run(_call(), _ignore)

    assert raised.value.data["cause"] in ("output_not_json", "output_not_text")


def raises(content: str) -> str:
    raise ValueError(SECRET)


async def raises_later(content: str) -> str:
    await asyncio.sleep(0)
    raise ValueError(SECRET)


def raises_between(content: str) -> Iterator[str]:
    yield "first"
    raise ValueError(SECRET)


async def raises_between_later(content: str) -> AsyncIterator[str]:
    yield "first"
    raise ValueError(SECRET)


@pytest.mark.parametrize("function", [raises, raises_later, raises_between, raises_between_later], ids=_name)
async def test_an_exception_is_told_by_its_class_only(function: Callable[..., object]) -> None:
    with pytest.raises(AgentFailed) as raised:
        await FunctionBackend("orders", function).run(_call(), _ignore)

    assert raised.value.data == {"cause": "ValueError"}
    assert "ValueError" in raised.value.detail
    assert SECRET not in f"{raised.value.detail} {raised.value.data} {raised.value}"
    assert isinstance(raised.value.__cause__, ValueError)


@pytest.mark.parametrize("function", [raises_between, raises_between_later], ids=_name)
async def test_what_was_told_before_an_exception_was_told(function: Callable[..., object]) -> None:
    pieces: list[str] = []

    with pytest.raises(AgentFailed):
        await FunctionBackend("orders", function).run(_call(), pieces.append)

    assert pieces == ["first"]


async def test_the_agents_own_failure_goes_through_as_it_is() -> None:
    def fails(content: str) -> str:
        raise AgentFailed("the shop is closed", cause="closed")

    with pytest.raises(AgentFailed, match="the shop is closed") as raised:
        await FunctionBackend("orders", fails).run(_call(), _ignore)

    assert raised.value.data == {"cause": "closed"}


def exits(content: str) -> str:
    raise SystemExit(3)


async def exits_later(content: str) -> str:
    raise SystemExit(3)


@pytest.mark.parametrize("function", [exits, exits_later], ids=_name)
async def test_a_function_that_exits_does_not_take_the_service_with_it(function: Callable[..., object]) -> None:
    ended: BaseException | None = None
    try:
        await FunctionBackend("orders", function).run(_call(), _ignore)
    except BaseException as error:  # noqa: BLE001  what it is is the question
        ended = error

    assert isinstance(ended, AgentFailed)
    assert "SystemExit" in ended.detail


@pytest.mark.parametrize("form", ["sync", "async"])
async def test_pieces_that_are_no_text_are_the_agents_failure(form: str) -> None:
    def numbers(content: str) -> Iterator[Any]:
        yield 1

    async def numbers_later(content: str) -> AsyncIterator[Any]:
        yield 1

    function: Callable[..., object] = numbers if form == "sync" else numbers_later
    with pytest.raises(AgentFailed) as raised:
        await FunctionBackend("orders", function).run(_call(), _ignore)

    assert raised.value.data == {"cause": "output_not_text"}


def none() -> str:
    return ""


def three(content: str, call: Call, more: object) -> str:
    return ""


@pytest.mark.parametrize("function", [none, three], ids=_name)
def test_a_function_that_takes_neither_one_argument_nor_two(function: Callable[..., object]) -> None:
    with pytest.raises(InvalidAgent):
        FunctionBackend("orders", function)


async def test_a_plain_function_does_not_hold_up_the_others() -> None:
    go_on = threading.Event()

    def waits(content: str) -> str:
        assert go_on.wait(10), "nobody told it to go on"
        return "waited"

    waiting = asyncio.create_task(FunctionBackend("slow", waits).run(_call(), _ignore))
    try:
        assert (await FunctionBackend("orders", plain).run(_call("asked"), _ignore)).output == "asked, answered"
        assert not waiting.done()
    finally:
        go_on.set()
    assert (await waiting).output == "waited"


class TestCancelling:
    async def test_an_async_function_ends(self) -> None:
        begun, ended = asyncio.Event(), asyncio.Event()

        async def waits(content: str) -> str:
            begun.set()
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()
            return "never"

        await self._cancelled(waits, begun.is_set)
        assert ended.is_set()

    async def test_an_async_generator_ends_and_tells_nothing_more(self) -> None:
        begun = asyncio.Event()

        async def waits(content: str) -> AsyncIterator[str]:
            yield "first"
            begun.set()
            await asyncio.Event().wait()
            yield "second"

        assert await self._cancelled(waits, begun.is_set) == ["first"]

    async def test_a_plain_function_is_over_when_its_thread_is(self) -> None:
        begun, go_on = threading.Event(), threading.Event()

        def waits(content: str) -> str:
            begun.set()
            assert go_on.wait(10), "nobody told it to go on"
            return "too late"

        task = asyncio.create_task(FunctionBackend("orders", waits).run(_call(), _ignore))
        await wait_until(begun.is_set, "the function did not begin")
        task.cancel()
        await asyncio.sleep(0.02)
        assert not task.done()

        go_on.set()

        with pytest.raises(asyncio.CancelledError):
            await task

    async def test_a_plain_generator_ends_between_two_pieces(self) -> None:
        begun, give_up = threading.Event(), threading.Event()

        def talks(content: str) -> Iterator[str]:
            while not give_up.is_set():
                begun.set()
                time.sleep(0.005)
                yield "and "

        try:
            await self._cancelled(talks, begun.is_set)
        finally:
            give_up.set()

    async def _cancelled(self, function: Callable[..., object], begun: Callable[[], bool]) -> list[str]:
        pieces: list[str] = []
        task = asyncio.create_task(FunctionBackend("orders", function).run(_call(), pieces.append))
        await wait_until(begun, "the function did not begin")
        task.cancel()
        done, _ = await asyncio.wait((task,), timeout=3)
        assert done, "the call did not end when it was cancelled"
        assert task.cancelled()
        return pieces


# --- the offline backend


async def test_offline_answers_from_the_notes_and_says_that_it_is_offline() -> None:
    reply = await OfflineBackend(NOTES, 1).run(_call("When does my parcel leave?"), _ignore)

    assert "offline" in reply.output
    assert "Parcels leave Zürich on Tuesday." in reply.output
    assert "Invoices" not in reply.output
    assert "Returns" not in reply.output


async def test_offline_gives_the_same_answer_every_time() -> None:
    questions = ["parcels", "invoices by mail", "free returns in 30 days", "", "?", "ß 📬", "nothing of the kind"]

    async def answers() -> list[str]:
        backend = OfflineBackend(NOTES, 3)
        return [(await backend.run(_call(question), _ignore)).output for question in questions]

    assert await answers() == await answers()


async def test_offline_says_so_when_it_knows_nothing() -> None:
    reply = await OfflineBackend(NOTES, 2).run(_call("quantum chromodynamics"), _ignore)

    assert "track, return" in reply.output
    assert all(note not in reply.output for note in NOTES)


async def test_offline_tells_its_answer_in_pieces() -> None:
    pieces: list[str] = []

    reply = await OfflineBackend(NOTES, 2).run(_call("parcels and invoices"), pieces.append)

    assert len(pieces) == 3
    assert "".join(pieces) == reply.output


@pytest.mark.parametrize("notes", [["the and of"], ["?"], ["same", "same"], ["\n\n x \n\n"]])
async def test_offline_takes_whatever_the_notes_are(notes: list[str]) -> None:
    for question in ("the", "same", "x", ""):
        assert (await OfflineBackend(notes, 2).run(_call(question), _ignore)).output


async def test_offline_ends_when_it_is_cancelled() -> None:
    heard: list[str] = []
    task: asyncio.Task[Reply]

    def cancels(piece: str) -> None:
        heard.append(piece)
        task.cancel()

    emit: Emit = cancels
    task = asyncio.create_task(OfflineBackend(NOTES, 2).run(_call("parcels and invoices"), emit))

    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(heard) == 1
