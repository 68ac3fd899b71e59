"""Calls: which instance takes one, what comes back, and what is left behind."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from agent_orchestra.adapters.function import wrapped
from agent_orchestra.core.agent import Agent, Limits, Status
from agent_orchestra.core.request import Reply, Usage
from agent_orchestra.core.resilience import Recovery
from agent_orchestra.errors import (
    AgentFailed,
    ContentRefused,
    DeadlineExceeded,
    Interrupted,
    ModelAuthenticationFailed,
    ModelNotFound,
    ModelOverloaded,
    ModelRateLimited,
    ModelServerError,
    NoInstanceAvailable,
    RunFailed,
)
from agent_orchestra.runtime.executor import Backend, Call, Emit, Executor, Instance, Outcome, Pool, Reserved
from agent_orchestra.runtime.instances import Dispatching, Unobserved
from tests.runtime.parts import opened
from tests.services.waiting import wait_until


class Says:
    """Tells its pieces, then gives its reply or raises."""

    def __init__(self, *pieces: str, reply: Reply | None = None, raises: BaseException | None = None) -> None:
        self._pieces = pieces
        self._reply = reply or Reply(output="".join(pieces))
        self._raises = raises

    async def run(self, call: Call, emit: Emit) -> Reply:
        for piece in self._pieces:
            emit(piece)
            await asyncio.sleep(0)
        if self._raises is not None:
            raise self._raises
        return self._reply


class Waits:
    """Answers when it is let; ``stubborn`` means that it does not end when it is cancelled."""

    def __init__(self, *, stubborn: bool = False) -> None:
        self.leave = asyncio.Event()
        self.told_to_stop = 0
        self.emit: Emit | None = None
        self._stubborn = stubborn

    async def run(self, call: Call, emit: Emit) -> Reply:
        self.emit = emit
        while not self.leave.is_set():
            try:
                await self.leave.wait()
            except asyncio.CancelledError:
                self.told_to_stop += 1
                if not self._stubborn:
                    raise
        return Reply(output="at last")


def tell_nobody(_: str) -> None:
    return None


def agent(concurrency: int = 1, timeout: float | None = None) -> Agent:
    """Each of its instances is tried once, and none again."""
    limits = Limits(concurrency=concurrency, timeout=timeout)
    return Agent(id="a", kind="x", limits=limits, recovery=Recovery(attempts=1))


def pool(*backends: Backend) -> Pool:
    return Pool([Instance(id=f"i{number}", backend=backend) for number, backend in enumerate(backends)])


def executor(*, balanced: bool = True, most: int = 1_000) -> Executor:
    return Executor(policy=Dispatching(balanced=balanced), max_output_chars=most, observer=Unobserved())


async def reserved(executor_: Executor, who: Agent, where: Pool) -> Reserved:
    return await executor_.reserve([(who, where)], stick="c", seconds=1.0)


class Told:
    def __init__(self) -> None:
        self.pieces: list[tuple[str, int]] = []

    def __call__(self, piece: str, said: int) -> None:
        self.pieces.append((piece, said))


async def run(
    executor_: Executor, where: Pool, who: Agent, told: Callable[[str, int], None] | None = None, seconds: float = 5.0
) -> Outcome:
    call = Call(request_id="r", conversation_id="c", tenant="t", agent=who, content="x")
    return await executor_.run(await reserved(executor_, who, where), call, seconds=seconds, emit=told or Told())


# --- what comes back


@pytest.mark.parametrize(
    ("backend", "pieces"),
    [
        (Says("one ", "two"), [("one ", 0), ("two", 4)]),
        (Says("one ", "", "two"), [("one ", 0), ("two", 4)]),
        (Says(reply=Reply(output="whole")), [("whole", 0)]),
        (Says(), []),
    ],
)
async def test_a_reply_is_told_once_by_pieces_or_whole(backend: Says, pieces: Sequence[tuple[str, int]]) -> None:
    where, told = pool(backend), Told()
    outcome = await run(executor(), where, agent(), told)
    assert told.pieces == list(pieces)
    assert outcome.reply is not None
    assert outcome.reply.output == outcome.told == "".join(piece for piece, _ in pieces)
    assert outcome.error is None
    assert where.in_flight == 0


async def test_a_reply_keeps_its_value_and_its_usage() -> None:
    reply = Reply(output="text", value={"n": 1}, usage=Usage(input_tokens=1, output_tokens=2, cost_usd=0.5))
    assert (await run(executor(), pool(Says(reply=reply)), agent())).reply == reply


async def test_what_no_database_can_hold_is_replaced_in_stream_and_reply_alike() -> None:
    told = Told()
    outcome = await run(executor(), pool(Says("a\0", "b\ud800")), agent(), told)
    assert outcome.reply is not None
    assert outcome.reply.output == "".join(piece for piece, _ in told.pieces)
    assert outcome.reply.output.startswith("a\ufffdb\ufffd")
    assert "\ud800" not in outcome.reply.output


@pytest.mark.parametrize(
    ("backend", "kind", "data", "told"),
    [
        (Says("so far", raises=AgentFailed("no", cause="mood")), AgentFailed, {"cause": "mood"}, "so far"),
        (Says(raises=Interrupted("stop")), Interrupted, {}, ""),
        (Says("x", raises=ZeroDivisionError("secret")), AgentFailed, {"cause": "ZeroDivisionError"}, "x"),
        (Says(raises=asyncio.CancelledError()), AgentFailed, {"cause": "cancelled"}, ""),
        (Says("one", reply=Reply(output="two")), AgentFailed, {"cause": "output_mismatch"}, "one"),
        (Says("12345", "67890", "!"), AgentFailed, {"cause": "output_too_long"}, "1234567890"),
        (Says(reply=Reply(output="12345678901")), AgentFailed, {"cause": "output_too_long"}, ""),
    ],
)
async def test_what_goes_wrong_is_an_outcome(
    backend: Says, kind: type[Exception], data: dict[str, object], told: str
) -> None:
    where = pool(backend)
    outcome = await run(executor(most=10), where, agent())
    assert outcome.reply is None
    assert type(outcome.error) is kind
    assert outcome.error is not None
    assert outcome.error.data == data
    assert "secret" not in outcome.error.detail
    assert outcome.told == told
    (attempt,) = outcome.attempts
    assert (attempt.agent_id, attempt.instance_id, attempt.error) == ("a", "i0", outcome.error.code)
    assert where.in_flight == 0


async def test_an_attempt_tells_how_long_it_took() -> None:
    waits = Waits()
    outcome = await run(executor(), pool(waits), agent(), seconds=0.05)
    (attempt,) = outcome.attempts
    assert attempt.duration_ms >= 40
    assert attempt.error == "deadline_exceeded"


# --- time


@pytest.mark.parametrize(("of_agent", "of_request"), [(0.03, 5.0), (5.0, 0.03), (None, 0.03)])
async def test_the_shorter_time_ends_a_call(of_agent: float | None, of_request: float) -> None:
    waits = Waits()
    where = pool(waits)
    outcome = await run(executor(), where, agent(timeout=of_agent), seconds=of_request)
    assert isinstance(outcome.error, DeadlineExceeded)
    assert outcome.attempts[0].duration_ms < 2_500
    assert "within 0.03 s" in outcome.error.detail
    await wait_until(lambda: where.in_flight == 0, "its place was not given back")
    assert waits.told_to_stop == 1


async def test_an_instance_that_ignores_its_end_keeps_its_place_until_it_ends() -> None:
    runner, waits = executor(), Waits(stubborn=True)
    where, who, told = pool(waits), agent(concurrency=1), Told()
    outcome = await run(runner, where, who, told, seconds=0.03)
    assert isinstance(outcome.error, DeadlineExceeded)
    await wait_until(lambda: waits.told_to_stop == 1, "it was not told to stop")
    assert where.in_flight == 1
    with pytest.raises(NoInstanceAvailable):
        await reserved(runner, who, where)
    assert waits.emit is not None
    waits.emit("too late")
    assert told.pieces == []
    waits.leave.set()
    await wait_until(lambda: where.in_flight == 0, "its place was not given back")
    assert (await run(runner, where, who)).reply is not None


async def test_a_function_that_blocks_is_left_behind_and_keeps_its_place() -> None:
    leave, began = threading.Event(), threading.Event()

    def blocks(_: str) -> str:
        began.set()
        leave.wait(20)
        return "at last"

    runner, where, who = executor(), Pool([wrapped("a", blocks)]), agent(concurrency=1)
    try:
        outcome = await run(runner, where, who, seconds=0.05)
        assert isinstance(outcome.error, DeadlineExceeded)
        assert began.is_set()
        assert where.in_flight == 1
        with pytest.raises(NoInstanceAvailable):
            await reserved(runner, who, where)
    finally:
        leave.set()
    await wait_until(lambda: where.in_flight == 0, "its place was not given back")
    assert (await run(runner, where, who)).reply == Reply(output="at last")


async def test_a_generator_that_never_ends_is_left_at_its_timeout_and_ends() -> None:
    """Between two pieces a thread can be ended, unlike within one; else its pieces would fill the memory."""
    stop = threading.Event()

    def endless(_: str) -> Iterator[str]:
        while not stop.wait(0.001):
            yield "x"

    where = Pool([wrapped("a", endless)])
    try:
        outcome = await run(executor(most=1_000_000), where, agent(), seconds=0.05)
        assert isinstance(outcome.error, DeadlineExceeded)
        assert set(outcome.told) == {"x"}
        await wait_until(lambda: where.in_flight == 0, "its place was not given back", seconds=2)
    finally:
        stop.set()


@pytest.mark.parametrize("in_thread", [True, False])
async def test_a_function_that_wants_to_exit_fails_and_takes_nobody_along(in_thread: bool) -> None:
    def exits(_: str) -> str:
        raise SystemExit(3)

    async def exits_too(_: str) -> str:
        raise SystemExit(3)

    backend = wrapped("a", exits if in_thread else exits_too).backend
    call = Call(request_id="r", conversation_id="c", tenant="t", agent=agent(), content="x")
    error: BaseException | None = None
    try:
        await backend.run(call, tell_nobody)
    except (AgentFailed, SystemExit) as raised:
        error = raised
    assert isinstance(error, AgentFailed), "an agent can end the whole process"


async def test_a_cancelled_call_is_passed_on_to_its_instance() -> None:
    runner, waits = executor(), Waits()
    where, told = pool(waits), Told()
    task = asyncio.create_task(run(runner, where, agent(), told))
    await wait_until(lambda: waits.emit is not None, "it was not called")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await wait_until(lambda: where.in_flight == 0, "its place was not given back")
    assert waits.told_to_stop == 1
    assert waits.emit is not None
    waits.emit("too late")
    assert told.pieces == []
    assert where.failures_in_row == 0


async def test_close_ends_the_calls_that_are_left_and_waits_only_so_long() -> None:
    runner, waits, stubborn = executor(), Waits(), Waits(stubborn=True)
    where, who = pool(waits, stubborn), agent(concurrency=1)
    tasks = [asyncio.create_task(run(runner, where, who)) for _ in range(2)]
    await wait_until(lambda: stubborn.emit is not None and waits.emit is not None, "they were not called")
    await asyncio.wait_for(runner.close(0.05), timeout=5)
    assert where.in_flight == 1
    first = await tasks[0]
    assert first.error is not None
    assert first.error.data == {"cause": "cancelled"}
    stubborn.leave.set()
    assert (await tasks[1]).reply is not None
    await runner.close(0.05)


# --- which instance


async def test_instances_take_turns() -> None:
    runner, where, who = executor(), pool(*(Says("x") for _ in range(3))), agent(concurrency=10)
    served = [(await run(runner, where, who)).attempts[0].instance_id for _ in range(7)]
    assert served == ["i0", "i1", "i2", "i0", "i1", "i2", "i0"]


async def test_without_balancing_the_first_free_instance_takes_every_call() -> None:
    runner, where, who = executor(balanced=False), pool(Says("x"), Says("x")), agent(concurrency=2)
    assert [(await run(runner, where, who)).attempts[0].instance_id for _ in range(3)] == ["i0"] * 3
    taken = [(await reserved(runner, who, where)).place.instance.id for _ in range(4)]
    assert taken == ["i0", "i0", "i1", "i1"]


async def test_all_places_are_taken_before_one_is_refused_and_given_back() -> None:
    runner, where, who = executor(), pool(Says("x"), Says("x")), agent(concurrency=2)
    taken = [await reserved(runner, who, where) for _ in range(4)]
    assert [instance.in_flight for instance in where.instances] == [2, 2]
    with pytest.raises(NoInstanceAvailable, match="'i0' is full: 2 of 2 calls") as caught:
        await reserved(runner, who, where)
    assert caught.value.retryable
    runner.release(taken[2])
    assert (await reserved(runner, who, where)).place.instance is taken[2].place.instance


async def test_no_instances_at_all() -> None:
    with pytest.raises(NoInstanceAvailable):
        await reserved(executor(), agent(), Pool([]))


async def test_a_full_instance_is_passed_over() -> None:
    runner, stubborn = executor(), Waits(stubborn=True)
    where, who = pool(stubborn, Says("x"), Says("x")), agent(concurrency=1)
    task = asyncio.create_task(run(runner, where, who))
    await wait_until(lambda: stubborn.emit is not None, "it was not called")
    served = [(await run(runner, where, who)).attempts[0].instance_id for _ in range(4)]
    assert served == ["i1", "i2", "i1", "i2"]
    stubborn.leave.set()
    assert (await task).reply is not None


# --- another instance in its place


class Counts:
    """A backend that counts its calls."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.count = 0

    async def run(self, call: Call, emit: Emit) -> Reply:
        self.count += 1
        return await self.backend.run(call, emit)


