"""What becomes of a request when a call fails: retried, given to another instance, agent or person, or ended."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from agent_orchestra.core.agent import Agent, Balancing, Limits
from agent_orchestra.core.breaker import BreakerPolicy, BreakerState
from agent_orchestra.core.conversation import InputPolicy
from agent_orchestra.core.request import Failure, Reply, RequestStatus
from agent_orchestra.core.resilience import Action, BudgetPolicy, Recovery
from agent_orchestra.core.stream import StreamEvent
from agent_orchestra.errors import (
    AgentFailed,
    AgentUnavailable,
    ContentRefused,
    DeadlineExceeded,
    Escalated,
    ModelAuthenticationFailed,
    ModelRateLimited,
    ModelServerError,
    NoInstanceAvailable,
    RunFailed,
    Superseded,
)
from agent_orchestra.runtime.executor import Call, Emit, Executor, Line, Outcome
from agent_orchestra.runtime.instances import Dispatching, Instance
from agent_orchestra.runtime.pool import Pool
from tests.runtime.parts import Gate, opened
from tests.runtime.parts import held as held_turns
from tests.services.waiting import wait_until

#: What a call does: answers, raises, or (None) never ends by itself.
Step = str | BaseException | None


class Script:
    """Does one step with each call, the last one again and again. Conforms to :class:`Backend`.

    ``tells``: pieces that it tells before. ``last``: how one ends that was let. ``stubborn``: it does not end when it
    is cancelled.
    """

    def __init__(
        self,
        *steps: Step,
        tells: Sequence[str] = (),
        last: BaseException | None = None,
        stubborn: bool = False,
    ) -> None:
        self.steps: list[Step] = list(steps)
        self.tells = tells
        self.last = last
        self.calls: list[Call] = []
        self.at: list[float] = []
        self.cancelled = 0
        self.may_tell = asyncio.Event()
        self.may_tell.set()
        self.may_end = asyncio.Event()
        self._stubborn = stubborn

    @property
    def count(self) -> int:
        return len(self.calls)

    async def run(self, call: Call, emit: Emit) -> Reply:
        step = self.steps[min(self.count, len(self.steps) - 1)]
        self.calls.append(call)
        self.at.append(time.perf_counter())
        if self.tells:
            await self._held(self.may_tell)
            for piece in self.tells:
                emit(piece)
        if step is None:
            await self._held(self.may_end)
            if self.last is not None:
                raise self.last
            return Reply(output="".join(self.tells) or "at last")
        await asyncio.sleep(0)
        if isinstance(step, BaseException):
            raise step
        return Reply(output=step)

    async def _held(self, until: asyncio.Event) -> None:
        while not until.is_set():
            try:
                await until.wait()
            except asyncio.CancelledError:
                self.cancelled += 1
                if not self._stubborn:
                    raise


class Changes:
    """What was told of instances. Conforms to :class:`Observer`."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str, str]] = []

    def changed(self, tenant: str, agent_id: str, instance_id: str, event: str, reason: str, /) -> None:
        self.told.append((agent_id, instance_id, event))


DOWN = ModelServerError("down")
QUICK = Recovery(base=0.001, cap=0.01)


def agent(
    agent_id: str = "a",
    recovery: Recovery = QUICK,
    *,
    concurrency: int = 10,
    queue: int = 0,
    timeout: float | None = None,
    read_only: bool = False,
    sticky: bool = False,
) -> Agent:
    return Agent(
        id=agent_id,
        kind="x",
        read_only=read_only,
        limits=Limits(concurrency=concurrency, timeout=timeout, queue=queue),
        balancing=Balancing(sticky=sticky),
        recovery=recovery,
    )


def fleet(*scripts: Script, ranks: Sequence[int] = ()) -> Pool:
    ranks = ranks or [0] * len(scripts)
    return Pool([Instance(id=f"i{n}", backend=script, rank=ranks[n]) for n, script in enumerate(scripts)])


def executor(
    *,
    breaker: BreakerPolicy | None = None,
    budget: BudgetPolicy | None = None,
    chance: float = 0.5,
    observer: Changes | None = None,
) -> Executor:
    policy = Dispatching(breaker=breaker or BreakerPolicy(), budget=budget or BudgetPolicy(floor=100))
    return Executor(policy=policy, max_output_chars=1_000, observer=observer or Changes(), chance=lambda: chance)


async def ask(
    runner: Executor, line: Line, *, seconds: float = 20.0, emit: Callable[[str, int], None] = lambda _, __: None
) -> Outcome:
    call = Call(request_id="r", conversation_id="c", tenant="t", agent=line[0][0], content="x")
    return await runner.execute(line, call, seconds=seconds, emit=emit)


def tried(outcome: Outcome) -> list[str]:
    """Each attempt with what was done then."""
    return [f"{a.agent_id}/{a.instance_id}: {a.decision}" for a in outcome.attempts]


def output(outcome: Outcome) -> str | None:
    return None if outcome.reply is None else outcome.reply.output


async def emptied(*pools: Pool) -> None:
    await wait_until(lambda: all(p.in_flight == p.waiting == 0 for p in pools), "a place was not given back")


def broken(where: Pool, *numbers: int) -> None:
    """Ejects instances until somebody mends them."""
    for number in numbers:
        where.instances[number].unwell = "gone"


def settled_in(where: Pool, *, seconds: float = 0.02, calls: int = 30) -> None:
    """As if each instance had answered so many calls, so that it is known how long one takes."""
    for instance in where.instances:
        for _ in range(calls):
            instance.window.add(time.perf_counter(), seconds, answered=True)


# --- retry


async def test_what_may_pass_is_tried_again_after_a_pause() -> None:
    script = Script(DOWN, DOWN, "better")
    where = fleet(script)
    outcome = await ask(executor(chance=0.5), [(agent(recovery=Recovery(base=0.04, cap=1.0)), where)])
    assert output(outcome) == "better"
    assert tried(outcome) == ["a/i0: retry", "a/i0: retry", "a/i0: answered"]
    assert [attempt.delay_ms for attempt in outcome.attempts] == [0, 20.0, 40.0]
    assert script.at[1] - script.at[0] >= 0.019
    assert script.at[2] - script.at[1] >= 0.039
    assert [attempt.error for attempt in outcome.attempts] == ["model_server_error", "model_server_error", None]
    assert outcome.attempts[0].reason == "it may pass"
    await emptied(where)


@pytest.mark.parametrize("key", ["agent_failed", "agent_failed.ValueError", "*"])
async def test_the_agents_own_errors_are_retried_where_its_policy_says_so(key: str) -> None:
    script = Script(AgentFailed("no", cause="ValueError"), ValueError("unforeseen"), "better")
    policy = Recovery(base=0.001, cap=0.01, actions={key: Action.RETRY})
    outcome = await ask(executor(), [(agent(recovery=policy), fleet(script))])
    assert (output(outcome), script.count) == ("better", 3)


