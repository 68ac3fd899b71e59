"""Who uses an SQLite file, and who was the only one when it came."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from agent_orchestra.adapters.sql.database import Presence, open_database

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such locks")

_HOLD = """
import sys
from agent_orchestra.adapters.sql.database import Presence

presence = Presence(sys.argv[1])
print("alone" if presence.alone else "not alone", flush=True)
if sys.argv[2] == "share":
    presence.share()
    print("shared", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "orchestra.db")


async def test_the_first_is_alone_and_the_second_is_not(path: str) -> None:
    first = Presence(path)
    second = Presence(path)

    assert (first.alone, second.alone) == (True, False)
    first.close()
    second.close()


async def test_the_second_shares_only_after_the_first_does(path: str) -> None:
    first, second = Presence(path), Presence(path)
    waiting = asyncio.create_task(asyncio.to_thread(second.share))
    done, _ = await asyncio.wait((waiting,), timeout=0.1)
    assert not done

    first.share()

    await asyncio.wait_for(waiting, 5)
    third = Presence(path)
    assert not third.alone
    for presence in (first, second, third):
        presence.close()


async def test_who_comes_while_others_share_is_not_alone(path: str) -> None:
    first = Presence(path)
    first.share()

    second = Presence(path)
    second.share()

    assert not second.alone
    first.close()
    second.close()


async def test_after_the_last_has_gone_the_next_is_alone(path: str) -> None:
    first, second = Presence(path), Presence(path)
    first.share()
    second.share()
    first.close()
    assert not Presence(path).alone
    second.close()

    last = Presence(path)

    assert last.alone
    last.close()
    last.close()


async def test_a_killed_process_is_gone_at_once(path: str) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _HOLD, path, "share", stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    assert await process.stdout.readline() == b"alone\n"
    assert await process.stdout.readline() == b"shared\n"
    during = Presence(path)
    assert not during.alone
    during.close()

    process.kill()
    await process.communicate()

    after = Presence(path)
    assert after.alone
    after.close()


async def test_an_open_database_says_whether_it_is_alone(path: str) -> None:
    first = await open_database(f"sqlite:///{path}")
    await first.share()
    second = await open_database(f"sqlite:///{path}")
    await second.share()

    assert (first.alone, second.alone) == (True, False)
    await first.close()
    await second.close()
    third = await open_database(f"sqlite:///{path}")
    assert third.alone
    await third.close()


async def test_on_postgres_nobody_is_alone(postgres_url: str) -> None:
    database = await open_database(postgres_url)
    await database.share()

    assert not database.alone
    await database.close()


async def test_a_database_that_was_not_opened_holds_nothing(tmp_path: Path) -> None:
    path = tmp_path / "letter.txt"
    path.write_text("no database\n" * 500)
    with pytest.raises(Exception, match="not an SQLite database"):
        await open_database(f"sqlite:///{path}")

    presence = Presence(str(path))

    assert presence.alone
    presence.close()