def attempts(outcome: Outcome) -> list[tuple[str, str | None]]:
    return [(attempt.instance_id, attempt.error) for attempt in outcome.attempts]


def ranked(*backends: Backend, paused: Sequence[bool] = ()) -> Pool:
    """A pool in which each stands by for those before it."""
    where = Pool([Instance(id=f"i{n}", backend=backend, rank=n) for n, backend in enumerate(backends)])
    for instance, waits in zip(where.instances, paused, strict=False):
        instance.paused = lambda waits=waits: waits
    return where


async def test_what_one_cannot_answer_the_next_one_does() -> None:
    told = Told()
    down, limited = Says(raises=ModelServerError("down")), Says(raises=ModelRateLimited("limited"))
    where = ranked(down, limited, Says("here ", "I am"), Says("unasked"))
    outcome = await run(executor(), where, agent(), told)
    assert attempts(outcome) == [("i0", "model_server_error"), ("i1", "model_rate_limited"), ("i2", None)]
    assert (outcome.reply, outcome.error) == (Reply(output="here I am"), None)
    assert told.pieces == [("here ", 0), ("I am", 5)]
    assert all(attempt.duration_ms >= 0 for attempt in outcome.attempts)
    assert (where.in_flight, where.failures_in_row) == (0, 0)