async def test_a_retry_goes_to_another_instance_where_there_is_one() -> None:
    policy = Recovery(base=0.001, cap=0.01, actions={"*": Action.RETRY})
    outcome = await ask(executor(), [(agent(recovery=policy), fleet(Script(DOWN), Script(DOWN), Script("here")))])
    assert tried(outcome) == ["a/i0: retry", "a/i1: retry", "a/i2: answered"]


async def test_the_attempts_of_a_policy_are_the_most_there_are() -> None:
    script = Script(DOWN)
    outcome = await ask(executor(), [(agent(recovery=Recovery(attempts=3, base=0.001, cap=0.01)), fleet(script))])
    assert tried(outcome) == ["a/i0: retry", "a/i0: retry", "a/i0: abort"]
    assert outcome.attempts[-1].reason == "3 calls are enough"
    assert (script.count, outcome.error) == (3, DOWN)
    assert outcome.reply is None
    assert not outcome.escalated


async def test_what_the_other_side_asks_for_is_waited_for_and_nobody_calls_it_meanwhile() -> None:
    limited = ModelRateLimited("limit", retry_after=0.1)
    script = Script(limited, "better")
    where, runner = fleet(script), executor(chance=0.0)
    line = [(agent(recovery=Recovery(base=0.001, cap=1.0)), where)]
    asking = asyncio.create_task(ask(runner, line))
    await wait_until(lambda: where.instances[0].resting_until > 0, "it does not rest")
    with pytest.raises(NoInstanceAvailable, match="asked to be left alone") as caught:
        await ask(runner, line)
    assert caught.value.retry_after >= 1
    outcome = await asking
    assert output(outcome) == "better"
    assert script.at[1] - script.at[0] >= 0.1
    assert outcome.attempts[1].delay_ms >= 100


async def test_a_longer_pause_than_a_request_is_held_for_is_not_made() -> None:
    script = Script(ModelRateLimited("limit", retry_after=30.0))
    outcome = await ask(executor(), [(agent(recovery=Recovery(base=0.001, cap=5.0)), fleet(script))])
    assert tried(outcome) == ["a/i0: abort"]
    assert outcome.attempts[0].reason == "a pause of 30 s is longer than a request is held for"
    assert outcome.error is not None
    assert outcome.error.retry_after == 30.0


async def test_a_pause_that_would_outlast_the_deadline_is_not_made() -> None:
    script = Script(ModelRateLimited("limit", retry_after=3.0))
    outcome = await ask(executor(), [(agent(recovery=Recovery(base=0.001, cap=5.0)), fleet(script))], seconds=1.0)
    assert (tried(outcome), script.count) == (["a/i0: abort"], 1)
    assert "would outlast the deadline" in outcome.attempts[0].reason


async def test_when_the_budget_is_spent_there_are_no_more_retries() -> None:
    scripts = [Script(DOWN)]
    runner = executor(budget=BudgetPolicy(share=0.0, floor=5, window=1_000), breaker=BreakerPolicy(enabled=False))
    where, who = fleet(*scripts), agent(recovery=Recovery(attempts=3, base=0.001, cap=0.01))
    outcomes = [await ask(runner, [(who, where)]) for _ in range(10)]
    assert scripts[0].count == 10 + 5
    assert outcomes[-1].attempts[-1].reason == "the budget of retries is spent"


async def test_a_storm_of_failures_makes_a_fifth_more_calls_and_not_more() -> None:
    script = Script(DOWN)
    runner = executor(budget=BudgetPolicy(share=0.2, floor=0, window=1_000), breaker=BreakerPolicy(enabled=False))
    where, who = fleet(script), agent(recovery=Recovery(attempts=4, base=0.001, cap=0.01), concurrency=1_000)
    await asyncio.gather(*(ask(runner, [(who, where)]) for _ in range(200)))
    assert 200 < script.count <= 240


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -1.0, True, "soon"])
async def test_an_agent_that_lies_about_when_to_come_again_does_no_harm(wrong: object) -> None:
    script = Script(AgentUnavailable("away", retry_after=wrong), "better")
    where = fleet(script)
    outcome = await asyncio.wait_for(ask(executor(), [(agent(), where)]), timeout=10)
    assert outcome.reply is not None or outcome.error is not None
    assert all(attempt.delay_ms >= 0 for attempt in outcome.attempts)
    await emptied(where)


async def test_a_request_that_nobody_wants_any_more_ends_in_its_pause() -> None:
    script = Script(DOWN)
    where = fleet(script)
    task = asyncio.create_task(
        ask(executor(), [(agent(recovery=Recovery(base=100, cap=1_000)), where)], seconds=10_000)
    )
    await wait_until(lambda: script.count == 1, "it was not called")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await emptied(where)


# --- another instance


async def test_what_another_may_answer_goes_there_at_once() -> None:
    first, second = Script(DOWN), Script("here")
    outcome = await ask(executor(), [(agent(recovery=Recovery(base=100, cap=1_000)), fleet(first, second))])
    assert tried(outcome) == ["a/i0: reassign", "a/i1: answered"]
    assert (outcome.agent_id, outcome.instance_id) == ("a", "i1")
    assert outcome.attempts[1].delay_ms == 0


async def test_what_no_pause_mends_is_asked_of_each_once() -> None:
    scripts = [Script(ModelAuthenticationFailed("key")) for _ in range(3)]
    outcome = await ask(executor(), [(agent(), fleet(*scripts))])
    assert tried(outcome) == ["a/i0: reassign", "a/i1: reassign", "a/i2: abort"]
    assert outcome.attempts[-1].reason == "no other instance is left"


async def test_after_all_have_failed_only_those_that_a_pause_may_mend_are_asked_again() -> None:
    hopeless, hopeful = Script(ModelAuthenticationFailed("key")), Script(DOWN, DOWN, "better")
    outcome = await ask(executor(), [(agent(), fleet(hopeless, hopeful))])
    assert (output(outcome), hopeless.count, hopeful.count) == ("better", 1, 3)


@pytest.mark.parametrize("attempts", [1, 2, 4])
async def test_each_that_stands_by_is_asked_once_whatever_the_number_of_attempts(attempts: int) -> None:
    first = [Script(DOWN), Script(DOWN)]
    standing = [Script(DOWN), Script("here")]
    where = fleet(*first, *standing, ranks=[0, 0, 1, 2])
    policy = Recovery(attempts=attempts, base=0.001, cap=0.01)
    outcome = await ask(executor(), [(agent(recovery=policy), where)])
    assert output(outcome) == "here"
    assert [script.count for script in standing] == [1, 1]
    assert sum(script.count for script in first) <= attempts


