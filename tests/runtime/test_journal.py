"""Notices come to the journal in the background, whatever becomes of it meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence

from agent_orchestra.errors import StorageUnavailable
from agent_orchestra.runtime.journal import Notice, Notices
from agent_orchestra.runtime.telemetry import Telemetry
from tests.runtime.parts import Lines
from tests.services.waiting import wait_until


class Book:
    """A journal in memory. Conforms to :class:`Journal`."""

    def __init__(self) -> None:
        self.kept: list[str] = []
        #: Raised by the next calls, one each.
        self.raises: list[Exception] = []
        self.calls = 0
        self.may_write = asyncio.Event()
        self.may_write.set()

    async def tell(self, notices: Sequence[Notice]) -> None:
        self.calls += 1
        await self.may_write.wait()
        if self.raises:
            raise self.raises.pop(0)
        self.kept.extend(notice.subject for notice in notices)

    async def last(self, tenant: str, types: Collection[str], subjects: Collection[str]) -> Mapping[str, Notice]:
        return {}


def opened() -> tuple[Notices, Book, Lines]:
    book, lines = Book(), Lines()
    return Notices(book, Telemetry(lines, detailed=False)), book, lines


def notice(subject: object) -> Notice:
    return Notice(tenant="default", type="alert.fired", subject=str(subject))


async def ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_what_is_put_is_written_in_its_order() -> None:
    notices, book, _ = opened()
    notices.put(notice("before"))
    writing = asyncio.create_task(notices.write())
    await wait_until(lambda: book.kept == ["before"], "what waited was not written")
    for number in range(350):
        notices.put(notice(number))
    await wait_until(lambda: len(book.kept) == 351, "not all were written")
    assert book.kept[1:] == [str(number) for number in range(350)]
    assert book.calls < 20, "they are written together"
    await ended(writing)


async def test_a_journal_that_is_gone_for_a_while_gets_all_of_it_later() -> None:
    notices, book, lines = opened()
    book.raises = [StorageUnavailable("away")]
    notices.put(notice(1))
    writing = asyncio.create_task(notices.write())
    await wait_until(lambda: bool(lines.of("events_not_written")), "nothing was said of it")
    notices.put(notice(2))
    await wait_until(lambda: book.kept == ["1", "2"], "it was not tried again")
    assert lines.of("events_not_written") == [{"code": "storage_unavailable", "waiting": 1}]
    await ended(writing)


async def test_what_can_never_be_written_holds_up_nothing() -> None:
    notices, book, lines = opened()
    book.raises = [ValueError("secret")]
    notices.put(notice("wrong"))
    writing = asyncio.create_task(notices.write())
    await wait_until(lambda: bool(lines.of("events_lost")), "it was not told")
    notices.put(notice("right"))
    await wait_until(lambda: book.kept == ["right"], "the next was not written")
    assert lines.of("events_lost") == [{"count": 1, "code": "ValueError"}]
    await ended(writing)


async def test_the_line_is_bounded_and_says_once_that_it_is_full() -> None:
    notices, book, lines = opened()
    for number in range(5_000):
        notices.put(notice(number))
    assert len(lines.of("events_lost")) == 1
    await notices.close(5)
    assert book.kept == [str(number) for number in range(2_000)]
    notices.put(notice("again"))
    await notices.close(5)
    assert book.kept[-1] == "again"


async def test_what_waits_at_the_end_is_written() -> None:
    notices, book, lines = opened()
    book.raises = [StorageUnavailable("away")]
    notices.put(notice(1))
    writing = asyncio.create_task(notices.write())
    await wait_until(lambda: bool(lines.of("events_not_written")), "nothing was said of it")
    await ended(writing)
    await notices.close(5)
    assert book.kept == ["1"]
    assert not lines.of("events_lost")


async def test_an_end_in_the_middle_of_a_write_writes_nothing_twice() -> None:
    notices, book, _ = opened()
    book.may_write.clear()
    writing = asyncio.create_task(notices.write())
    notices.put(notice(1))
    await wait_until(lambda: book.calls == 1, "it was not written")
    writing.cancel()
    notices.put(notice(2))
    book.may_write.set()
    await asyncio.gather(writing, return_exceptions=True)
    await notices.close(5)
    assert book.kept == ["1", "2"]


async def test_a_journal_that_is_gone_does_not_hold_up_the_end() -> None:
    notices, book, lines = opened()
    book.raises = [StorageUnavailable("away")]
    notices.put(notice(1))
    await notices.close(5)
    assert book.kept == []
    assert [line["count"] for line in lines.of("events_lost")] == [1]


async def test_a_write_that_does_not_end_does_not_hold_up_the_end() -> None:
    notices, book, lines = opened()
    book.may_write.clear()
    notices.put(notice(1))
    async with asyncio.timeout(20):
        await notices.close(0.05)
    assert [line["count"] for line in lines.of("events_lost")] == [1]
    book.may_write.set()
    await asyncio.sleep(0)
    assert book.kept == []