@pytest.mark.parametrize(
    "error",
    [ContentRefused("no"), AgentFailed("broke", cause="X"), Interrupted("stop"), DeadlineExceeded("late")],
    ids=lambda error: error.code,
)
async def test_what_no_other_could_answer_is_not_asked_elsewhere(error: RunFailed) -> None:
    second = Counts(Says("unasked"))
    outcome = await run(executor(), ranked(Says(raises=error), second), agent())
    assert outcome.error is error
    assert attempts(outcome) == [("i0", error.code)]
    assert second.count == 0


async def test_whoever_raises_may_take_back_that_another_can_answer() -> None:
    error = ModelServerError("a tool was used")
    error.elsewhere = False
    second = Counts(Says("unasked"))
    outcome = await run(executor(), ranked(Says(raises=error), second), agent())
    assert (outcome.error, second.count) == (error, 0)
    assert ModelServerError.elsewhere, "it was taken back for this one"


async def test_after_a_piece_was_told_there_is_no_change_of_voice() -> None:
    told, second = Told(), Counts(Says("unasked"))
    where = ranked(Says("once upon ", "a ", raises=ModelServerError("down")), second)
    outcome = await run(executor(), where, agent(), told)
    assert attempts(outcome) == [("i0", "model_server_error")]
    assert (outcome.told, second.count) == ("once upon a ", 0)
    # An empty piece is none.
    outcome = await run(executor(), ranked(Says("", raises=ModelServerError("down")), second), agent(), told)
    assert (attempts(outcome)[-1], second.count) == (("i1", None), 1)