async def test_one_attempt_is_one_attempt_where_those_that_stand_by_are_gone() -> None:
    script = Script(DOWN)
    where = fleet(script, Script("gone"), Script("gone"), ranks=[0, 1, 2])
    broken(where, 1, 2)
    outcome = await ask(executor(), [(agent(recovery=Recovery(attempts=1, base=0.001, cap=0.01)), where)])
    assert (script.count, tried(outcome)) == (1, ["a/i0: abort"])


async def test_one_that_waits_for_a_certain_instance_keeps_nobody_from_another() -> None:
    busy, failing = Script(None), Script(DOWN, "fine")
    where, who, runner = fleet(failing, busy), agent(concurrency=1), executor()
    failing.steps.insert(0, "first")
    assert output(await ask(runner, [(who, where)])) == "first"
    held = asyncio.create_task(ask(runner, [(who, where)]))
    await wait_until(lambda: busy.count == 1, "the busy one was not called")
    waits = asyncio.create_task(ask(runner, [(who, where)]))
    await wait_until(lambda: where.waiting == 1, "it does not wait for the busy one")
    assert output(await ask(runner, [(who, where)])) == "fine"
    busy.may_end.set()
    assert [output(await task) for task in (held, waits)] == ["at last", "at last"]
    await emptied(where)


async def test_nothing_is_tried_again_after_a_piece_was_told() -> None:
    second = Script("unasked")
    policy = Recovery(base=0.001, cap=0.01, actions={"*": Action.RETRY}, exhausted=Action.ESCALATE)
    outcome = await ask(executor(), [(agent(recovery=policy), fleet(Script(DOWN, tells=["once "]), second))])
    assert (tried(outcome), second.count, outcome.told) == (["a/i0: abort"], 0, "once ")
    assert outcome.attempts[0].reason == "part of the answer was told"


# --- another agent


async def test_the_next_agent_answers_what_the_first_could_not() -> None:
    one, two = Script(DOWN), Script("from b")
    first, second = fleet(one), fleet(two)
    line = [(agent("a", Recovery(attempts=2, base=0.001, cap=0.01)), first), (agent("b"), second)]
    outcome = await ask(executor(), line)
    assert tried(outcome) == ["a/i0: retry", "a/i0: hand_over", "b/i0: answered"]
    assert (outcome.agent_id, outcome.instance_id, output(outcome)) == ("b", "i0", "from b")
    assert two.calls[0].agent.id == "b", "it was asked as the first"
    assert (first.failures_in_row, second.failures_in_row) == (1, 0)
    await emptied(first, second)


async def test_each_agent_has_a_policy_and_attempts_of_its_own() -> None:
    one, two, three = Script(DOWN), Script(AgentFailed("no")), Script("unasked")
    line = [
        (agent("a", Recovery(attempts=1)), fleet(one)),
        (agent("b", Recovery(attempts=3, base=0.001, cap=0.01, actions={"agent_failed": Action.RETRY})), fleet(two)),
        (agent("c"), fleet(three)),
    ]
    outcome = await ask(executor(), line)
    assert (one.count, two.count, three.count) == (1, 3, 1)
    assert tried(outcome)[-1] == "c/i0: answered"


async def test_an_agent_that_takes_no_calls_is_passed_over_and_that_is_on_record() -> None:
    gone = fleet(Script("gone"))
    broken(gone, 0)
    last = Script("from c")
    line = [(agent("a"), Pool([])), (agent("b"), gone), (agent("c"), fleet(last))]
    outcome = await ask(executor(), line)
    assert tried(outcome) == ["a/: hand_over", "b/: hand_over", "c/i0: answered"]
    assert [attempt.error for attempt in outcome.attempts] == ["no_instance_available", "no_instance_available", None]
    assert "'i0' is not well: gone" in outcome.attempts[1].reason


async def test_when_no_agent_can_take_the_call_the_first_one_says_why() -> None:
    gone = fleet(Script("gone"))
    broken(gone, 0)
    with pytest.raises(NoInstanceAvailable, match=r"agent 'a'.*'i0' is not well: gone"):
        await ask(executor(), [(agent("a"), gone), (agent("b"), Pool([]))])


async def test_an_agent_whose_breaker_opens_with_this_very_failure_hands_over() -> None:
    """Else each time that it opens, and each trial that fails, would cost a request."""
    script, stand_in = Script(DOWN), Script("from b")
    where, changes = fleet(script), Changes()
    runner = executor(breaker=BreakerPolicy(failures=1, rest=60.0), observer=changes)
    line = [(agent("a"), where), (agent("b"), fleet(stand_in))]
    assert output(await ask(runner, line)) == "from b"
    for _ in range(3):
        assert where.instances[0].breaker.state is BreakerState.OPEN
        # As if its rest were over.
        where.instances[0].breaker = replace(where.instances[0].breaker, until=0.0)
        assert output(await ask(runner, line)) == "from b"
    assert script.count == 4, "it was not tried"
    assert changes.told.count(("a", "i0", "breaker.half-open")) == 3


async def test_a_request_is_not_held_for_an_agent_that_will_not_be_back_in_time() -> None:
    runner = executor(breaker=BreakerPolicy(failures=1, rest=60.0))
    script = Script(DOWN)
    outcome = await ask(runner, [(agent(), fleet(script))])
    assert (tried(outcome), script.count, outcome.error) == (["a/i0: abort"], 1, DOWN)


async def test_of_the_agents_that_are_left_one_with_a_free_place_comes_before_a_full_one() -> None:
    busy, free = Script(None), Script("from c")
    full, other = fleet(busy), fleet(free)
    b = agent("b", concurrency=1)
    runner = executor()
    held = asyncio.create_task(ask(runner, [(b, full)]))
    await wait_until(lambda: busy.count == 1, "the busy one was not called")
    line = [(agent("a", Recovery(attempts=1)), fleet(Script(DOWN))), (b, full), (agent("c"), other)]
    outcome = await asyncio.wait_for(ask(runner, line), timeout=15)
    assert output(outcome) == "from c"
    busy.may_end.set()
    await held
    await emptied(full, other)


async def test_nobody_is_called_when_the_time_is_over() -> None:
    late, second, third = Script(None), Script("unasked"), Script("unasked")
    who = agent("a", read_only=True)
    outcome = await ask(executor(), [(who, fleet(late, second)), (agent("b"), fleet(third))], seconds=0.05)
    assert (late.count, second.count, third.count) == (1, 0, 0)
    assert isinstance(outcome.error, DeadlineExceeded)
    assert tried(outcome) == ["a/i0: abort"]


