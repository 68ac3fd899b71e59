"""Plans on real agents: who is asked what, what a failure means for the others, and what one answer is made of."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence

import pytest

from agent_orchestra.adapters.function import wrapped
from agent_orchestra.core.agent import Agent, Limits
from agent_orchestra.core.coordination import Coordination, ResultStatus
from agent_orchestra.core.message import Attachment
from agent_orchestra.core.plan import Member, OnFailure, Plan, made
from agent_orchestra.core.request import Generation, Reply, StopReason, ToolCall, Usage
from agent_orchestra.core.values import JsonObject
from agent_orchestra.errors import (
    AgentFailed,
    ContentRefused,
    CoordinationFailed,
    DeadlineExceeded,
    Fault,
    InvalidInput,
    Unavailable,
)
from agent_orchestra.runtime.coordinator import TEAM, Coordinator, PlanBackend
from agent_orchestra.runtime.executor import Call, Executor, Instance, Pool
from agent_orchestra.runtime.instances import Dispatching, Unobserved
from agent_orchestra.runtime.orchestra import Function
from agent_orchestra.runtime.registry import Registered, Roster, Source
from agent_orchestra.runtime.telemetry import Telemetry
from tests.runtime.parts import Gate, Lines
from tests.services.waiting import wait_until


class Parts:
    """A coordinator over functions, with a real executor."""

    def __init__(self, **functions: Function) -> None:
        self.lines = Lines()
        self.entries: dict[str, Registered] = {}
        self.executor = Executor(policy=Dispatching(), max_output_chars=10_000, observer=Unobserved())
        self.coordinator = Coordinator(
            roster=lambda _: Roster(self.entries),
            executor=self.executor,
            wrap=wrapped,
            telemetry=Telemetry(self.lines, detailed=False),
        )
        for agent_id, function in functions.items():
            self.add(Agent(id=agent_id, kind="function"), wrapped(agent_id, function))

    def add(self, agent: Agent, *instances: Instance) -> None:
        self.entries[agent.id] = Registered(
            tenant="default", agent=agent, source=Source.CODE, pool=Pool(instances), updated_ms=0
        )

    def team(self, agent_id: str, plan: Plan) -> None:
        self.add(Agent(id=agent_id, kind=TEAM), Instance(id="team", backend=PlanBackend(self.coordinator, plan)))

    async def run(
        self, plan: Plan, *, context: JsonObject | None = None, seconds: float | None = 30.0, content: str = "hi"
    ) -> Reply:
        call = Call(
            request_id="r",
            conversation_id="c",
            tenant="default",
            agent=Agent(id="all", kind="plan"),
            content=content,
            attachments=[Attachment(media_type="text/plain", data=b"x")],
            streamed=True,
            context=context or {},
            user_id="ada",
            seconds=seconds,
        )
        told: list[str] = []
        reply = await PlanBackend(self.coordinator, plan).run(call, told.append)
        assert told == [], "what counts is only known at the end"
        return reply


def of(reply: Reply) -> Coordination:
    assert reply.coordination is not None
    return reply.coordination


def statuses(reply: Reply) -> dict[str, str]:
    return {result.id: str(result.status)[:2] for result in of(reply).results}


def says(*given: object) -> Function:
    """A function that gives these, call by call, and the last one ever after."""
    left = [*given]

    def say(_: str) -> object:
        return left.pop(0) if len(left) > 1 else left[0]

    return say


def fails(_: str) -> str:
    raise ContentRefused("too slow")


def ask(content: str, call: Call) -> Mapping[str, object]:
    results = call.context.get("results")
    assert isinstance(results, Mapping)
    return {"saw": sorted(results), "asked": content}


async def test_in_a_sequence_each_is_given_the_results_before_it() -> None:
    calls: list[Call] = []

    def keep(_: str, call: Call) -> str:
        calls.append(call)
        return f"by {call.agent.id}"

    reply = await Parts(a=keep, b=fails, c=keep).run(made(["a", "b", "c"], strategy="sequential"), context={"k": 1})
    assert reply.output == "by a\n\nby c"
    first, second = calls
    assert first.context == {"k": 1, "results": {}}
    assert second.context["k"] == 1
    results = second.context["results"]
    assert isinstance(results, Mapping)
    assert [*results] == ["a", "b"]
    assert results["b"] == {
        "id": "b",
        "agent": "b",
        "status": "FAILED",
        "output": "",
        "value": None,
        "error": "content_refused",
    }
    assert (first.content, first.user_id, first.request_id, len(first.attachments)) == ("hi", "ada", "r", 1)
    assert not first.streamed
    assert first.seconds is not None
    assert 0 < first.seconds <= 30


async def test_in_parallel_all_work_at_once_and_a_failure_is_not_a_failure_of_all() -> None:
    met = asyncio.Barrier(3)

    async def meet(content: str, call: Call) -> str:
        await met.wait()
        return call.agent.id

    async def break_(_: str) -> str:
        await met.wait()
        raise ContentRefused("too slow")

    reply = await Parts(a=meet, b=break_, c=meet).run(made(["a", "b", "c"]))
    assert (reply.output, statuses(reply)) == ("a\n\nc", {"a": "SU", "b": "FA", "c": "SU"})
    told = of(reply)
    assert (told.failed_agents, told.success_rate, told.by) == (("b",), 0.6667, ("a", "c"))
    assert told.results[1].error == "content_refused"
    assert told.results[1].detail == "too slow"
    assert {link.id for link in told.chain} == {"a", "b", "c"}
    assert all(link.offset_ms is not None and link.duration_ms >= 0 for link in told.chain)


async def test_the_time_of_a_member_ends_its_own_call_alone() -> None:
    async def never(_: str) -> str:
        await asyncio.Event().wait()
        return ""

    plan = made([Member(id="slow", agent="slow", timeout=0.05), "quick"])
    reply = await Parts(slow=never, quick=says("done")).run(plan)
    assert (reply.output, statuses(reply)) == ("done", {"slow": "FA", "quick": "SU"})
    assert of(reply).results[0].error == "deadline_exceeded"


async def test_no_member_has_more_time_than_the_request() -> None:
    async def never(_: str) -> str:
        await asyncio.Event().wait()
        return ""

    with pytest.raises(CoordinationFailed, match=r"'a' \(deadline_exceeded\)"):
        await Parts(a=never).run(made(["a"]), seconds=0.05)
    assert (await Parts(a=says("x")).run(made(["a"]), seconds=None)).output == "x"


async def test_one_that_never_ends_leaves_the_others_the_time_to_be_told() -> None:
    async def never(_: str) -> str:
        await asyncio.Event().wait()
        return ""

    async with asyncio.timeout(1.0):
        reply = await Parts(slow=never, quick=says("done")).run(made(["slow", "quick"]), seconds=1.0)
    assert (reply.output, statuses(reply)) == ("done", {"slow": "FA", "quick": "SU"})


async def test_when_the_request_is_cancelled_so_are_all_members() -> None:
    gates = {"a": Gate(), "b": Gate()}
    parts = Parts(**gates)
    task = asyncio.create_task(parts.run(made(["a", "b"])))
    await wait_until(lambda: all(gate.asked("hi") for gate in gates.values()), "the members did not begin")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await wait_until(lambda: all(gate.cancelled == ["hi"] for gate in gates.values()), "a member went on")
    assert all(entry.pool.in_flight == 0 for entry in parts.entries.values())


async def test_a_failure_that_stops_the_plan_cancels_who_still_works() -> None:
    gate = Gate()

    async def break_(_: str) -> str:
        await wait_until(lambda: gate.asked("hi"), "the other did not begin")
        raise AgentFailed("no")

    plan = made(
        [
            "q",
            "g",
            Member(id="x", agent="x", depends_on=("q",), on_failure=OnFailure.STOP),
            Member(id="z", agent="q", depends_on=("x",)),
        ]
    )
    reply = await Parts(q=says("done"), g=gate, x=break_).run(plan)
    assert statuses(reply) == {"q": "SU", "g": "CA", "x": "FA", "z": "SK"}
    assert gate.cancelled == ["hi"]
    cancelled = of(reply).results[1]
    assert (cancelled.status, cancelled.reason) == (ResultStatus.CANCELLED, "the others had made it needless")
    assert cancelled.offset_ms is not None
    assert of(reply).success_rate == 0.5


async def test_with_first_good_the_others_are_called_off() -> None:
    gate = Gate()
    reply = await Parts(a=fails, b=says("good"), c=gate).run(made(["a", "b", "c"], aggregate="first_good"))
    assert (reply.output, statuses(reply)) == ("good", {"a": "FA", "b": "SU", "c": "CA"})


async def test_a_vote_may_be_held_among_calls_of_one_agent() -> None:
    plan = made(["a", "a", "a"], strategy="sequential", aggregate="majority_vote")
    reply = await Parts(a=says("42", "41", "42")).run(plan)
    assert (reply.output, of(reply).agreed, of(reply).by) == ("42", 2, ("a",))
    assert statuses(reply) == {"a": "SU", "a-2": "SU", "a-3": "SU"}


async def test_the_best_is_told_with_all_scores() -> None:
    parts = Parts(a=says({"score": 1}), b=says({"score": 2}), c=says({"none": 0}))
    reply = await parts.run(made(["a", "b", "c"], aggregate="best_score", score="result.value.score"))
    assert reply.value == {"score": 2}
    assert [result.score for result in of(reply).results] == [1.0, 2.0, None]


async def test_a_synthesizer_is_given_all_results() -> None:
    def write(content: str, call: Call) -> str:
        results = call.context["results"]
        assert isinstance(results, Mapping)
        return f"{content}: {sorted(results)}"

    parts = Parts(a=says("one"), b=fails, w=write)
    reply = await parts.run(made(["a", "b"], aggregate="synthesis", synthesizer="w"))
    told = of(reply)
    assert (reply.output, told.by) == ("hi: ['a', 'b']", ("synthesis",))
    assert told.synthesis is not None
    assert (told.synthesis.agent, told.synthesis.status) == ("w", ResultStatus.SUCCEEDED)
    assert [link.agent for link in told.chain][-1] == "w"


async def test_a_synthesizer_that_fails_leaves_the_results_as_they_are() -> None:
    parts = Parts(a=says("one"), b=says("two"), w=fails)
    reply = await parts.run(made(["a", "b"], aggregate="synthesis", synthesizer="w"))
    told = of(reply)
    assert (reply.output, told.by) == ("one\n\ntwo", ("a", "b"))
    assert told.note is not None
    assert "'w' was to make one answer of all and failed (content_refused)" in told.note
    assert told.synthesis is not None
    assert told.synthesis.error == "content_refused"


async def test_usage_is_the_sum_and_the_rest_is_that_of_the_one_whose_word_it_is() -> None:
    written = Generation(provider="p", model="m", stop_reason=StopReason.STOP)

    def reply_of(text: str) -> Reply:
        return Reply(
            output=text,
            usage=Usage(input_tokens=2, output_tokens=1, cost_usd=0.5),
            generation=written,
            tool_calls=(ToolCall(id=text, name="t", arguments={}),),
        )

    parts = Parts(a=says(reply_of("a")), b=says(reply_of("b")))
    reply = await parts.run(made(["a", "b"], aggregate="majority_vote"))
    assert reply.usage == Usage(input_tokens=4, output_tokens=2, cost_usd=1.0)
    assert (reply.generation, [asked.id for asked in reply.tool_calls]) == (written, ["a"])
    assert of(reply).results[1].usage.cost_usd == 0.5
    reply = await parts.run(made(["a", "b"]))
    assert (reply.generation, [asked.id for asked in reply.tool_calls]) == (None, ["a", "b"])


@pytest.mark.parametrize("given", ["'b'", "['b', 'a']", "input == 'hi' ? 'b' : 'a'", "context.who"])
async def test_an_expression_routes(given: str) -> None:
    plan = made(["a", "b"], strategy="conditional", router=given)
    reply = await Parts(a=says("A"), b=says("B")).run(plan, context={"who": "b"})
    assert of(reply).chain[0].id == "b"


def breaks(_: str) -> str:
    raise ZeroDivisionError


async def choose(content: str, call: Call) -> Sequence[str]:
    assert call.context == {"k": 1}
    return ["b", "a"]


async def told_in_pieces(_: str) -> AsyncIterator[str]:
    yield "b"


@pytest.mark.parametrize("router", [says("b"), says(["b"]), choose, told_in_pieces])
async def test_a_function_of_any_form_routes(router: Function) -> None:
    plan = made(["a", "b"], strategy="conditional", router=router)
    reply = await Parts(a=says("A"), b=says("B")).run(plan, context={"k": 1})
    assert of(reply).chain[0].id == "b"


@pytest.mark.parametrize(
    ("router", "why"),
    [
        ("context.nothing", r"the router failed \(expression_failed\): 'context.nothing': there is no 'nothing'"),
        ("'bb'", "the router chose 'bb'; did you mean 'b'?"),
        ("[]", "the router chose nobody"),
        (says(None), "the router chose nobody"),
        (breaks, r"the router failed \(agent_failed\): agent 'router' raised ZeroDivisionError"),
    ],
)
async def test_a_router_that_fails_fails_the_whole_with_its_reason(router: str | Function, why: str) -> None:
    parts = Parts(a=says("A"), b=says("B"))
    with pytest.raises(CoordinationFailed, match=why):
        await parts.run(made(["a", "b"], strategy="conditional", router=router))


async def test_where_nobody_succeeds_one_error_names_each() -> None:
    parts = Parts(a=fails, b=fails)
    parts.add(Agent(id="off", kind="function", enabled=False), wrapped("off", says("x")))
    with pytest.raises(CoordinationFailed) as caught:
        await parts.run(made(["a", "b", "gone", "off"]))
    assert caught.value.data["failed"] == (
        "a: content_refused, b: content_refused, gone: agent_not_found, off: agent_disabled"
    )


async def test_an_agent_that_has_no_place_left_fails_alone() -> None:
    gate = Gate()
    parts = Parts(b=says("B"))
    parts.add(Agent(id="a", kind="function", limits=Limits(concurrency=1)), wrapped("a", gate))
    busy = asyncio.create_task(parts.run(made(["a"]), content="first"))
    await wait_until(lambda: gate.asked("first"), "the first call did not begin")
    reply = await parts.run(made(["a", "b"]))
    assert (reply.output, of(reply).results[0].error) == ("B", "no_instance_available")
    gate.let("first")
    assert (await busy).output == "first!"


async def test_what_no_database_holds_is_not_told_of_a_failure() -> None:
    def odd(_: str) -> str:
        raise AgentFailed("a\0b\ud800")

    reply = await Parts(a=odd, b=says("B")).run(made(["a", "b"]))
    assert of(reply).results[0].detail == "a\ufffdb\ufffd"


async def test_what_an_agents_own_code_raises_is_told_to_the_log() -> None:
    def broken(_: str) -> str:
        raise ValueError("a secret")

    parts = Parts(a=broken, b=says("B"))
    await parts.run(made(["a", "b"]))
    (line,) = parts.lines.of("agent_raised")
    assert (line["agent"], line["error"]) == ("a", "ValueError")
    assert "secret" not in str(parts.lines.all)


async def test_a_team_in_a_team_sees_what_came_before_it() -> None:
    parts = Parts(a=says("A"), b=ask)
    parts.team("inner", made(["b"]))
    reply = await parts.run(made(["a", "inner"], strategy="sequential"))
    assert of(reply).results[1].value == {"saw": ["a"], "asked": "hi"}
    assert of(reply).by == ("a", "inner")
    # Of a caller's own results nothing is lost, and what is no object gives way.
    reply = await Parts(b=ask).run(made(["b"]), context={"results": {"mine": 1}})
    assert reply.value == {"saw": ["mine"], "asked": "hi"}
    reply = await Parts(b=ask).run(made(["b"]), context={"results": 3})
    assert reply.value == {"saw": [], "asked": "hi"}


async def test_a_team_that_contains_itself_is_one_clear_failure() -> None:
    parts = Parts()
    parts.team("x", made(["y"]))
    parts.team("y", made(["x"]))
    with pytest.raises(CoordinationFailed, match="team 'x' contains itself: x -> y -> x"):
        await parts.run(made(["x"]))


async def test_teams_are_not_endlessly_deep_in_each_other() -> None:
    parts = Parts(end=says("end"))
    for number in range(12):
        parts.team(f"t{number}", made([f"t{number + 1}" if number < 11 else "end"]))
    with pytest.raises(CoordinationFailed, match="more than 8 deep"):
        await parts.run(made(["t0"]))
    assert (await parts.run(made(["t5"]))).output == "end"


async def test_the_same_team_may_work_twice_side_by_side_and_again_later() -> None:
    parts = Parts(a=says("A"))
    parts.team("t", made(["a"]))
    for _ in range(2):
        assert (await parts.run(made(["t", "t"]))).output == "A\n\nA"


async def test_agents_that_are_not_there_are_refused_with_the_nearest() -> None:
    parts = Parts(search=fails, write=fails)
    parts.coordinator.check(made(["search", "write"]), "default")
    with pytest.raises(InvalidInput) as caught:
        parts.coordinator.check(made(["search", "serch"], aggregate="synthesis", synthesizer="qqq"), "default")
    assert caught.value.faults == (
        Fault(path="agents.1", message="there is no agent 'serch'; did you mean 'search'?"),
        Fault(path="synthesizer", message="there is no agent 'qqq'; known: search, write"),
    )


async def test_a_router_that_cannot_be_called_is_refused() -> None:
    parts = Parts()
    parts.coordinator.check_router(choose)
    with pytest.raises(InvalidInput, match="router: must take the content, or the content and the call"):
        parts.coordinator.check_router(lambda: "a")


class Broken:
    """Conforms to :class:`Performer`."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    async def execute(self, *_: object, **__: object) -> object:
        raise self.error


@pytest.mark.parametrize(
    ("error", "code"), [(Unavailable("full"), "unavailable"), (DeadlineExceeded("late"), "deadline_exceeded")]
)
async def test_what_refuses_a_call_is_the_failure_of_its_member(error: Exception, code: str) -> None:
    parts = Parts(a=fails)
    coordinator = Coordinator(
        roster=lambda _: Roster(parts.entries),
        executor=Broken(error),  # pyright: ignore[reportArgumentType]  it gives nothing back
        wrap=wrapped,
        telemetry=Telemetry(parts.lines, detailed=False),
    )
    call = Call(request_id="r", conversation_id="c", tenant="default", agent=Agent(id="all", kind="plan"), content="hi")
    told: list[str] = []
    with pytest.raises(CoordinationFailed) as caught:
        await coordinator.run(made(["a"]), call, told.append)
    assert told == []
    assert caught.value.data["failed"] == f"a: {code}"