@pytest.mark.parametrize(
    ("errors", "telling"),
    [
        ([ModelServerError("a"), ModelNotFound("b")], 0),
        ([ModelNotFound("a"), ModelServerError("b")], 1),
        ([ModelNotFound("a"), ModelAuthenticationFailed("b")], 0),
        ([ModelRateLimited("a", retry_after=3.0), ModelRateLimited("b", retry_after=30.0)], 0),
        ([ModelRateLimited("a", retry_after=30.0), ModelRateLimited("b", retry_after=3.0)], 1),
        ([ModelAuthenticationFailed("a"), ModelRateLimited("b", retry_after=30.0), ModelNotFound("c")], 1),
        ([ModelOverloaded("a"), ContentRefused("b")], 1),
    ],
)
async def test_when_nobody_answers_the_error_is_the_one_that_mends_soonest(
    errors: Sequence[RunFailed], telling: int
) -> None:
    backends = [Counts(Says(raises=error)) for error in errors]
    where = ranked(*backends)
    outcome = await run(executor(), where, agent())
    assert outcome.error is errors[telling]
    assert [code for _, code in attempts(outcome)] == [error.code for error in errors]
    assert [backend.count for backend in backends] == [1] * len(errors)
    assert (where.in_flight, where.failures_in_row) == (0, 1)