async def away(_: str) -> str:
    raise AgentUnavailable("away")


async def here(content: str) -> str:
    return f"{content}!"


def stand_in(agent_id: str, *, priority: int = 0, words: Sequence[str] = ()) -> Agent:
    return Agent(
        id=agent_id,
        kind="function",
        capabilities=("greeting",),
        keywords=tuple(words),
        priority=priority,
        recovery=Recovery(attempts=1),
    )


async def test_who_has_answered_in_the_end_is_told_recorded_and_goes_on_with_the_conversation(tmp_path: Path) -> None:
    async with opened(tmp_path) as parts:
        await parts.orchestra.register_agent(stand_in("first", priority=9), away)
        await parts.orchestra.register_agent(stand_in("second"), here)
        answer = await parts.orchestra.process_request("hello", capability="greeting")
        assert (answer.agent, answer.output, answer.route.primary.agent_id) == ("second", "hello!", "first")
        assert [(a.agent_id, a.decision) for a in answer.attempts] == [("first", "hand_over"), ("second", "answered")]
        assert (await parts.orchestra.get_request(answer.request_id)).end == answer
        conversation = await parts.orchestra.get_conversation(answer.conversation_id)
        assert conversation.active_agent == "second"
        assert (await parts.orchestra.process_message(conversation.id, "and you?")).agent == "second"


async def test_an_agent_that_was_asked_for_by_name_has_no_stand_in(tmp_path: Path) -> None:
    async with opened(tmp_path) as parts:
        await parts.orchestra.register_agent(stand_in("first"), away)
        await parts.orchestra.register_agent(stand_in("second"), here)
        with pytest.raises(AgentUnavailable):
            await parts.orchestra.process_request("hello", agent_id="first")


async def test_one_whose_agents_instances_are_all_ejected_goes_to_the_next_that_can_take_it(tmp_path: Path) -> None:
    async with opened(tmp_path) as parts:
        await parts.orchestra.register_agent(stand_in("first", priority=9), here)
        await parts.orchestra.register_agent(stand_in("second"), here)
        (instance,) = parts.registered("first").pool.instances
        instance.unwell = "gone"
        answer = await parts.orchestra.process_request("hello", capability="greeting")
        assert (answer.agent, answer.attempts[0].error) == ("second", "no_instance_available")
        with pytest.raises(NoInstanceAvailable, match="'in-process' is not well: gone"):
            await parts.orchestra.process_request("hello", agent_id="first")
        assert len(await parts.orchestra.get_conversations()) == 1, "what was refused has left something"


# --- a person


async def test_an_error_that_is_for_a_person_goes_there() -> None:
    policy = Recovery(actions={"content_refused": Action.ESCALATE})
    second = Script("unasked")
    outcome = await ask(executor(), [(agent(recovery=policy), fleet(Script(ContentRefused("no")), second))])
    assert (outcome.escalated, tried(outcome), second.count) == (True, ["a/i0: escalate"], 0)
    assert isinstance(outcome.error, ContentRefused)


LAST = Recovery(attempts=2, base=0.001, cap=0.01, exhausted=Action.ESCALATE)


async def test_a_person_is_asked_when_all_is_exhausted_and_not_before() -> None:
    outcome = await ask(executor(), [(agent(recovery=LAST), fleet(Script(DOWN, "better")))])
    assert (output(outcome), outcome.escalated) == ("better", False)
    outcome = await ask(executor(), [(agent(recovery=LAST), fleet(Script(DOWN)))])
    assert (outcome.escalated, tried(outcome)) == (True, ["a/i0: retry", "a/i0: escalate"])


async def test_what_is_for_a_person_does_not_speak_against_who_says_so() -> None:
    policy = Recovery(actions={"agent_failed.Limit": Action.ESCALATE})
    where = fleet(Script(AgentFailed("no", cause="Limit")))
    runner, who = executor(breaker=BreakerPolicy(failures=2)), agent(recovery=policy)
    for _ in range(5):
        assert (await ask(runner, [(who, where)])).escalated
    assert where.instances[0].breaker.state is BreakerState.CLOSED
    assert where.instances[0].window.success_rate == 1.0


@pytest.mark.parametrize(("actions", "escalated"), [({}, True), ({"agent_failed": Action.ABORT}, False)])
async def test_a_person_is_asked_too_for_what_the_policy_is_silent_about(
    actions: Mapping[str, Action], escalated: bool
) -> None:
    policy = Recovery(actions=actions, exhausted=Action.ESCALATE)
    outcome = await ask(executor(), [(agent(recovery=policy), fleet(Script(AgentFailed("no", cause="X"))))])
    assert outcome.escalated == escalated


async def test_a_request_that_finds_nobody_to_call_is_for_a_person_too(tmp_path: Path) -> None:
    async with opened(tmp_path, dispatching=Dispatching(breaker=BreakerPolicy(failures=1, rest=60.0))) as parts:

        async def breaks(_: str) -> str:
            raise ValueError

        policy = Recovery(attempts=1, exhausted=Action.ESCALATE)
        await parts.orchestra.register_agent(Agent(id="frail", kind="function", recovery=policy), breaks)
        for cause in ("agent_failed", "agent_unavailable"):
            with pytest.raises(Escalated) as caught:
                await parts.orchestra.process_request("x", agent_id="frail")
            assert caught.value.data["cause"] == cause
        first, second = await parts.orchestra.escalations.find(tenant="default")
        assert [attempt.instance_id for attempt in first.failure.attempts] == ["in-process"]
        assert [attempt.instance_id for attempt in second.failure.attempts] == [""]
        assert "in a row" in second.failure.attempts[0].reason
        await parts.orchestra.escalations.answer(second.request_id, "yes", tenant="default")


async def test_a_person_is_asked_too_when_the_breaker_has_opened_meanwhile() -> None:
    runner = executor(breaker=BreakerPolicy(failures=1, rest=60.0))
    outcome = await ask(runner, [(agent(recovery=LAST), fleet(Script(DOWN)))])
    assert (outcome.escalated, tried(outcome)) == (True, ["a/i0: escalate"])


async def test_a_person_is_asked_too_when_the_other_instance_stays_full() -> None:
    busy = Script(None)
    where, who = fleet(Script(DOWN), busy), agent(recovery=LAST, concurrency=1)
    runner = executor()
    where.instances[1].in_flight = 1
    outcome = await ask(runner, [(who, where)], seconds=0.2)
    assert (outcome.escalated, outcome.attempts[-1].decision, busy.count) == (True, "escalate", 0)
    where.instances[1].in_flight = 0
    await emptied(where)


