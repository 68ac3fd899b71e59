"""Which instance takes a call."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_orchestra.core import balancing
from agent_orchestra.core.balancing import Algorithm


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What is known of an instance. Conforms to :class:`Load`; ``usable`` is what whoever asks has found out."""

    id: str = "i"
    weight: float = 1.0
    in_flight: int = 0
    mean_seconds: float = 0.0
    success_rate: float = 1.0
    healthy: bool = True
    peak: float = 0.0
    usable: bool = True

    def peak_seconds(self, now: float) -> float:
        """Halved every second."""
        return self.peak / 2**now


def usable(load: Known) -> bool:
    return load.usable


def named(*loads: Known) -> list[Known]:
    return [replace(load, id=f"i{number}") for number, load in enumerate(loads)]


known = st.builds(
    Known,
    weight=st.floats(0.01, 1_000),
    in_flight=st.integers(0, 50),
    mean_seconds=st.floats(0, 30),
    success_rate=st.floats(0, 1),
    healthy=st.booleans(),
    peak=st.floats(0, 30),
    usable=st.booleans(),
)
fleets = st.lists(known, max_size=8).map(lambda loads: named(*loads))
turns = st.integers(0, 100)
chances = st.floats(0, 1, exclude_max=True)

#: Chooses among the loads; the number is the turn, or the seed of the chances.
Choose = Callable[[Sequence[Known], int], int | None]


def by_weight(loads: Sequence[Known], _: int) -> int | None:
    return balancing.weighted_round_robin(loads, usable, [0.0] * len(loads))[0]


def by_chance(loads: Sequence[Known], seed: int) -> int | None:
    return balancing.peak_ewma(loads, usable, random.Random(seed).random, 0.0)


def by_key(loads: Sequence[Known], turn: int) -> int | None:
    return balancing.sticky(loads, usable, str(turn))


CHOOSE: dict[Algorithm, Choose] = {
    Algorithm.ROUND_ROBIN: lambda loads, turn: balancing.round_robin(loads, usable, turn),
    Algorithm.WEIGHTED_ROUND_ROBIN: by_weight,
    Algorithm.LEAST_CONNECTIONS: lambda loads, turn: balancing.least_connections(loads, usable, turn),
    Algorithm.WEIGHTED: lambda loads, turn: balancing.weighted(loads, usable, turn),
    Algorithm.PEAK_EWMA: by_chance,
}


def test_each_algorithm_is_a_function_of_its_name() -> None:
    assert set(CHOOSE) == set(Algorithm)
    assert {algorithm.value for algorithm in Algorithm} <= set(balancing.__all__)


# --- all of them


@pytest.mark.parametrize("choose", [*CHOOSE.values(), by_key])
@given(loads=fleets, turn=turns)
def test_the_chosen_one_is_usable_and_none_is_chosen_only_where_none_is(
    choose: Choose, loads: list[Known], turn: int
) -> None:
    index = choose(loads, turn)
    if index is None:
        assert not any(load.usable for load in loads)
    else:
        assert loads[index].usable


@pytest.mark.parametrize("choose", CHOOSE.values())
@given(loads=fleets, turn=turns)
def test_what_is_known_of_those_that_are_not_usable_changes_nothing(
    choose: Choose, loads: list[Known], turn: int
) -> None:
    tempting = [load if load.usable else Known(id=load.id, weight=1_000, usable=False) for load in loads]
    assert choose(loads, turn) == choose(tempting, turn)


# --- round robin


@given(fleets.filter(lambda loads: any(map(usable, loads))), turns)
def test_it_is_the_first_usable_one_from_the_turn_on(loads: list[Known], turn: int) -> None:
    index = balancing.round_robin(loads, usable, turn)
    assert index is not None
    before = [(turn + step) % len(loads) for step in range((index - turn) % len(loads))]
    assert not any(loads[one].usable for one in before)


@given(fleets, st.integers(1, 5), turns)
def test_usable_ones_are_served_equally_in_turns(loads: list[Known], rounds: int, turn: int) -> None:
    able = [number for number, load in enumerate(loads) if load.usable]
    served: list[int] = []
    for _ in range(len(able) * rounds):
        index = balancing.round_robin(loads, usable, turn)
        assert index is not None
        served.append(index)
        turn = index + 1
    assert Counter(served) == Counter(dict.fromkeys(able, rounds))


# --- weighted round robin


def in_turns(loads: Sequence[Known], count: int) -> list[int]:
    credits_: Sequence[float] = [0.0] * len(loads)
    served: list[int] = []
    for _ in range(count):
        index, credits_ = balancing.weighted_round_robin(loads, usable, credits_)
        assert index is not None
        served.append(index)
    return served


