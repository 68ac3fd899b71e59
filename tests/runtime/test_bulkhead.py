"""How many requests run at once, how many wait for that, and who is sent away."""

from __future__ import annotations

import asyncio
import random
import sqlite3
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest

from agent_orchestra.core.request import Answer
from agent_orchestra.errors import DeadlineExceeded, IdempotencyMismatch, Interrupted, Overloaded, ShuttingDown
from agent_orchestra.runtime.bulkhead import Bulkhead
from tests.runtime.parts import Gate, Parts, opened
from tests.services.waiting import wait_until


class Room:
    """Those that hold a place of a bulkhead, and those that had one, in this order."""

    def __init__(self, *, places: int = 1, waiting: int = 10, seconds: float = 30.0) -> None:
        self.bulkhead = Bulkhead(places=places, waiting=waiting, seconds=seconds)
        self.inside: list[str] = []
        self.came: list[str] = []
        self.waited: dict[str, bool] = {}
        self._may_leave: dict[str, asyncio.Event] = {}

    async def visit(self, name: str, seconds: float = 30.0) -> None:
        async with self.bulkhead.place(seconds) as waited:
            self.waited[name] = waited
            self.inside.append(name)
            self.came.append(name)
            try:
                await self._may_leave.setdefault(name, asyncio.Event()).wait()
            finally:
                self.inside.remove(name)

    def let(self, name: str) -> None:
        self._may_leave.setdefault(name, asyncio.Event()).set()

    async def queued(self, *names: str) -> list[asyncio.Task[None]]:
        """Those that wait, one after the other."""
        tasks: list[asyncio.Task[None]] = []
        for name in names:
            before = self.bulkhead.waiting
            tasks.append(asyncio.create_task(self.visit(name)))
            await wait_until(lambda before=before: self.bulkhead.waiting > before, f"{name} does not wait")
        return tasks

    async def left(self, name: str) -> None:
        """Returns in the moment in which one has left, before anybody else has noticed."""
        self.let(name)
        for _ in range(10):
            if name not in self.inside:
                return
            await asyncio.sleep(0)
        pytest.fail(f"{name} does not leave")

    async def entered(self, name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(self.visit(name))
        await wait_until(lambda: name in self.inside, f"{name} has no place")
        return task


@asynccontextmanager
async def full_room(*, waiting: int = 10, seconds: float = 30.0) -> AsyncGenerator[Room]:
    """One place, and somebody called ``first`` has it."""
    room = Room(waiting=waiting, seconds=seconds)
    first = await room.entered("first")
    try:
        yield room
    finally:
        room.let("first")
        await first
        assert (room.bulkhead.running, room.bulkhead.waiting) == (0, 0), "a place was not given back"


# --- places


async def test_whoever_finds_a_place_does_not_wait() -> None:
    room = Room(places=2)
    tasks = [await room.entered("a"), await room.entered("b")]
    assert (room.bulkhead.running, room.bulkhead.waiting) == (2, 0)
    assert room.waited == {"a": False, "b": False}
    room.let("a")
    room.let("b")
    await asyncio.gather(*tasks)
    assert room.bulkhead.running == 0


async def test_those_that_wait_come_in_as_they_came() -> None:
    async with full_room() as room:
        names = [f"w{number}" for number in range(5)]
        tasks = await room.queued(*names)
        room.let("first")
        for name, task in zip(names, tasks, strict=True):
            await wait_until(lambda name=name: name in room.inside, f"{name} did not come in")
            assert room.inside == [name]
            room.let(name)
            await task
        assert room.came == ["first", *names]
        assert all(room.waited[name] for name in names)


async def test_nobody_who_comes_later_is_faster_than_one_that_waits() -> None:
    async with full_room() as room:
        (task,) = await room.queued("patient")
        await room.left("first")
        # Before the one that waits has noticed, another one is there.
        pushing = asyncio.create_task(room.visit("pushing"))
        room.let("patient")
        room.let("pushing")
        await asyncio.gather(task, pushing)
        assert room.came == ["first", "patient", "pushing"]


async def test_whatever_comes_and_goes_there_are_never_more_than_the_places() -> None:
    chances = random.Random(5)
    room = Room(places=3, waiting=1_000)
    most = 0

    async def come_and_go(number: int) -> None:
        nonlocal most
        for _ in range(chances.randrange(5)):
            await asyncio.sleep(0)
        async with room.bulkhead.place(0.002 if number % 7 == 0 else 30.0):
            room.came.append(str(number))
            room.inside.append(str(number))
            most = max(most, len(room.inside))
            try:
                await asyncio.sleep(chances.choice([0, 0, 0.001]))
            finally:
                room.inside.remove(str(number))

    tasks = [asyncio.create_task(come_and_go(number)) for number in range(300)]
    await asyncio.sleep(0)
    for task in tasks[::5]:
        await asyncio.sleep(0)
        task.cancel()
    ends = await asyncio.gather(*tasks, return_exceptions=True)
    assert {type(end) for end in ends} <= {type(None), asyncio.CancelledError, Overloaded}
    assert most == 3
    assert (room.bulkhead.running, room.bulkhead.waiting) == (0, 0)


async def test_one_that_breaks_gives_its_place_back() -> None:
    bulkhead = Bulkhead(places=1, waiting=0, seconds=1)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            async with bulkhead.place(1.0):
                raise ZeroDivisionError
    assert bulkhead.running == 0


# --- the line


async def test_one_too_many_is_refused_at_once_and_told_when_to_come_again() -> None:
    async with full_room(waiting=2) as room:
        room.bulkhead.check(0)
        tasks = await room.queued("a", "b")
        with pytest.raises(Overloaded, match="1 requests are running and 2 wait, which is the limit") as caught:
            room.bulkhead.check(0)
        assert caught.value.retryable
        assert caught.value.retry_after >= 1
        for name in ("first", "a", "b"):
            room.let(name)
        await asyncio.gather(*tasks)
        room.bulkhead.check(0)


async def test_those_that_are_on_their_way_count() -> None:
    bulkhead = Bulkhead(places=2, waiting=1, seconds=1)
    bulkhead.check(0)
    bulkhead.check(2)
    with pytest.raises(Overloaded):
        bulkhead.check(3)


async def test_without_a_line_nobody_is_said_to_wait() -> None:
    with pytest.raises(Overloaded, match=r"^1 requests are running, which is the limit; try again$"):
        Bulkhead(places=1, waiting=0, seconds=1).check(1)


async def test_the_longer_the_line_the_later_one_is_asked_to_come_again() -> None:
    advice: list[float] = []
    async with full_room() as room:
        tasks: list[asyncio.Task[None]] = []
        for length in range(6):
            with pytest.raises(Overloaded) as caught:
                room.bulkhead.check(1_000)
            advice.append(caught.value.retry_after)
            tasks += await room.queued(f"w{length}")
        for number in range(6):
            room.let(f"w{number}")
        room.let("first")
        await asyncio.gather(*tasks)
    assert advice == sorted(advice)
    assert advice[-1] > advice[0] >= 1
    assert advice[-1] <= 60


async def test_nobody_is_asked_to_stay_away_for_longer_than_a_minute() -> None:
    async with full_room(waiting=1_000) as room:
        tasks = [asyncio.create_task(room.visit(f"w{number}")) for number in range(200)]
        await wait_until(lambda: room.bulkhead.waiting == 200, "they do not wait")
        with pytest.raises(Overloaded) as caught:
            room.bulkhead.check(10_000)
        assert caught.value.retry_after == 60
        for task in tasks:
            task.cancel()
        ends = await asyncio.gather(*tasks, return_exceptions=True)
        assert {type(end) for end in ends} == {asyncio.CancelledError}


@pytest.mark.parametrize(("of_all", "of_its_own"), [(0.02, 30.0), (30.0, 0.02), (30.0, 0.0), (30.0, -1.0)])
async def test_nobody_waits_longer_than_all_may_nor_than_it_can(of_all: float, of_its_own: float) -> None:
    async with full_room(seconds=of_all) as room:
        with pytest.raises(Overloaded, match="no place became free within"):
            await asyncio.wait_for(room.visit("late", of_its_own), timeout=10)
        assert room.bulkhead.waiting == 0
        assert room.came == ["first"]


async def test_one_that_gives_up_leaves_the_line_to_the_others() -> None:
    async with full_room() as room:
        gone, stays = await room.queued("gone", "stays")
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        assert room.bulkhead.waiting == 1
        room.let("first")
        room.let("stays")
        await stays
        assert room.came == ["first", "stays"]


async def test_one_that_gives_up_in_the_moment_of_its_turn_hands_it_on() -> None:
    async with full_room() as room:
        gone, stays = await room.queued("gone", "stays")
        await room.left("first")
        gone.cancel()
        room.let("stays")
        await asyncio.wait({gone, stays})
        assert gone.cancelled()
        assert stays.exception() is None
        assert room.came in (["first", "stays"], ["first", "gone", "stays"])


async def test_one_that_has_given_up_already_when_a_place_is_free_is_no_fault() -> None:
    bulkhead = Bulkhead(places=1, waiting=10, seconds=30)

    async def visit() -> None:
        async with bulkhead.place(30):
            pass

    async with bulkhead.place(30):
        gone, stays = asyncio.create_task(visit()), asyncio.create_task(visit())
        await wait_until(lambda: bulkhead.waiting == 2, "they do not wait")
        gone.cancel()
    # The place was given back before the one that gave up could say so.
    ends = await asyncio.gather(gone, stays, return_exceptions=True)
    assert isinstance(ends[0], asyncio.CancelledError)
    assert ends[1] is None
    assert (bulkhead.running, bulkhead.waiting) == (0, 0)


# --- through the dispatcher


async def at_the_gate(parts: Parts, gate: Gate) -> asyncio.Task[Answer]:
    """A request that runs until the gate lets it."""
    await parts.agent("gate", gate)
    task = asyncio.create_task(parts.orchestra.process_request("gate"))
    await wait_until(lambda: gate.asked("gate"), "the agent was not asked")
    return task


async def waits(parts: Parts, content: str, key: str | None = None) -> asyncio.Task[Answer]:
    before = parts.dispatcher.waiting
    task = asyncio.create_task(parts.orchestra.process_request(content, agent_id="gate", idempotency_key=key))
    await wait_until(lambda: parts.dispatcher.waiting > before, f"'{content}' does not wait")
    return task


async def test_requests_wait_for_a_place_are_answered_in_turn_and_say_how_long_they_waited(tmp_path: Path) -> None:
    async with opened(tmp_path, max_concurrent=1, max_waiting=2) as parts:
        gate = Gate()
        first = await at_the_gate(parts, gate)
        tasks = [await waits(parts, "one"), await waits(parts, "two")]
        assert (parts.dispatcher.in_flight, parts.dispatcher.waiting) == (1, 2)
        with pytest.raises(Overloaded) as caught:
            await parts.orchestra.process_request("three", agent_id="gate")
        assert caught.value.retry_after >= 1
        gate.let("gate", "one", "two")
        answers = await asyncio.gather(first, *tasks)
        assert [answer.output for answer in answers] == ["gate!", "one!", "two!"]
        assert [call.content for call in gate.calls] == ["gate", "one", "two"]
        assert ["wait" in answer.timings for answer in answers] == [False, True, True]
        assert answers[2].timings["total"] >= answers[2].timings["wait"] > 0
        assert (parts.dispatcher.in_flight, parts.dispatcher.waiting) == (0, 0)


async def test_what_waited_too_long_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    async with opened(tmp_path, max_concurrent=1, max_waiting=2, max_wait=0.05) as parts:
        gate = Gate()
        first = await at_the_gate(parts, gate)
        with pytest.raises(Overloaded, match=r"no place became free within 0\.05 s"):
            await parts.orchestra.process_request("late", agent_id="gate", idempotency_key="k")
        assert not gate.asked("late")
        assert len(await parts.orchestra.get_conversations()) == 1
        gate.let("gate", "late")
        await first
        answer = await parts.orchestra.process_request("late", agent_id="gate", idempotency_key="k")
        assert answer.output == "late!"


async def test_waiting_for_a_place_counts_towards_the_deadline(tmp_path: Path) -> None:
    """The place is held by one that has ended, and cannot be recorded yet."""
    async with opened(tmp_path, max_concurrent=1, max_waiting=2, max_wait=60.0, timeout_seconds=0.3) as parts:
        gate = Gate()
        gate.let("gate")
        parts.log.may_record.clear()
        first = await at_the_gate(parts, gate)
        await wait_until(lambda: parts.log.record_calls == 1, "the first did not end")
        with pytest.raises((Overloaded, DeadlineExceeded)):
            await asyncio.wait_for(parts.orchestra.process_request("late", agent_id="gate"), timeout=10)
        assert not gate.asked("late")
        parts.log.may_record.set()
        assert (await first).output == "gate!"


async def test_one_that_waits_is_joined_by_its_key_and_runs_once(tmp_path: Path) -> None:
    async with opened(tmp_path, max_concurrent=1, max_waiting=1) as parts:
        gate = Gate()
        first = await at_the_gate(parts, gate)
        one = await waits(parts, "one", key="k")
        # The line is full, but it does not come into the line.
        joining = asyncio.create_task(parts.orchestra.process_request("one", agent_id="gate", idempotency_key="k"))
        with pytest.raises(IdempotencyMismatch):
            await parts.orchestra.process_request("another", agent_id="gate", idempotency_key="k")
        assert parts.dispatcher.waiting == 1
        gate.let("gate", "one")
        answers = await asyncio.gather(first, one, joining)
        assert answers[1] == answers[2]
        assert [call.content for call in gate.calls] == ["gate", "one"]


async def test_one_that_joined_is_refused_with_the_first(tmp_path: Path) -> None:
    async with opened(tmp_path, max_concurrent=1, max_waiting=1, max_wait=0.1) as parts:
        gate = Gate()
        first = await at_the_gate(parts, gate)
        one = await waits(parts, "one", key="k")
        joining = asyncio.create_task(parts.orchestra.process_request("one", agent_id="gate", idempotency_key="k"))
        for end in await asyncio.gather(one, joining, return_exceptions=True):
            assert isinstance(end, Overloaded)
        gate.let("gate", "one")
        await first
        answer = await parts.orchestra.process_request("one", agent_id="gate", idempotency_key="k")
        assert answer.output == "one!", "its key is free"


async def test_a_caller_that_goes_away_does_not_take_its_request_out_of_the_line(tmp_path: Path) -> None:
    async with opened(tmp_path, max_concurrent=1, max_waiting=1) as parts:
        gate = Gate()
        first = await at_the_gate(parts, gate)
        one = await waits(parts, "one")
        one.cancel()
        with pytest.raises(asyncio.CancelledError):
            await one
        assert parts.dispatcher.waiting == 1
        gate.let("gate", "one")
        await first
        await wait_until(lambda: len(parts.log.recorded) == 2, "it was not answered")


async def test_when_the_service_stops_what_waits_is_refused_so_that_it_can_be_sent_again(tmp_path: Path) -> None:
    async with opened(tmp_path, max_concurrent=1, max_waiting=5, max_wait=60.0) as parts:
        gate = Gate()
        first = await at_the_gate(parts, gate)
        tasks = [await waits(parts, f"w{number}", key=str(number)) for number in range(3)]
        await parts.dispatcher.close(0.05)
        ends = await asyncio.gather(first, *tasks, return_exceptions=True)
        assert [type(end) for end in ends] == [Interrupted, ShuttingDown, ShuttingDown, ShuttingDown]
        assert parts.lines.of("request_broke") == []
        assert (parts.dispatcher.in_flight, parts.dispatcher.waiting) == (0, 0)
        assert [call.content for call in gate.calls] == ["gate"]


async def test_what_comes_on_record_while_the_service_stops_ends_there_as_interrupted(tmp_path: Path) -> None:
    """Its caller must not be told to send it again while it is on record as running."""
    async with opened(tmp_path) as parts:
        gate = Gate()
        await parts.agent("gate", gate)
        where = parts.registered("gate").pool
        with closing(sqlite3.connect(tmp_path / "orchestra.db", isolation_level=None)) as other:
            # Another writer holds the database, so that the request takes a while to come on record.
            other.execute("BEGIN IMMEDIATE")
            asking = asyncio.create_task(parts.orchestra.process_request("gate"))
            await wait_until(lambda: where.in_flight == 1, "it did not come so far")
            stopping = asyncio.create_task(parts.dispatcher.close(0.0))
            await asyncio.sleep(0.1)
            other.execute("ROLLBACK")
            await stopping
            with pytest.raises(Interrupted):
                await asking
            assert other.execute("SELECT status FROM requests").fetchall() == [("FAILED",)]
        assert (where.in_flight, gate.calls) == (0, [])


async def test_when_the_service_stops_what_waits_has_the_grace_too(tmp_path: Path) -> None:
    async with opened(tmp_path, max_concurrent=1, max_waiting=5) as parts:
        gate = Gate()
        first = await at_the_gate(parts, gate)
        one = await waits(parts, "one")
        closing = asyncio.create_task(parts.dispatcher.close(30.0))
        await asyncio.sleep(0)
        with pytest.raises(ShuttingDown):
            await parts.orchestra.process_request("too late", agent_id="gate")
        gate.let("gate", "one")
        await closing
        assert [(await task).output for task in (first, one)] == ["gate!", "one!"]


async def test_a_herd_is_answered_or_refused_at_once_and_none_hangs(tmp_path: Path) -> None:
    async with opened(tmp_path, max_concurrent=5, max_waiting=20, max_wait=60.0) as parts:

        async def echo(content: str) -> str:
            await asyncio.sleep(0.001)
            return content

        await parts.agent("echo", echo)
        ends = await asyncio.gather(
            *(parts.orchestra.process_request(f"echo {number}") for number in range(200)), return_exceptions=True
        )
        answered = [end for end in ends if isinstance(end, Answer)]
        refused = [end for end in ends if isinstance(end, Overloaded)]
        assert [end for end in ends if not isinstance(end, Answer | Overloaded)] == []
        assert len(answered) >= 25
        assert all(1 <= end.retry_after <= 60 for end in refused)
        assert (parts.dispatcher.in_flight, parts.dispatcher.waiting) == (0, 0)