async def test_an_escalated_request_is_on_record_as_such_and_its_caller_is_told(tmp_path: Path) -> None:
    async def breaks(_: str) -> str:
        raise ValueError

    async with opened(tmp_path) as parts:
        policy = Recovery(actions={"agent_failed.ValueError": Action.ESCALATE})
        await parts.orchestra.register_agent(
            Agent(id="frail", kind="function", keywords=("frail",), recovery=policy), breaks
        )
        with pytest.raises(Escalated) as caught:
            await parts.orchestra.process_request("frail", idempotency_key="k")
        assert (caught.value.data["cause"], caught.value.data["agent"]) == ("agent_failed", "frail")
        with pytest.raises(Escalated):
            await parts.orchestra.process_request("frail", idempotency_key="k")
        record = await parts.orchestra.get_request(str(parts.lines.of("request_failed")[0]["request_id"]))
        assert record.status is RequestStatus.ESCALATED
        assert isinstance(record.end, Failure)
        assert [attempt.decision for attempt in record.end.attempts] == ["escalate"]


# --- what a call says about its instance


async def test_a_trial_that_succeeds_closes_the_breaker_and_one_that_fails_does_not() -> None:
    script = Script(DOWN, DOWN, "better")
    where, changes = fleet(script), Changes()
    runner = executor(breaker=BreakerPolicy(failures=1, rest=0.0), observer=changes)
    who = agent(recovery=Recovery(attempts=1))
    for _ in range(3):
        await ask(runner, [(who, where)])
    assert where.instances[0].breaker.state is BreakerState.CLOSED
    assert [event for _, _, event in changes.told if event.startswith("breaker")] == [
        "breaker.open",
        "breaker.half-open",
        "breaker.open",
        "breaker.half-open",
        "breaker.closed",
    ]


async def test_a_trial_that_was_cancelled_is_made_again() -> None:
    script = Script(DOWN, None, "better")
    where, runner = fleet(script), executor(breaker=BreakerPolicy(failures=1, rest=0.0))
    who = agent(recovery=Recovery(attempts=1))
    await ask(runner, [(who, where)])
    trial = asyncio.create_task(ask(runner, [(who, where)]))
    await wait_until(lambda: script.count == 2, "it was not tried")
    with pytest.raises(NoInstanceAvailable, match="is being tried"):
        await ask(runner, [(who, where)])
    trial.cancel()
    with pytest.raises(asyncio.CancelledError):
        await trial
    await emptied(where)
    assert output(await ask(runner, [(who, where)])) == "better"
    assert where.instances[0].breaker.state is BreakerState.CLOSED


async def test_a_trial_whose_place_was_given_back_unused_is_made_again() -> None:
    where, runner = fleet(Script(DOWN, "better")), executor(breaker=BreakerPolicy(failures=1, rest=0.0))
    who = agent(recovery=Recovery(attempts=1))
    await ask(runner, [(who, where)])
    runner.release(await runner.reserve([(who, where)], stick="c", seconds=1))
    assert output(await ask(runner, [(who, where)])) == "better"


async def test_a_trial_that_had_little_time_does_not_close_the_breaker() -> None:
    """It has said nothing: neither that the instance is well, nor that it is not."""
    script = Script(DOWN, None)
    where, runner = fleet(script), executor(breaker=BreakerPolicy(failures=1, rest=0.0))
    settled_in(where, seconds=5.0)
    who = agent(recovery=Recovery(attempts=1))
    await ask(runner, [(who, where)])
    outcome = await ask(runner, [(who, where)], seconds=0.03)
    assert isinstance(outcome.error, DeadlineExceeded)
    assert where.instances[0].breaker.state is BreakerState.OPEN
    await emptied(where)
    assert where.usable(time.perf_counter()), "the next call may be the trial"


async def test_a_call_that_had_little_time_is_not_blamed_on_its_instance() -> None:
    where, runner = fleet(Script(None)), executor(breaker=BreakerPolicy(failures=2, rest=60.0))
    settled_in(where, seconds=5.0)
    for _ in range(5):
        outcome = await ask(runner, [(agent(recovery=Recovery(attempts=1)), where)], seconds=0.02)
        assert isinstance(outcome.error, DeadlineExceeded)
    assert where.instances[0].breaker.state is BreakerState.CLOSED
    assert where.instances[0].success_rate == 1.0
    await emptied(where)


async def test_a_call_that_had_all_the_time_there_was_is_blamed_on_its_instance() -> None:
    where, runner = fleet(Script(None)), executor(breaker=BreakerPolicy(failures=2, rest=60.0))
    who = agent(recovery=Recovery(attempts=1), timeout=0.02)
    for _ in range(2):
        await ask(runner, [(who, where)], seconds=20)
    assert where.instances[0].breaker.state is BreakerState.OPEN
    await emptied(where)


async def test_one_that_hangs_is_blamed_though_its_agent_may_take_longer_than_the_request() -> None:
    where, runner = fleet(Script(None)), executor(breaker=BreakerPolicy(failures=1, rest=60.0))
    await ask(runner, [(agent(recovery=Recovery(attempts=1), timeout=600), where)], seconds=1.2)
    assert where.instances[0].breaker.state is BreakerState.OPEN
    await emptied(where)


@pytest.mark.parametrize("seconds", [0.0, -1.0])
async def test_without_any_time_nobody_is_called_nor_blamed(seconds: float) -> None:
    script = Script("unasked")
    where, runner = fleet(script), executor(breaker=BreakerPolicy(failures=1, rest=60.0))
    who = agent()
    reserved = await runner.reserve([(who, where)], stick="c", seconds=1)
    call = Call(request_id="r", conversation_id="c", tenant="t", agent=who, content="x")
    outcome = await runner.run(reserved, call, seconds=seconds, emit=lambda _, __: None)
    assert isinstance(outcome.error, DeadlineExceeded)
    assert (script.count, where.instances[0].breaker.state) == (0, BreakerState.CLOSED)
    await emptied(where)


@pytest.mark.parametrize("error", [ContentRefused("no"), ModelRateLimited("limit", retry_after=0.0)])
async def test_what_is_no_answer_does_not_make_an_instance_look_fast(error: RunFailed) -> None:
    where = fleet(Script(error))
    await ask(executor(), [(agent(recovery=Recovery(attempts=1)), where)])
    assert (where.instances[0].window.answered, where.instances[0].mean_seconds) == (0, 0.0)


async def test_an_instance_that_rejects_what_it_is_asked_is_not_ejected() -> None:
    where, runner = fleet(Script(ContentRefused("no"))), executor(breaker=BreakerPolicy(failures=2))
    for _ in range(10):
        await ask(runner, [(agent(), where)])
    assert where.instances[0].breaker.state is BreakerState.CLOSED


