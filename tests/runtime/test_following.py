"""Whoever listens to a request, and whenever, hears all of it exactly once."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agent_orchestra.core.routing import Candidate, Route, Stage
from agent_orchestra.core.stream import END, StreamEvent, StreamEventType, completed, delta, routed, started
from agent_orchestra.core.stream import failed as failed_event
from agent_orchestra.errors import RequestNotFound, RunFailed, StreamMismatch
from agent_orchestra.runtime.orchestra import make_request
from agent_orchestra.runtime.running import Running
from tests.runtime.parts import Parts, opened, text_of, types_of
from tests.services.waiting import wait_until

PIECES = ["Ein ", "Satz ", "in ", "vielen ", "Stücken, ", "🧾", " und", " ", "noch", " mehr."]
WHOLE = "".join(PIECES)
ENDS = ["routed", "started", "completed"]


class Speaker:
    """An agent that tells one piece whenever it is nudged."""

    def __init__(self) -> None:
        self.nudges = asyncio.Semaphore(0)
        self.told = 0

    async def __call__(self, content: str) -> AsyncIterator[str]:
        for piece in PIECES:
            await self.nudges.acquire()
            self.told += 1
            yield piece

    async def speak(self, pieces: int) -> None:
        target = self.told + pieces
        for _ in range(pieces):
            self.nudges.release()
        await wait_until(lambda: self.told == target, "the agent did not tell its pieces")


async def begin(parts: Parts) -> tuple[Speaker, str]:
    speaker = Speaker()
    await parts.agent("speaker", speaker)
    submitted = await parts.orchestra.submit(make_request("speaker", tenant="default"))
    return speaker, submitted.request_id


async def listen(
    parts: Parts, request_id: str, *, after: int = 0, slow: bool = False, into: list[StreamEvent] | None = None
) -> list[StreamEvent]:
    heard: list[StreamEvent] = [] if into is None else into
    async for event in await parts.orchestra.follow(request_id, after=after):
        heard.append(event)
        for _ in range(7 if slow else 0):
            await asyncio.sleep(0)
    return heard


def assert_once(heard: list[StreamEvent]) -> None:
    assert text_of(heard) == WHOLE
    assert types_of(heard) == ENDS
    positions = [event.position for event in heard]
    assert positions == sorted(set(positions))


async def test_many_listeners_hear_everything_once(tmp_path: Path) -> None:
    async with opened(tmp_path) as parts:
        speaker, request_id = await begin(parts)
        early = [asyncio.create_task(listen(parts, request_id, slow=number == 2)) for number in range(5)]
        await speaker.speak(4)
        late = asyncio.create_task(listen(parts, request_id))
        await speaker.speak(3)
        latest = asyncio.create_task(listen(parts, request_id, slow=True))
        await speaker.speak(3)
        for heard in await asyncio.gather(*early, late, latest):
            assert_once(heard)
        assert_once(await listen(parts, request_id))


async def test_a_slow_listener_holds_up_nobody(tmp_path: Path) -> None:
    async with opened(tmp_path) as parts:
        speaker, request_id = await begin(parts)
        slow = aiter(await parts.orchestra.follow(request_id))
        heard = [await anext(slow)]
        other = asyncio.create_task(listen(parts, request_id))
        await speaker.speak(len(PIECES))
        assert_once(await other)
        await wait_until(lambda: parts.dispatcher.in_flight == 0, "the request did not end")
        heard += [event async for event in slow]
        assert_once(heard)


async def test_a_listener_that_leaves_and_comes_back_hears_the_rest(tmp_path: Path) -> None:
    async with opened(tmp_path) as parts:
        speaker, request_id = await begin(parts)
        await speaker.speak(5)
        said = len("".join(PIECES[:5]))
        tasks = {
            after: asyncio.create_task(listen(parts, request_id, after=after)) for after in range(2 + len(WHOLE) + 3)
        }
        await asyncio.sleep(0)
        await speaker.speak(5)
        for after, task in tasks.items():
            live = await task
            again = await listen(parts, request_id, after=after)
            for heard in (live, again):
                assert text_of(heard) == WHOLE[max(after - 2, 0) :], f"resumed after {after}, with {said} said"
                assert types_of(heard) == ENDS[min(after, 2) :]
        assert await listen(parts, request_id, after=END) == []


async def test_another_process_follows_to_the_end(tmp_path: Path) -> None:
    async with opened(tmp_path) as one, opened(tmp_path) as two:
        speaker, request_id = await begin(one)
        heard: list[StreamEvent] = []

        task = asyncio.create_task(listen(two, request_id, into=heard))
        await wait_until(lambda: types_of(heard) == ["routed", "started"], "the head was not told")
        resumed = asyncio.create_task(listen(two, request_id, after=2 + 4))
        await speaker.speak(len(PIECES))
        await task
        assert_once(heard)
        assert text_of(await resumed) == WHOLE[4:]
        assert heard[-1].data == (await listen(one, request_id))[-1].data


async def test_a_stream_is_of_its_tenant_and_of_its_question(tmp_path: Path) -> None:
    async with opened(tmp_path) as parts:
        speaker, request_id = await begin(parts)
        asked = make_request("speaker", tenant="default").fingerprint
        other = make_request("speaker, please", tenant="default").fingerprint
        for _ in range(2):
            with pytest.raises(RequestNotFound):
                await parts.orchestra.follow(request_id, tenant="other")
            with pytest.raises(RequestNotFound):
                await parts.orchestra.follow("gone")
            with pytest.raises(StreamMismatch):
                await parts.orchestra.follow(request_id, asked=other)
            listening = asyncio.create_task(listen(parts, request_id))
            if speaker.told < len(PIECES):
                await speaker.speak(len(PIECES))
            assert_once(await listening)
            rest = [event async for event in await parts.orchestra.follow(request_id, after=2, asked=asked)]
            assert text_of(rest) == WHOLE
            await wait_until(lambda: parts.dispatcher.in_flight == 0, "the request did not end")


async def test_a_failed_stream_tells_what_was_told_and_why_it_ended(tmp_path: Path) -> None:
    async def stumbles(_: str) -> AsyncIterator[str]:
        yield "so far"
        raise ValueError("secret")

    async with opened(tmp_path) as parts:
        await parts.agent("stumbles", stumbles)
        submitted = await parts.orchestra.submit(make_request("stumbles", tenant="default"))
        live = await listen(parts, submitted.request_id)
        with pytest.raises(RunFailed):
            await parts.orchestra.answer("default", submitted)
        await wait_until(lambda: parts.dispatcher.in_flight == 0, "the request did not end")
        again = await listen(parts, submitted.request_id)
        for heard in (live, again):
            assert text_of(heard) == "so far"
            assert types_of(heard) == ["routed", "started", "failed"]
            assert heard[-1].data == {
                "code": "agent_failed",
                "detail": "agent 'stumbles' raised ValueError",
                "cause": "ValueError",
            }


@pytest.mark.parametrize("seed", range(10))
async def test_what_was_told_after_any_position_is_the_rest(seed: int) -> None:
    """The live half of what :func:`stream.retell` promises for ended streams."""
    chance = random.Random(seed)
    route = Route(candidates=(Candidate(agent_id="a", confidence=1.0),), stage=Stage.EXPLICIT, reason="named")
    running = Running(make_request("x", tenant="t"))
    running.tell(routed(route, request_id="r", conversation_id="c"))
    running.tell(started(agent_id="a", instance_id="i"))
    text = ""
    for _ in range(chance.randrange(8)):
        piece = "".join(chance.choices("abcdefgh", k=chance.randrange(1, 5)))
        running.tell(delta(piece, said=len(text)))
        text += piece
    last = completed({"output": text}) if chance.random() < 0.5 else failed_event({"code": "x"})
    running.tell(last)
    for after in [*range(len(text) + 6), END - 1, END, END + 1]:
        told = running.told(after)
        assert text_of(told) == text[max(after - 2, 0) :]
        others = [event for event in told if event.type is not StreamEventType.DELTA]
        assert others[-1:] == ([last] if after < END else [])
        assert [event.position for event in others] == [p for p in (1, 2, END) if p > after]
        positions = [event.position for event in told]
        assert positions == sorted(set(positions))
        assert all(position > after for position in positions)