def test_turns_by_weight_are_interleaved_as_in_nginx() -> None:
    loads = named(Known(weight=5), Known(weight=1), Known(weight=1))
    assert "".join("abc"[index] for index in in_turns(loads, 14)) == "aabacaa" * 2


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(1, 3))
def test_a_whole_round_serves_each_exactly_by_its_weight(weights: list[int], rounds: int) -> None:
    served = Counter(in_turns(named(*(Known(weight=weight) for weight in weights)), sum(weights) * rounds))
    assert served == Counter({index: weight * rounds for index, weight in enumerate(weights)})


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=6), st.integers(1, 200))
def test_at_no_moment_is_anybody_far_from_its_share(weights: list[float], count: int) -> None:
    """By less than one call for each other instance, however many there were."""
    served = Counter(in_turns(named(*(Known(weight=weight) for weight in weights)), count))
    for index, weight in enumerate(weights):
        assert abs(served[index] - count * weight / sum(weights)) < len(weights)


@given(fleets, st.lists(st.floats(-100, 100), min_size=8, max_size=8))
def test_credits_of_the_usable_are_only_moved_and_those_of_others_stay(loads: list[Known], before: list[float]) -> None:
    credits_ = before[: len(loads)]
    _, after = balancing.weighted_round_robin(loads, usable, credits_)
    assert sum(after) == pytest.approx(sum(credits_), abs=1e-6)
    assert [after[n] for n, load in enumerate(loads) if not load.usable] == [
        credits_[n] for n, load in enumerate(loads) if not load.usable
    ]


@given(st.lists(st.lists(st.booleans(), min_size=4, max_size=4).filter(any), min_size=1, max_size=300))
def test_nobody_saves_up_turns_while_others_come_and_go(rounds: list[list[bool]]) -> None:
    credits_: Sequence[float] = [0.0] * 4
    for able in rounds:
        loads = named(*(Known(usable=one) for one in able))
        _, credits_ = balancing.weighted_round_robin(loads, usable, credits_)
        assert all(abs(credit) <= 2 * 4 for credit in credits_)


# --- the others


@given(fleets, turns)
def test_no_usable_one_has_fewer_calls_for_its_weight(loads: list[Known], turn: int) -> None:
    index = balancing.least_connections(loads, usable, turn)
    if index is not None:
        share = [(load.in_flight + 1) / load.weight for load in loads]
        assert share[index] == min(share[n] for n, load in enumerate(loads) if load.usable)


@pytest.mark.parametrize("choose", [CHOOSE[Algorithm.LEAST_CONNECTIONS], CHOOSE[Algorithm.WEIGHTED]])
@pytest.mark.parametrize("turn", range(7))
def test_of_equals_the_first_from_the_turn_on_is_chosen(choose: Choose, turn: int) -> None:
    assert choose(named(Known(), Known(), Known()), turn) == turn % 3
    assert choose(named(Known(usable=False), Known(), Known(in_flight=1)), turn) == 1


@pytest.mark.parametrize(
    ("load", "expected"),
    [
        (Known(), 1.0),
        (Known(mean_seconds=5.0), 0.85),
        (Known(mean_seconds=10.0), 0.7),
        (Known(mean_seconds=99.0), 0.7),
        (Known(success_rate=0.5), 0.85),
        (Known(success_rate=0.0), 0.7),
        (Known(in_flight=5), 0.9),
        (Known(in_flight=10), 0.8),
        (Known(in_flight=99), 0.8),
        (Known(healthy=False), 0.8),
        (Known(mean_seconds=2.0, success_rate=0.9, in_flight=3, healthy=True), 0.24 + 0.27 + 0.14 + 0.2),
        (Known(mean_seconds=20.0, success_rate=0.0, in_flight=20, healthy=False), 0.0),
    ],
)
def test_the_score_of_an_instance(load: Known, expected: float) -> None:
    assert balancing.score(load) == pytest.approx(expected)


@given(known)
def test_the_score_is_that_of_the_formula(load: Known) -> None:
    speed = 1 - min(load.mean_seconds / 10, 1)
    calls = 1 - min(load.in_flight / 10, 1)
    expected = 0.3 * speed + 0.3 * load.success_rate + 0.2 * calls + 0.2 * (1 if load.healthy else 0)
    assert balancing.score(load) == pytest.approx(expected)
    assert 0 <= balancing.score(load) <= 1 + 1e-9


@given(fleets, turns)
def test_no_usable_one_has_a_higher_score_for_its_weight(loads: list[Known], turn: int) -> None:
    index = balancing.weighted(loads, usable, turn)
    if index is not None:
        scores = [balancing.score(load) * load.weight for load in loads]
        assert scores[index] == max(scores[n] for n, load in enumerate(loads) if load.usable)


# --- two choices


def cost(load: Known) -> float:
    """As Finagle has it; what was never called costs next to nothing."""
    return max(load.peak, 1e-4) * (load.in_flight + 1) / load.weight