async def test_one_that_was_ejected_while_a_request_was_on_its_way_is_not_called() -> None:
    first, second = Script("unasked"), Script("here")
    where, who, runner = fleet(first, second), agent(), executor()
    reserved = await runner.reserve([(who, where)], stick="c", seconds=1)
    broken(where, 0)
    call = Call(request_id="r", conversation_id="c", tenant="t", agent=who, content="x")
    outcome = await runner.run(reserved, call, seconds=5, emit=lambda _, __: None)
    assert (output(outcome), first.count) == ("here", 0)
    await emptied(where)


# --- the line of an agent


async def test_calls_wait_for_a_place_where_the_agent_lets_them_and_one_more_is_refused() -> None:
    script = Script(None, "second", "third")
    where, who, runner = fleet(script), agent(concurrency=1, queue=2), executor()
    tasks = [asyncio.create_task(ask(runner, [(who, where)]))]
    await wait_until(lambda: script.count == 1, "it was not called")
    for waiting in (1, 2):
        tasks.append(asyncio.create_task(ask(runner, [(who, where)])))
        await wait_until(lambda waiting=waiting: where.waiting == waiting, "it does not wait")
    with pytest.raises(NoInstanceAvailable, match="'i0' is full: 1 of 1 calls"):
        await ask(runner, [(who, where)])
    script.may_end.set()
    assert [output(await task) for task in tasks] == ["at last", "second", "third"]
    await emptied(where)


async def test_newcomers_do_not_overtake_those_who_wait() -> None:
    where, who, runner = fleet(Script("x")), agent(concurrency=1, queue=5), executor()
    held = await runner.reserve([(who, where)], stick="c", seconds=5)
    patient = asyncio.create_task(runner.reserve([(who, where)], stick="c", seconds=20))
    await wait_until(lambda: where.waiting == 1, "it does not wait")
    runner.release(held)
    pushing = asyncio.create_task(runner.reserve([(who, where)], stick="c", seconds=20))
    reserved = await asyncio.wait_for(patient, timeout=10)
    assert not pushing.done()
    runner.release(reserved)
    runner.release(await pushing)
    await emptied(where)


async def test_nobody_waits_in_a_line_longer_than_its_time() -> None:
    script = Script(None)
    where, who, runner = fleet(script), agent(concurrency=1, queue=5), executor()
    held = asyncio.create_task(ask(runner, [(who, where)]))
    await wait_until(lambda: script.count == 1, "it was not called")
    with pytest.raises(NoInstanceAvailable):
        await asyncio.wait_for(ask(runner, [(who, where)], seconds=0.05), timeout=10)
    assert where.waiting == 0
    script.may_end.set()
    await held


async def test_one_that_waits_for_a_full_agent_still_has_time_for_the_next() -> None:
    busy, free = Script(None), Script("from b")
    where, runner = fleet(busy), executor()
    who = agent("a", concurrency=1, queue=5)
    held = asyncio.create_task(ask(runner, [(who, where)]))
    await wait_until(lambda: busy.count == 1, "it was not called")
    outcome = await asyncio.wait_for(ask(runner, [(who, where), (agent("b"), fleet(free))], seconds=2.0), timeout=30)
    assert output(outcome) == "from b"
    assert tried(outcome) == ["a/: hand_over", "b/i0: answered"]
    busy.may_end.set()
    await held
    await emptied(where)


async def test_nobody_waits_for_an_agent_that_takes_no_calls_any_more() -> None:
    script = Script(None)
    where, who, runner = fleet(script), agent(concurrency=1, queue=5), executor()
    held = asyncio.create_task(ask(runner, [(who, where)]))
    await wait_until(lambda: script.count == 1, "it was not called")
    waits = asyncio.create_task(ask(runner, [(who, where)], seconds=60))
    hopes = asyncio.create_task(ask(runner, [(who, where), (agent("b"), fleet(Script("from b")))], seconds=60))
    await wait_until(lambda: where.waiting == 2, "they do not wait")
    broken(where, 0)
    assert output(await asyncio.wait_for(hopes, timeout=10)) == "from b"
    with pytest.raises(NoInstanceAvailable, match="'i0' is not well: gone"):
        await asyncio.wait_for(waits, timeout=10)
    script.may_end.set()
    await held
    await emptied(where)


async def test_one_that_no_longer_wants_a_place_leaves_the_line() -> None:
    where, who, runner = fleet(Script("x")), agent(concurrency=1, queue=5), executor()
    held = await runner.reserve([(who, where)], stick="c", seconds=5)
    gone = asyncio.create_task(runner.reserve([(who, where)], stick="c", seconds=20))
    await wait_until(lambda: where.waiting == 1, "it does not wait")
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    assert where.waiting == 0
    runner.release(held)
    await emptied(where)


async def test_an_agent_that_is_changed_while_a_request_waits_answers_it_all_the_same(tmp_path: Path) -> None:
    may_end = asyncio.Event()

    async def slow(content: str) -> str:
        await may_end.wait()
        return f"{content}!"

    async with opened(tmp_path) as parts:
        one_at_a_time = Agent(id="slow", kind="function", keywords=("slow",), limits=Limits(concurrency=1, queue=5))
        await parts.orchestra.register_agent(one_at_a_time, slow)
        where = parts.registered("slow").pool
        first = asyncio.create_task(parts.orchestra.process_request("slow one"))
        await wait_until(lambda: where.in_flight == 1, "it was not called")
        second = asyncio.create_task(parts.orchestra.process_request("slow two"))
        await wait_until(lambda: where.waiting == 1, "it does not wait")
        await parts.orchestra.enable_agent("slow", enabled=False)
        may_end.set()
        assert [(await task).output for task in (first, second)] == ["slow one!", "slow two!"]
        await emptied(where)


async def test_other_input_takes_over_from_one_that_waits_for_a_place(tmp_path: Path) -> None:
    async with opened(tmp_path, policy=InputPolicy.INTERRUPT) as parts:
        gate = Gate()
        one_at_a_time = Agent(id="gate", kind="function", keywords=("gate",), limits=Limits(concurrency=1, queue=5))
        await parts.orchestra.register_agent(one_at_a_time, gate)
        where = parts.registered("gate").pool
        first = asyncio.create_task(parts.orchestra.process_request("gate one"))
        await wait_until(lambda: gate.asked("gate one"), "it was not called")
        conversation = await parts.orchestra.create_conversation()
        waits = asyncio.create_task(parts.orchestra.process_message(conversation.id, "gate two"))
        await wait_until(lambda: where.waiting == 1, "it does not wait")
        after = asyncio.create_task(parts.orchestra.process_message(conversation.id, "gate three"))
        with pytest.raises(Superseded):
            await waits
        gate.let("gate one", "gate two", "gate three")
        assert [(await task).output for task in (first, after)] == ["gate one!", "gate three!"]
        assert not gate.asked("gate two")
        assert (where.in_flight, where.waiting, held_turns(parts.turns)) == (0, 0, 0)