async def test_the_preferred_one_is_asked_while_it_can_take_calls() -> None:
    runner, who = executor(), agent(concurrency=2)
    where = ranked(Says("x"), Says("x"), Says("x"))
    assert [attempts(await run(runner, where, who))[0][0] for _ in range(4)] == ["i0"] * 4
    assert [(await reserved(runner, who, where)).place.instance.id for _ in range(6)] == [
        "i0",
        "i0",
        "i1",
        "i1",
        "i2",
        "i2",
    ]


@pytest.mark.parametrize("balanced", [True, False])
async def test_one_that_would_let_a_call_wait_is_passed_over(balanced: bool) -> None:
    runner, who = executor(balanced=balanced), agent(concurrency=1)
    where = ranked(Says("x"), Says("x"), paused=[True, False])
    assert attempts(await run(runner, where, who)) == [("i1", None)]
    # Better one that waits than nobody.
    assert [(await reserved(runner, who, where)).place.instance.id for _ in range(2)] == ["i1", "i0"]
    waiting = ranked(Says(raises=ModelRateLimited("limited")), Says("x"), paused=[True, True])
    assert attempts(await run(runner, waiting, who)) == [("i0", "model_rate_limited"), ("i1", None)]


async def test_the_next_one_is_waited_for_while_it_is_full() -> None:
    runner, who, waits = executor(), agent(concurrency=1), Waits()
    where = ranked(Says(raises=ModelServerError("down")), waits)
    first = await reserved(runner, who, where)
    other = asyncio.create_task(run(runner, where, who))
    await wait_until(lambda: waits.emit is not None, "the second was not called")
    runner.release(first)
    second = asyncio.create_task(run(runner, where, who))
    await wait_until(lambda: where.waiting == 1, "it does not wait")
    waits.leave.set()
    assert (await other).reply == Reply(output="at last")
    assert attempts(await second) == [("i0", "model_server_error"), ("i1", None)]
    assert (where.in_flight, where.waiting) == (0, 0)


async def test_nobody_waits_longer_than_the_deadline_for_one_that_is_full() -> None:
    runner, who, waits = executor(), agent(concurrency=1), Waits()
    where = ranked(Says(raises=ModelServerError("down")), waits)
    other = asyncio.create_task(run(runner, where, who))
    await wait_until(lambda: waits.emit is not None, "the second was not called")
    outcome = await run(runner, where, who, seconds=0.05)
    assert attempts(outcome) == [("i0", "model_server_error")]
    assert isinstance(outcome.error, ModelServerError)
    waits.leave.set()
    assert (await other).reply == Reply(output="at last")
    assert (where.in_flight, where.waiting) == (0, 0)


