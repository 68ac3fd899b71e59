"""A stream told again from any position gives the whole, with nothing doubled."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from agent_orchestra.core.routing import Candidate, Route, Stage
from agent_orchestra.core.stream import (
    END,
    StreamEvent,
    StreamEventType,
    completed,
    delta,
    failed,
    retell,
    routed,
    started,
)

ROUTE = Route(
    candidates=(Candidate(agent_id="a", confidence=0.75), Candidate(agent_id="b", confidence=0.125)),
    stage=Stage.LEXICAL,
    reason="matched the words 'x'",
)
HEAD = (routed(ROUTE, request_id="r", conversation_id="c"), started(agent_id="a", instance_id="i"))
LAST = completed({"output": "whatever"})

outputs = st.text(max_size=40)
positions = st.integers(0, 60) | st.sampled_from([END - 1, END, END + 1])


@st.composite
def streams(draw: st.DrawFn) -> tuple[str, list[StreamEvent]]:
    """An output, and the events that told it live in any pieces."""
    output = draw(outputs)
    cuts = sorted(draw(st.sets(st.integers(1, max(len(output) - 1, 1)), max_size=8)))
    edges = [0, *(cut for cut in cuts if cut < len(output)), len(output)]
    pieces = [output[begin:end] for begin, end in itertools.pairwise(edges) if end > begin]
    deltas: list[StreamEvent] = []
    said = 0
    for piece in pieces:
        deltas.append(delta(piece, said=said))
        said += len(piece)
    return output, [*HEAD, *deltas, LAST]


def text_of(events: list[StreamEvent]) -> str:
    return "".join(str(event.data["text"]) for event in events if event.type is StreamEventType.DELTA)


def others(events: list[StreamEvent]) -> list[StreamEventType]:
    return [event.type for event in events if event.type is not StreamEventType.DELTA]


WHOLE = [StreamEventType.ROUTED, StreamEventType.STARTED, StreamEventType.COMPLETED]


@given(streams(), st.integers(0, 12))
def test_heard_and_retold_make_the_whole_wherever_the_listener_left(
    stream: tuple[str, list[StreamEvent]], heard_events: int
) -> None:
    output, events = stream
    heard = events[:heard_events]
    rest = retell(HEAD, output, LAST, after=heard[-1].position if heard else 0)
    assert text_of([*heard, *rest]) == output
    assert others([*heard, *rest]) == WHOLE


@given(outputs, positions)
def test_any_position_is_resumed_even_within_a_piece(output: str, after: int) -> None:
    rest = retell(HEAD, output, LAST, after=after)
    assert text_of(rest) == output[max(after - 2, 0) :]
    assert others(rest) == [kind for kind, position in zip(WHOLE, (1, 2, END), strict=True) if position > after]
    told = [event.position for event in rest]
    assert told == sorted(set(told))
    assert all(position > after for position in told)


@given(outputs, positions, positions)
def test_a_resume_can_itself_be_resumed(output: str, first: int, second: int) -> None:
    """What is retold after a later position is the end of what is retold after an earlier one."""
    earlier, later = sorted((first, second))
    long = retell(HEAD, output, LAST, after=earlier)
    short = retell(HEAD, output, LAST, after=later)
    assert text_of(long).endswith(text_of(short))
    assert others(long)[len(others(long)) - len(others(short)) :] == others(short)


@given(outputs)
def test_after_the_end_there_is_nothing(output: str) -> None:
    assert retell(HEAD, output, LAST, after=END) == []
    assert retell(HEAD, output, LAST, after=END + 1) == []


@given(outputs, st.integers(0, 60))
def test_a_failed_end_that_told_more_than_was_recorded_doubles_nothing(recorded: str, more: int) -> None:
    last = failed({"code": "interrupted", "detail": "it stopped"})
    rest = retell(HEAD, recorded, last, after=2 + len(recorded) + more)
    assert rest == [last]


@given(streams())
def test_live_positions_grow_and_say_how_much_was_told(stream: tuple[str, list[StreamEvent]]) -> None:
    _, events = stream
    told = 0
    for before, event in itertools.pairwise(events):
        assert event.position > before.position
        if event.type is StreamEventType.DELTA:
            told += len(str(event.data["text"]))
            assert event.position == 2 + told


def test_the_shapes_of_the_events() -> None:
    first, second = HEAD
    assert (first.position, first.type) == (1, StreamEventType.ROUTED)
    assert first.data == {
        "request_id": "r",
        "conversation_id": "c",
        "agent": "a",
        "confidence": 0.75,
        "stage": "lexical",
        "reason": "matched the words 'x'",
        "matched": None,
        "margin": 1.0,
        "alternatives": [{"agent": "b", "confidence": 0.125}],
        "secondary": [],
    }
    assert (second.position, second.type) == (2, StreamEventType.STARTED)
    assert second.data == {"agent": "a", "instance": "i"}
    assert (LAST.position, LAST.type) == (END, StreamEventType.COMPLETED)
    problem = failed({"code": "x"})
    assert (problem.position, problem.type, problem.data) == (END, StreamEventType.FAILED, {"code": "x"})


def test_a_position_is_a_whole_number_in_every_json_reader() -> None:
    assert float(END) == END
    assert int(float(END - 1)) == END - 1