async def test_other_input_takes_over_from_one_that_pauses_and_its_attempts_are_on_record(tmp_path: Path) -> None:
    asked: list[str] = []

    async def frail(content: str) -> str:
        asked.append(content)
        if content == "frail one":
            raise AgentUnavailable("away")
        return f"{content}!"

    async with opened(tmp_path, policy=InputPolicy.INTERRUPT, timeout_seconds=86_400) as parts:
        patient = Agent(id="frail", kind="function", keywords=("frail",), recovery=Recovery(base=1_000, cap=2_000))
        await parts.orchestra.register_agent(patient, frail)
        conversation = await parts.orchestra.create_conversation()
        told: list[StreamEvent] = []
        pausing = asyncio.create_task(parts.orchestra.process_message(conversation.id, "frail one", emit=told.append))
        await wait_until(lambda: asked == ["frail one"], "it was not called")
        answer = await parts.orchestra.process_message(conversation.id, "frail two")
        assert answer.output == "frail two!"
        with pytest.raises(Superseded):
            await pausing
        record = await parts.orchestra.get_request(str(told[0].data["request_id"]))
        assert isinstance(record.end, Failure)
        assert [attempt.error for attempt in record.end.attempts] == ["agent_unavailable"]
        assert parts.registered("frail").pool.in_flight == 0


# --- asked twice


HEDGED = Recovery(attempts=4, base=0.001, cap=0.01, hedge=True)


def hedging(*scripts: Script, recovery: Recovery = HEDGED, sticky: bool = False) -> tuple[Agent, Pool]:
    """An agent whose calls usually take 20 ms; when one takes longer, another instance is asked too."""
    where = fleet(*scripts)
    settled_in(where)
    return agent(recovery=recovery, read_only=True, concurrency=2, sticky=sticky), where


class Told:
    def __init__(self) -> None:
        self.pieces: list[tuple[str, int]] = []

    def __call__(self, piece: str, said: int) -> None:
        self.pieces.append((piece, said))

    @property
    def text(self) -> str:
        return "".join(piece for piece, _ in self.pieces)


async def test_when_the_first_takes_long_the_second_answers_and_the_first_is_cancelled() -> None:
    slow, fast, told = Script(None), Script("fast"), Told()
    who, where = hedging(slow, fast)
    outcome = await ask(executor(), [(who, where)], emit=told)
    assert (output(outcome), told.pieces) == ("fast", [("fast", 0)])
    assert {(a.instance_id, a.decision, a.hedge, a.error) for a in outcome.attempts} == {
        ("i0", "cancelled", False, None),
        ("i1", "answered", True, None),
    }
    assert outcome.instance_id == "i1"
    await emptied(where)
    assert slow.cancelled == 1
    assert where.instances[0].breaker.state is BreakerState.CLOSED


async def test_when_the_first_answers_after_all_the_second_is_cancelled() -> None:
    first, second = Script(None), Script(None)
    who, where = hedging(first, second)
    task = asyncio.create_task(ask(executor(), [(who, where)]))
    await wait_until(lambda: second.count == 1, "the second was not asked")
    first.may_end.set()
    outcome = await task
    assert (output(outcome), outcome.instance_id) == ("at last", "i0")
    await emptied(where)
    assert second.cancelled == 1


async def test_a_first_that_is_as_fast_as_usual_is_asked_alone() -> None:
    fast, second = Script("fast"), Script("unasked")
    who, where = hedging(fast, second)
    assert tried(await ask(executor(), [(who, where)])) == ["a/i0: answered"]
    assert second.count == 0


@pytest.mark.parametrize("unknown", [True, False])
async def test_nobody_is_asked_twice_unless_it_is_wanted_and_known_how_long_a_call_takes(*, unknown: bool) -> None:
    first, second = Script(None), Script("unasked")
    where = fleet(first, second)
    if not unknown:
        settled_in(where)
    who = agent(recovery=HEDGED if unknown else QUICK, read_only=True, timeout=0.2)
    task = asyncio.create_task(ask(executor(), [(who, where)]))
    await wait_until(lambda: first.count == 1, "it was not called")
    await asyncio.sleep(0.1)
    assert second.count == 0
    first.may_end.set()
    assert output(await task) == "at last"


async def test_the_first_that_speaks_is_heard_and_the_other_is_cancelled_at_once() -> None:
    silent, speaks, told = Script(None, tells=["not ", "heard"]), Script(None, tells=["one ", "two"]), Told()
    silent.may_tell.clear()
    who, where = hedging(silent, speaks)
    task = asyncio.create_task(ask(executor(), [(who, where)], emit=told))
    await wait_until(lambda: told.text == "one two", "the second has not spoken")
    await wait_until(lambda: silent.cancelled == 1, "the first goes on, though nobody will hear it")
    await wait_until(lambda: where.instances[0].in_flight == 0, "its place was not given back")
    speaks.may_end.set()
    outcome = await task
    assert (output(outcome), told.text, outcome.instance_id) == ("one two", "one two", "i1")
    assert told.pieces == [("one ", 0), ("two", 4)]
    await emptied(where)


async def test_one_that_does_not_end_is_not_heard_when_it_speaks_after_the_other() -> None:
    stubborn, speaks, told = Script(None, tells=["not heard"], stubborn=True), Script(None, tells=["one"]), Told()
    stubborn.may_tell.clear()
    who, where = hedging(stubborn, speaks)
    task = asyncio.create_task(ask(executor(), [(who, where)], emit=told))
    await wait_until(lambda: told.text == "one", "the second has not spoken")
    stubborn.may_tell.set()
    stubborn.may_end.set()
    speaks.may_end.set()
    outcome = await task
    assert (output(outcome), told.text) == ("one", "one")
    await emptied(where)


async def test_of_two_whole_answers_one_is_told() -> None:
    first, second, told = Script(None), Script(None), Told()
    who, where = hedging(first, second)
    task = asyncio.create_task(ask(executor(), [(who, where)], emit=told))
    await wait_until(lambda: second.count == 1, "the second was not asked")
    first.may_end.set()
    second.may_end.set()
    assert output(await task) == "at last"
    assert told.pieces == [("at last", 0)]
    await emptied(where)


