"""A fit in a process of its own: what becomes of it, and what it is told."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest

from agent_orchestra.adapters.fitting import ProcessFitter
from agent_orchestra.core import classifier
from agent_orchestra.core.agent import Agent
from agent_orchestra.core.classifier import Example, Vector
from agent_orchestra.errors import FitFailed
from agent_orchestra.runtime.fitting import Fitter, Job, fitted
from tests.services.waiting import wait_until

#: Each starts an interpreter with numpy.
pytestmark = pytest.mark.slow

CHILDREN: Final = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children")
needs_proc = pytest.mark.skipif(not CHILDREN.exists(), reason="this system does not tell of processes in /proc")

BILLING: Final = Agent(
    id="billing", kind="offline", examples=("refund my order", "explain the invoice", "pay the bill")
)
TRAVEL: Final = Agent(id="travel", kind="offline", examples=("book a flight", "find a hotel", "cancel the trip"))
EXAMPLES: Final = [
    Example(text=f"{verb} the {thing}", agent_id=agent_id)
    for agent_id, thing in (("billing", "quarterly figures"), ("travel", "night train"))
    for verb in ("show", "check", "send", "find", "change", "forget")
]


class Told:
    """Becomes, in the process that it is sent to, what an expression says. Neither job nor fit know of it."""

    def __init__(self, expression: str) -> None:
        self.expression = expression

    def __reduce__(self) -> tuple[Any, ...]:
        return eval, (self.expression,)


#: A job of these is never done.
ENDLESS: Final = "__import__('signal').pause()"


def job(
    examples: Any = EXAMPLES,
    *,
    agents: Sequence[Agent] = (BILLING, TRAVEL),
    vectors: Mapping[str, Vector] | None = None,
) -> Job:
    return Job(
        agents=agents,
        examples=examples,
        vectors={} if vectors is None else vectors,
        champion=b"",
        unseen=[True] * len(EXAMPLES),
    )


def children() -> set[int]:
    """The processes that this one has started, and that have not ended."""
    return {int(pid) for pid in CHILDREN.read_text().split()}


async def begun(fitter: Fitter) -> tuple[asyncio.Task[Any], int]:
    """A fit that does not end by itself, and the process that is at it."""
    before = children()
    fitting = asyncio.create_task(fitter.fit(job(Told(ENDLESS))))
    await wait_until(lambda: any(waits(pid) for pid in children() - before), "no process reads the job")
    [pid] = children() - before
    return fitting, pid


def waits(pid: int) -> bool:
    """Whether a process has come to its endless job: it is nicer by then, and asleep."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return False
    return int(fields[16]) > os.nice(0) and fields[0] == "S"


def environment(pid: int) -> str:
    return Path(f"/proc/{pid}/environ").read_text()


async def test_what_comes_of_a_job_is_the_same_as_in_this_process() -> None:
    given = job()
    assert await ProcessFitter().fit(given) == fitted(given)


async def test_what_was_learned_can_be_restored() -> None:
    found = await ProcessFitter().fit(job())
    model = classifier.restore(found.learned, [BILLING, TRAVEL], {})
    assert model.learned
    assert model.judge("give me the quarterly figures").ranked[0].agent_id == "billing"


async def test_a_job_may_be_larger_than_a_pipe() -> None:
    rng = np.random.default_rng(0)
    texts = [*(example.text for example in EXAMPLES), *BILLING.examples, *TRAVEL.examples, *map(str, range(5_000))]
    rows = rng.normal(size=(len(texts), 384)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    assert (await ProcessFitter().fit(job(vectors=dict(zip(texts, rows, strict=True))))).learned


@needs_proc
async def test_a_process_that_is_killed_is_a_fit_that_failed() -> None:
    fitting, pid = await begun(ProcessFitter())
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(FitFailed, match="-9"):
        await fitting
    assert pid not in children()


async def test_a_process_that_breaks_is_a_fit_that_failed() -> None:
    with pytest.raises(FitFailed):
        await ProcessFitter().fit(job(Told("1 / 0")))


async def test_what_is_no_answer_is_a_fit_that_failed() -> None:
    with pytest.raises(FitFailed):
        await ProcessFitter().fit(job(Told("__import__('os')._exit(0)")))


@needs_proc
async def test_a_fit_that_takes_too_long_is_given_up() -> None:
    before = children()
    with pytest.raises(FitFailed, match="took longer than 1 second"):
        await ProcessFitter(timeout=1.0).fit(job(Told(ENDLESS)))
    assert children() == before


@needs_proc
async def test_to_cancel_a_fit_ends_its_process() -> None:
    fitting, pid = await begun(ProcessFitter())
    fitting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await fitting
    assert pid not in children()


@needs_proc
async def test_the_process_is_given_no_secret_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "AGENT_ORCHESTRA_DATABASE__URL", "PGPASSWORD", "ANYTHING_ELSE"):
        monkeypatch.setenv(name, "sk-secret")
    fitting, pid = await begun(ProcessFitter())
    given = environment(pid)
    fitting.cancel()
    await asyncio.wait({fitting})
    assert "sk-secret" not in given
    assert "ANYTHING_ELSE" not in given


@needs_proc
async def test_the_process_gives_way_to_the_requests() -> None:
    fitting, pid = await begun(ProcessFitter())
    niceness, given = os.getpriority(os.PRIO_PROCESS, pid), environment(pid)
    fitting.cancel()
    await asyncio.wait({fitting})
    assert niceness > os.getpriority(os.PRIO_PROCESS, 0)
    assert "OMP_NUM_THREADS=1" in given


async def test_settings_of_agents_stay_here() -> None:
    secret: Any = {"instructions": Told("1 / 0")}
    agents = [
        Agent(id=agent.id, kind="prompt", examples=agent.examples, settings=secret) for agent in (BILLING, TRAVEL)
    ]
    assert (await ProcessFitter().fit(job(agents=agents))).examples > 0


@pytest.mark.parametrize(
    "said", ["print('noise', flush=True)", "__import__('os').write(1, b'noise')"], ids=["python", "a library"]
)
async def test_what_is_printed_does_not_get_into_the_answer(said: str) -> None:
    noisy: Any = Told(f"{said} and None or {{}}")
    assert (await ProcessFitter().fit(job(vectors=noisy))).learned


async def test_a_file_of_the_working_folder_is_not_taken_for_a_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "numpy.py").write_text("raise SystemExit(3)")
    monkeypatch.chdir(tmp_path)
    assert (await ProcessFitter().fit(job())).learned
