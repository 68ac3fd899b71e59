"""Which instance takes a call."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from agent_orchestra.core.balancing import Load, round_robin

loads = st.lists(
    st.builds(
        Load,
        instance_id=st.just("i"),
        in_flight=st.integers(0, 4),
        concurrency=st.integers(1, 4),
        rank=st.integers(0, 2),
        paused=st.booleans(),
        ejected=st.booleans(),
    ),
    max_size=8,
)


def best(of: Sequence[Load]) -> set[int]:
    """Those that may be chosen: free, not paused where one is not, and then of the lowest rank."""
    able = {index: (load.paused, load.rank) for index, load in enumerate(of) if load.free}
    return {index for index, merit in able.items() if merit == min(able.values())}


def free(count: int) -> list[Load]:
    return [Load(instance_id=str(number), in_flight=0, concurrency=1) for number in range(count)]


@given(loads, st.integers(0, 100))
def test_the_chosen_one_is_free_and_none_is_chosen_only_when_none_is_free(given_: list[Load], turn: int) -> None:
    index = round_robin(given_, turn)
    if index is None:
        assert not any(load.free for load in given_)
    else:
        chosen = given_[index]
        assert not chosen.ejected
        assert chosen.in_flight < chosen.concurrency


@given(loads.filter(lambda all_: any(load.free for load in all_)), st.integers(0, 100))
def test_one_that_is_paused_or_of_higher_rank_waits_for_those_that_are_not(given_: list[Load], turn: int) -> None:
    index = round_robin(given_, turn)
    assert index is not None
    chosen = given_[index]
    for other in given_:
        if other.free and not other.paused:
            assert not chosen.paused
            assert chosen.rank <= other.rank
        elif other.free and chosen.paused:
            assert chosen.rank <= other.rank


@given(loads.filter(lambda all_: any(load.free for load in all_)), st.integers(0, 100))
def test_it_is_the_first_of_the_best_from_the_turn_on(given_: list[Load], turn: int) -> None:
    index = round_robin(given_, turn)
    assert index is not None
    assert index in best(given_)
    before = {(turn + step) % len(given_) for step in range((index - turn) % len(given_))}
    assert not before & best(given_)


@given(st.integers(1, 8), st.integers(1, 5), st.integers(0, 20))
def test_free_instances_are_served_equally(count: int, rounds: int, turn: int) -> None:
    served: Counter[int] = Counter()
    for _ in range(count * rounds):
        index = round_robin(free(count), turn)
        assert index is not None
        served[index] += 1
        turn = index + 1
    assert served == Counter(dict.fromkeys(range(count), rounds))


@given(loads, st.integers(0, 20))
def test_each_of_the_best_gets_its_turn_among_others_that_are_not(given_: list[Load], turn: int) -> None:
    served: list[int] = []
    for _ in range(3 * len(best(given_))):
        index = round_robin(given_, turn)
        assert index is not None
        served.append(index)
        turn = index + 1
    assert Counter(served) == Counter(dict.fromkeys(best(given_), 3))


def test_a_higher_rank_stands_by() -> None:
    def load(rank: int, *, in_flight: int = 0, paused: bool = False, ejected: bool = False) -> Load:
        return Load(instance_id="i", in_flight=in_flight, concurrency=1, rank=rank, paused=paused, ejected=ejected)

    for turn in range(4):
        assert round_robin([load(0), load(1), load(2)], turn) == 0
        assert round_robin([load(2), load(1), load(0)], turn) == 2
        assert round_robin([load(0, in_flight=1), load(1), load(2)], turn) == 1
        assert round_robin([load(0, paused=True), load(1), load(2)], turn) == 1
        assert round_robin([load(0, ejected=True), load(1, paused=True), load(2)], turn) == 2
        assert round_robin([load(0, paused=True), load(1, paused=True), load(2, in_flight=1)], turn) == 0
        assert round_robin([load(0, ejected=True), load(1, ejected=True)], turn) is None


def test_without_instances_there_is_none() -> None:
    assert round_robin([], 0) is None
    assert round_robin([], 7) is None


def test_an_instance_is_free_below_its_limit_unless_it_is_ejected() -> None:
    assert Load(instance_id="a", in_flight=1, concurrency=2).free
    assert not Load(instance_id="a", in_flight=2, concurrency=2).free
    assert not Load(instance_id="a", in_flight=3, concurrency=2).free
    assert not Load(instance_id="a", in_flight=0, concurrency=2, ejected=True).free