async def test_when_one_of_two_fails_the_other_goes_on() -> None:
    first, second = Script(None), Script(DOWN)
    who, where = hedging(first, second)
    task = asyncio.create_task(ask(executor(), [(who, where)]))
    await wait_until(lambda: second.count == 1 and where.instances[1].in_flight == 0, "the second did not fail")
    assert not task.done()
    first.may_end.set()
    outcome = await task
    assert tried(outcome) == ["a/i1: reassign", "a/i0: answered"]
    assert where.instances[1].breaker.in_row == 1
    await emptied(where)


async def test_when_both_fail_it_goes_on_as_the_policy_says() -> None:
    first, second, third = Script(None, last=DOWN), Script(DOWN), Script("third")
    who, where = hedging(first, second, third)
    task = asyncio.create_task(ask(executor(), [(who, where)]))
    await wait_until(lambda: second.count == 1 and where.instances[1].in_flight == 0, "the second did not fail")
    first.may_end.set()
    outcome = await task
    assert tried(outcome) == ["a/i1: reassign", "a/i0: reassign", "a/i2: answered"]
    assert [attempt.hedge for attempt in outcome.attempts] == [True, False, False]
    await emptied(where)


async def test_when_both_fail_and_nothing_is_left_the_request_has_failed_once() -> None:
    first, second = Script(None, last=ModelAuthenticationFailed("key")), Script(ModelAuthenticationFailed("key"))
    who, where = hedging(first, second)
    task = asyncio.create_task(ask(executor(), [(who, where)]))
    await wait_until(lambda: second.count == 1 and where.instances[1].in_flight == 0, "the second did not fail")
    first.may_end.set()
    outcome = await task
    assert tried(outcome) == ["a/i1: reassign", "a/i0: abort"]
    assert isinstance(outcome.error, ModelAuthenticationFailed)
    assert where.failures_in_row == 1
    await emptied(where)


async def test_when_both_are_late_there_is_one_end() -> None:
    first, second = Script(None), Script(None)
    who, where = hedging(first, second)
    outcome = await ask(executor(), [(who, where)], seconds=0.2)
    assert isinstance(outcome.error, DeadlineExceeded)
    assert [attempt.error for attempt in outcome.attempts] == ["deadline_exceeded"] * 2
    assert (first.count, second.count) == (1, 1)
    await emptied(where)


async def test_only_so_many_calls_are_made_twice_and_retries_are_left_alone() -> None:
    first, second = Script(None), Script("quick", "unasked")
    who, where = hedging(first, second)
    assert output(await ask(executor(), [(who, where)])) == "quick"
    assert where.budget.calls.other == 0
    where.hedges = where.hedges.retried(BudgetPolicy(), time.perf_counter())
    first, second = Script(None), Script("unasked")
    where.instances[0].backend, where.instances[1].backend = first, second
    where.instances[1].in_flight = who.limits.concurrency
    task = asyncio.create_task(ask(executor(), [(who, where)]))
    await wait_until(lambda: first.count == 1, "it was not called")
    where.instances[1].in_flight = 0
    await asyncio.sleep(0.1)
    first.may_end.set()
    assert tried(await task) == ["a/i0: answered"]
    assert second.count == 0


async def test_a_request_that_nobody_wants_any_more_ends_both() -> None:
    first, second = Script(None), Script(None)
    who, where = hedging(first, second)
    task = asyncio.create_task(ask(executor(), [(who, where)]))
    await wait_until(lambda: second.count == 1, "the second was not asked")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await emptied(where)
    assert (first.cancelled, second.cancelled) == (1, 1)
    assert all(instance.breaker.state is BreakerState.CLOSED for instance in where.instances)


async def test_a_trial_that_another_outruns_is_made_again() -> None:
    trial, fast = Script(DOWN, None, "better"), Script(None, "unasked")
    where = fleet(trial, fast)
    runner = executor(breaker=BreakerPolicy(failures=1, rest=0.0))
    who = agent(recovery=HEDGED, read_only=True)
    broken(where, 1)
    await ask(runner, [(agent(recovery=Recovery(attempts=1)), where)])
    where.instances[1].unwell = None
    settled_in(where)
    fast.steps.insert(0, "fast")
    outcome = await ask(runner, [(who, where)])
    assert (output(outcome), trial.count) == ("fast", 2)
    await emptied(where)
    assert where.instances[0].breaker.state is BreakerState.OPEN
    assert output(await ask(runner, [(who, where)])) == "better"


async def test_the_second_of_many_conversations_is_not_always_the_same_instance() -> None:
    scripts = [Script(None), *(Script("fast") for _ in range(3))]
    who, where = hedging(*scripts, sticky=True)
    runner = executor()
    asked: set[str] = set()
    for number in range(40):
        call = Call(request_id="r", conversation_id=str(number), tenant="t", agent=who, content="x")
        outcome = await runner.execute([(who, where)], call, seconds=10, emit=lambda _, __: None)
        asked |= {attempt.instance_id for attempt in outcome.attempts if attempt.hedge}
        await emptied(where)
    assert len(asked) > 1


# --- all at once


@pytest.mark.parametrize("steps", [{"down": 3}, {"late": 2}, {"limited": 3}, {"down": 1, "late": 1, "limited": 1}])
async def test_whatever_fails_each_request_ends_once_and_every_place_is_given_back(steps: Mapping[str, int]) -> None:
    kinds: Mapping[str, Step] = {"down": DOWN, "late": None, "limited": ModelRateLimited("limit", retry_after=0.01)}
    scripts = [Script(kinds[kind], "better", kinds[kind]) for kind, count in steps.items() for _ in range(count)]
    where, other = fleet(*scripts), fleet(Script("from b"))
    runner = executor(breaker=BreakerPolicy(failures=3, rest=0.02))
    policy = Recovery(attempts=3, base=0.001, cap=0.05)
    line = [(agent("a", policy, read_only=True, timeout=0.05, concurrency=3), where), (agent("b"), other)]
    tasks = [asyncio.create_task(ask(runner, line, seconds=5)) for _ in range(60)]
    for task in tasks[::9]:
        await asyncio.sleep(0.001)
        task.cancel()
    ends = await asyncio.gather(*tasks, return_exceptions=True)
    for end in ends:
        assert isinstance(end, Outcome | NoInstanceAvailable | asyncio.CancelledError), end
        if isinstance(end, Outcome):
            assert (end.reply is None) is (end.error is not None)
            assert all(attempt.decision for attempt in end.attempts)
            assert [a.decision for a in end.attempts].count("answered") == (end.reply is not None)
            assert sum(a.agent_id == "a" and a.instance_id != "" for a in end.attempts) <= 3
    await emptied(where, other)
    await asyncio.sleep(0.05)
    for instance in where.instances:
        others = [other for other in where.instances if other is not instance]
        assert where.take(line[0][0], Dispatching(), time.perf_counter(), tried=others), "it is lost for good"