async def test_a_call_takes_one_place_at_a_time() -> None:
    runner, who, waits = executor(), agent(concurrency=1), Waits()
    where = ranked(Says(raises=ModelServerError("down")), waits)
    task = asyncio.create_task(run(runner, where, who))
    await wait_until(lambda: waits.emit is not None, "the second was not called")
    assert [instance.in_flight for instance in where.instances] == [0, 1]
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await wait_until(lambda: where.in_flight == 0, "its place was not given back")
    assert waits.told_to_stop == 1


@pytest.mark.parametrize(("repeatable", "expected"), [(True, ["i0", "i1"]), (False, ["i0"])])
async def test_one_that_is_late_is_left_for_the_next_where_a_call_may_be_repeated(
    repeatable: bool, expected: Sequence[str]
) -> None:
    where = ranked(Waits(), Says("in time"))
    where.instances[0].repeatable = repeatable
    outcome = await run(executor(), where, agent(timeout=0.03))
    assert [instance for instance, _ in attempts(outcome)] == expected
    assert attempts(outcome)[0] == ("i0", "deadline_exceeded")
    assert (outcome.reply is not None) == repeatable


async def test_one_that_is_late_does_not_talk_into_the_next_ones_answer() -> None:
    class Talking:
        """Answers while the other one, which was to stop, goes on talking."""

        async def run(self, call: Call, emit: Emit) -> Reply:
            emit("mine ")
            assert late.emit is not None
            late.emit("not mine ")
            emit("alone")
            return Reply(output="mine alone")

    told, late = Told(), Waits(stubborn=True)
    where = ranked(late, Talking())
    where.instances[0].repeatable = True
    outcome = await run(executor(), where, agent(timeout=0.03), told)
    late.leave.set()
    assert (outcome.reply, outcome.error) == (Reply(output="mine alone"), None)
    assert "".join(piece for piece, _ in told.pieces) == "mine alone"


async def test_the_time_is_for_all_attempts_together() -> None:
    class Slow:
        async def run(self, call: Call, emit: Emit) -> Reply:
            await asyncio.sleep(0.06)
            raise ModelServerError("down")

    third = Counts(Says("too late"))
    outcome = await run(executor(), ranked(Slow(), Slow(), third), agent(), seconds=0.1)
    assert attempts(outcome) == [("i0", "model_server_error"), ("i1", "deadline_exceeded")]
    assert isinstance(outcome.error, DeadlineExceeded)
    assert third.count == 0


# --- health


async def test_three_failures_in_a_row_make_an_agent_degraded_and_one_success_mends_it(tmp_path: Path) -> None:
    broken = True

    async def moody(_: str) -> str:
        if broken:
            raise ValueError
        return "fine"

    async with opened(tmp_path) as parts:
        await parts.agent("moody", moody)
        seen: list[Status] = []
        for _ in range(4):
            with pytest.raises(AgentFailed):
                await parts.orchestra.process_request("moody")
            seen.append(parts.registered("moody").status)
        assert seen == [Status.IDLE, Status.IDLE, Status.DEGRADED, Status.DEGRADED]
        health = parts.orchestra.agents_health()
        assert (health.healthy_agents, health.unhealthy_agents, health.system_health) == (0, 1, "degraded")
        broken = False
        # A degraded agent still takes work; that is how it mends.
        assert (await parts.orchestra.process_request("moody")).output == "fine"
        assert parts.registered("moody").status is Status.IDLE


async def test_an_agent_is_busy_while_it_answers() -> None:
    waits = Waits()
    where = pool(waits)
    assert where.in_flight == 0
    task = asyncio.create_task(run(executor(), where, agent()))
    await wait_until(lambda: waits.emit is not None, "it was not called")
    assert where.in_flight == 1
    waits.leave.set()
    assert (await task).reply == Reply(output="at last")
    assert where.in_flight == 0