@given(fleets, st.lists(chances, min_size=20, max_size=20))
def test_of_the_two_that_are_drawn_the_dearer_one_is_never_chosen(loads: list[Known], given_: list[float]) -> None:
    """The dearest of all loses every pair: it is chosen only where it is alone, or where another is as dear."""
    index = balancing.peak_ewma(loads, usable, itertools.cycle(given_).__next__, 0.0)
    able = [load for load in loads if load.usable]
    if index is not None and len(able) > 1:
        costs = sorted(map(cost, able))
        assert cost(loads[index]) < costs[-1] or costs[-1] == costs[-2]


@given(st.lists(known.map(lambda load: replace(load, usable=True)), min_size=2, max_size=8), chances, chances)
def test_two_others_are_drawn_and_the_cheaper_is_taken(loads: list[Known], one: float, other: float) -> None:
    index = balancing.peak_ewma(loads, usable, iter([one, other]).__next__, 0.0)
    first = int(one * len(loads))
    others = [n for n in range(len(loads)) if n != first and cost(loads[n]) >= cost(loads[first])]
    assert index is not None
    assert (index == first and others) or cost(loads[index]) <= cost(loads[first])


@given(st.integers(2, 8), st.integers(0, 2**32))
def test_each_can_be_drawn_first_or_second(count: int, seed: int) -> None:
    loads = named(*(Known(in_flight=99 if number else 0) for number in range(count)))
    chance = random.Random(seed).random
    served = Counter(balancing.peak_ewma(loads, usable, chance, 0.0) for _ in range(400))
    assert set(served) == (set(range(count)) if count > 2 else {0})


@given(st.integers(1, 8), st.integers(0, 7), st.integers(0, 2**32))
def test_the_only_usable_one_is_found_whatever_is_drawn(count: int, which: int, seed: int) -> None:
    loads = named(*(Known(usable=number == which % count) for number in range(count)))
    assert by_chance(loads, seed) == which % count


def test_a_slow_instance_gets_fewer_calls_than_round_robin_gives_it() -> None:
    loads = named(*(Known(peak=seconds) for seconds in (0.01, 0.01, 0.05, 0.2)))
    chance = random.Random(7).random
    served = Counter(balancing.peak_ewma(loads, usable, chance, 0.0) for _ in range(4_000))
    assert served[3] == 0
    assert served[2] < 4_000 * 0.25
    assert min(served[0], served[1]) > 4_000 * 0.3


def test_a_peak_counts_for_what_it_is_now() -> None:
    loads = named(Known(peak=8.0), Known(peak=0.02, in_flight=9))
    chance = random.Random(7).random
    assert {balancing.peak_ewma(loads, usable, chance, 0.0) for _ in range(20)} == {1}
    assert {balancing.peak_ewma(loads, usable, chance, 5.0) for _ in range(20)} == {1}
    assert {balancing.peak_ewma(loads, usable, chance, 20.0) for _ in range(20)} == {0}


# --- sticky

keys = st.text(max_size=40)
ids = st.lists(st.text(max_size=20), min_size=1, max_size=8, unique=True)


@given(ids, keys, st.data())
def test_a_key_stays_where_it_is_whatever_comes_and_goes_besides(
    names: list[str], key: str, data: st.DataObject
) -> None:
    loads = [Known(id=name) for name in names]
    index = balancing.sticky(loads, usable, key)
    assert index is not None
    mine = names[index]
    gone = data.draw(st.sets(st.sampled_from(names)).map(lambda some: some - {mine}))
    left = data.draw(st.permutations([name for name in names if name not in gone]))
    again = balancing.sticky([Known(id=name) for name in left], usable, key)
    assert again is not None
    assert left[again] == mine
    ejected = [Known(id=name, usable=name not in gone, in_flight=9, peak=9) for name in names]
    assert balancing.sticky(ejected, usable, key) == index


@given(st.integers(2, 8), st.integers(0, 7))
def test_only_the_keys_of_the_one_that_went_are_moved(count: int, gone: int) -> None:
    loads = [Known(id=f"i{number}") for number in range(count)]
    left = [load if number != gone % count else replace(load, usable=False) for number, load in enumerate(loads)]
    for number in range(200):
        before, after = (balancing.sticky(fleet, usable, f"c{number}") for fleet in (loads, left))
        assert (before == after) is (before != gone % count)


@pytest.mark.parametrize(
    "names",
    [
        ["a", "b"],
        ["i0", "i1", "i2"],
        ["eu", "us", "ap"],
        [f"http://{host}:8080" for host in "abcde"],
        [f"agents.sales:answer_{number}" for number in range(7)],
    ],
    ids=len,
)
def test_keys_are_spread_evenly(names: Sequence[str]) -> None:
    loads = [Known(id=name) for name in names]
    served = Counter(balancing.sticky(loads, usable, f"conversation-{number}") for number in range(4_000))
    fair = 4_000 / len(names)
    assert len(served) == len(names)
    assert all(0.8 * fair < count < 1.2 * fair for count in served.values()), served
