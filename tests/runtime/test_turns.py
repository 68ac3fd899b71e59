"""One holder a conversation, first come first served, and nothing left behind."""

from __future__ import annotations

import asyncio
import random

import pytest

from agent_orchestra.core.conversation import InputPolicy
from agent_orchestra.errors import ConversationBusy
from agent_orchestra.runtime.conversations import Turns
from tests.runtime.parts import held

ENQUEUE, REJECT, INTERRUPT = InputPolicy.ENQUEUE, InputPolicy.REJECT, InputPolicy.INTERRUPT


class Line:
    """People who want the same conversation, each holding it until let go."""

    def __init__(self, turns: Turns) -> None:
        self.order: list[str] = []
        self.waited: dict[str, bool] = {}
        self._turns = turns
        self._go: dict[str, asyncio.Event] = {}

    async def come(self, name: str, policy: InputPolicy = ENQUEUE) -> asyncio.Task[None]:
        self._go[name] = asyncio.Event()
        task = asyncio.create_task(self._hold(name, policy))
        await asyncio.sleep(0)
        return task

    def go(self, *names: str) -> None:
        for name in names:
            self._go[name].set()

    async def _hold(self, name: str, policy: InputPolicy) -> None:
        async with self._turns.hold("t", "c", policy) as waited:
            self.order.append(name)
            self.waited[name] = waited
            await self._go[name].wait()


async def test_first_come_first_served() -> None:
    turns = Turns()
    line = Line(turns)
    names = [f"p{number}" for number in range(8)]
    tasks = [await line.come(name) for name in names]
    assert line.order == ["p0"]
    line.go(*reversed(names))
    await asyncio.gather(*tasks)
    assert line.order == names
    assert line.waited == {name: name != "p0" for name in names}
    assert held(turns) == 0


async def test_other_conversations_and_tenants_do_not_wait() -> None:
    turns = Turns()
    async with (
        turns.hold("t", "c", ENQUEUE) as a,
        turns.hold("t", "d", ENQUEUE) as b,
        turns.hold("u", "c", REJECT) as c,
    ):
        assert (a, b, c) == (False, False, False)
        assert held(turns) == 3
    assert held(turns) == 0


async def test_reject_refuses_while_it_is_held_and_not_after() -> None:
    turns = Turns()
    async with turns.hold("t", "c", ENQUEUE):
        with pytest.raises(ConversationBusy):
            async with turns.hold("t", "c", REJECT):
                pytest.fail("two hold the same conversation")
    async with turns.hold("t", "c", REJECT) as waited:
        assert not waited
    assert held(turns) == 0


async def test_an_error_within_frees_the_conversation() -> None:
    turns = Turns()
    with pytest.raises(ValueError, match="inside"):
        async with turns.hold("t", "c", ENQUEUE):
            raise ValueError("inside")
    assert held(turns) == 0


async def test_interrupt_asks_the_holder_to_end_and_waits_for_it() -> None:
    turns = Turns()
    asked: list[str] = []
    line = Line(turns)
    async with turns.hold("t", "c", ENQUEUE, cancel=lambda: asked.append("holder")):
        task = await line.come("next", INTERRUPT)
        assert asked == ["holder"]
        assert line.order == []
    line.go("next")
    await task
    assert line.order == ["next"]
    assert held(turns) == 0


async def test_interrupt_waits_for_a_holder_that_cannot_be_ended() -> None:
    turns = Turns()
    line = Line(turns)
    first = await line.come("first")
    second = await line.come("second", INTERRUPT)
    line.go("first", "second")
    await asyncio.gather(first, second)
    assert line.order == ["first", "second"]


async def test_each_holder_is_asked_for_itself() -> None:
    """The one that waited is the one to be ended once it holds the conversation."""
    turns = Turns()
    asked: list[str] = []
    holds, leave = asyncio.Event(), asyncio.Event()

    async def second() -> None:
        async with turns.hold("t", "c", ENQUEUE, cancel=lambda: asked.append("second")):
            holds.set()
            await leave.wait()

    async with turns.hold("t", "c", ENQUEUE, cancel=lambda: asked.append("first")):
        task = asyncio.create_task(second())
        await asyncio.sleep(0)
    await holds.wait()
    line = Line(turns)
    third = await line.come("third", INTERRUPT)
    assert asked == ["second"]
    leave.set()
    line.go("third")
    await asyncio.gather(task, third)
    assert held(turns) == 0


async def test_an_interrupt_in_the_moment_of_the_handover_reaches_the_new_holder() -> None:
    turns = Turns()
    asked: list[str] = []

    async def second() -> None:
        async with turns.hold("t", "c", ENQUEUE, cancel=lambda: asked.append("second")):
            await asyncio.sleep(0)

    async with turns.hold("t", "c", ENQUEUE, cancel=lambda: asked.append("first")):
        task = asyncio.create_task(second())
        await asyncio.sleep(0)
        third = asyncio.create_task(take(turns))
    # The turn belongs to the second now, which has not run since; the third comes before it does.
    await asyncio.gather(task, third)
    assert asked == ["second"]
    assert held(turns) == 0


async def take(turns: Turns) -> None:
    async with turns.hold("t", "c", INTERRUPT):
        pass


async def test_a_waiter_that_gives_up_is_passed_over() -> None:
    turns = Turns()
    line = Line(turns)
    first, second, third = [await line.come(name) for name in ("first", "second", "third")]
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    line.go("first", "third")
    await asyncio.gather(first, third)
    assert line.order == ["first", "third"]
    assert held(turns) == 0


async def test_a_waiter_that_gives_up_as_it_gets_the_turn_hands_it_on() -> None:
    turns = Turns()
    line = Line(turns)
    async with turns.hold("t", "c", ENQUEUE):
        second = await line.come("second")
        third = await line.come("third")
    second.cancel()
    line.go("third")
    await third
    assert second.cancelled()
    assert line.order == ["third"]
    assert held(turns) == 0


async def test_the_last_waiter_that_gives_up_as_it_gets_the_turn_leaves_nothing_behind() -> None:
    turns = Turns()
    line = Line(turns)
    async with turns.hold("t", "c", ENQUEUE):
        second = await line.come("second")
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    assert held(turns) == 0
    async with turns.hold("t", "c", REJECT) as waited:
        assert not waited


def void(_: object) -> None:
    return None


@pytest.mark.parametrize("seed", range(20))
async def test_whatever_happens_one_holds_and_nothing_is_left(seed: int) -> None:
    chance = random.Random(seed)
    turns = Turns()
    inside: list[int] = []
    served = 0

    async def person(number: int) -> None:
        nonlocal served
        for _ in range(chance.randrange(3)):
            await asyncio.sleep(0)
        policy = chance.choice([ENQUEUE, ENQUEUE, INTERRUPT, REJECT])
        task = asyncio.current_task()
        assert task is not None
        async with turns.hold("t", "c", policy, cancel=lambda: void(task.cancel())):
            inside.append(number)
            assert inside == [number], "two hold the same conversation"
            try:
                for _ in range(chance.randrange(4)):
                    await asyncio.sleep(0)
            finally:
                inside.remove(number)
            served += 1

    tasks = [asyncio.create_task(person(number)) for number in range(60)]
    for _ in range(40):
        await asyncio.sleep(0)
        chance.choice(tasks).cancel()
    ends = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), timeout=10)
    wrong = [end for end in ends if not isinstance(end, ConversationBusy | asyncio.CancelledError | None)]
    assert wrong == []
    assert served == sum(end is None for end in ends)
    assert served > 0
    assert held(turns) == 0
