"""Suites of labelled requests: what their files may hold, and what is said of those that cannot be read."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from agent_orchestra.errors import InvalidInput
from agent_orchestra.suites import Suite, read

REGISTRY = [
    {"id": "billing", "description": "Invoices and refunds.", "examples": ["refund me", "a wrong invoice", "pay"]},
    {"id": "travel", "description": "Flights and hotels.", "examples": ["book a flight", "a room in Rome"]},
]
FUNCTIONS = [
    {"n": 0, "name": "weather.now", "description": "The weather now."},
    {"n": 1, "name": "weather.now", "description": "The weather at a place."},
    {"n": 2, "name": "shop.buy", "description": "Buys a thing."},
]
TEST = [{"id": "t1", "text": "where is my invoice", "agent": "billing"}, {"id": "t2", "text": "hello", "agent": None}]
TRAIN = [{"text": f"invoice {n}", "agent": "billing"} for n in range(9)] + [{"text": "fly", "agent": "travel"}]


Given = Sequence[Mapping[str, Any]] | str | bytes


@pytest.fixture
def suite_of(tmp_path: Path) -> Callable[..., Suite]:
    """Reads a suite of these contents: objects are written one a line, what is not objects as it stands."""

    def written(name: str, content: Given) -> Path:
        path = tmp_path / name
        if not isinstance(content, str | bytes):
            content = "".join(json.dumps(line) + "\n" for line in content)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def suite_of(
        registry: Given = REGISTRY,
        test: Given = TEST,
        train: Given | None = None,
        *,
        shots: int | None = None,
        label: str = "agent",
        seed: int = 0,
    ) -> Suite:
        return read(
            written("registry.json", registry),
            written("test.jsonl", test),
            None if train is None else written("train.jsonl", train),
            shots=shots,
            label=label,
            seed=seed,
        )

    return suite_of


def fault_of(suite_of: Callable[..., Suite], **contents: Any) -> str:
    with pytest.raises(InvalidInput) as caught:
        suite_of(**contents)
    return caught.value.detail


def test_a_registry_is_a_list_or_an_object_a_line(suite_of: Callable[..., Suite]) -> None:
    assert suite_of(json.dumps(REGISTRY, indent=1)).agents == suite_of(REGISTRY).agents


def test_a_byte_order_mark_and_blank_lines_are_no_matter(suite_of: Callable[..., Suite]) -> None:
    lines = "\n\n".join(json.dumps(line) for line in TEST)
    assert suite_of(test=b"\xef\xbb\xbf" + lines.encode() + b"\r\n").requests == suite_of().requests


def test_fields_that_are_null_or_unknown_are_taken_for_absent(suite_of: Callable[..., Suite]) -> None:
    given = [{"id": "a", "name": None, "capabilities": None, "keywords": None, "examples": None, "owner": "us"}]
    agent = suite_of(given, [{"text": "x", "agent": "a"}]).agents[0]
    assert (agent.name, agent.description, agent.capabilities, agent.examples) == ("a", "", (), ())


def test_without_training_examples_those_of_the_registry_count(suite_of: Callable[..., Suite]) -> None:
    suite = suite_of()
    assert [len(agent.examples) for agent in suite.agents] == [3, 2]
    assert not suite.examples


def test_training_examples_stand_in_place_of_those_of_the_registry(suite_of: Callable[..., Suite]) -> None:
    suite = suite_of(train=TRAIN)
    assert [example.text for example in suite.examples] == [line["text"] for line in TRAIN]
    assert not any(agent.examples for agent in suite.agents)


def test_no_shots_leave_no_example_at_all(suite_of: Callable[..., Suite]) -> None:
    for suite in (suite_of(shots=0), suite_of(train=TRAIN, shots=0)):
        assert not suite.examples
        assert not any(agent.examples for agent in suite.agents)


def test_shots_are_at_most_so_many_of_each_agent(suite_of: Callable[..., Suite]) -> None:
    drawn = [example.agent_id for example in suite_of(train=TRAIN, shots=4).examples]
    assert sorted(map(str, drawn)) == ["billing"] * 4 + ["travel"]


def test_shots_without_training_examples_are_drawn_from_those_of_the_registry(suite_of: Callable[..., Suite]) -> None:
    suite = suite_of(shots=2)
    assert [example.agent_id for example in suite.examples] == ["billing", "billing", "travel", "travel"]
    assert not any(agent.examples for agent in suite.agents)


def test_the_same_seed_draws_the_same_and_fewer_are_part_of_more(suite_of: Callable[..., Suite]) -> None:
    three, four = (suite_of(train=TRAIN, shots=shots, seed=1).examples for shots in (3, 4))
    assert three == suite_of(train=TRAIN, shots=3, seed=1).examples
    assert {e.text for e in three} < {e.text for e in four}
    draws = {tuple(e.text for e in suite_of(train=TRAIN, shots=3, seed=seed).examples) for seed in range(5)}
    assert len(draws) > 1


def test_examples_that_are_nobodys_are_kept_as_such(suite_of: Callable[..., Suite]) -> None:
    assert suite_of(train=[*TRAIN, {"text": "what is love", "agent": None}]).examples[-1].agent_id is None


def test_the_label_is_the_field_that_is_named(suite_of: Callable[..., Suite]) -> None:
    suite = suite_of(test=[{"text": "x", "agent": "somebody", "intent": "travel"}], label="intent")
    assert suite.requests[0].truth == "travel"


def test_requests_without_an_id_have_their_number_for_one(suite_of: Callable[..., Suite]) -> None:
    assert [r.id for r in suite_of(test=[{"text": "x", "agent": None}, *TEST]).requests] == [1, "t1", "t2"]


def test_functions_of_one_name_are_agents_of_their_own_with_one_label(suite_of: Callable[..., Suite]) -> None:
    suite = suite_of(FUNCTIONS, [{"text": "x", "agent": "weather.now"}])
    assert len({agent.id for agent in suite.agents}) == 3
    assert sorted(suite.labels.values()) == ["shop.buy", "weather.now", "weather.now"]


def test_candidates_are_numbers_or_labels(suite_of: Callable[..., Suite]) -> None:
    asked = {"text": "x", "agent": None}
    tests = [asked | {"candidates": given} for given in ([1, 2], ["weather.now"], ["shop.buy", 0], [])]
    suite = suite_of(FUNCTIONS, tests)
    first, second, third = (agent.id for agent in suite.agents)
    assert [r.among for r in suite.requests] == [{second, third}, {first, second}, {first, third}, frozenset()]


def test_candidates_go_by_the_number_that_a_function_has(suite_of: Callable[..., Suite]) -> None:
    suite = suite_of(FUNCTIONS[::-1], [{"text": "x", "agent": None, "candidates": [2]}])
    assert {suite.labels[agent_id] for agent_id in suite.requests[0].among or ()} == {"shop.buy"}


def test_a_request_of_a_conversation_has_its_previous_agent_and_last_turn(suite_of: Callable[..., Suite]) -> None:
    asked = {"text": "yes", "agent": "travel"}
    tests = [asked | {"previous_agent": "travel", "system": "By train?"}, asked | {"previous_agent": None}, asked]
    there, begun, alone = suite_of(test=tests).requests
    assert there.turn is not None
    assert (there.previous, there.turn.previous, there.turn.last) == ("travel", "travel", "By train?")
    assert (begun.turn, alone.turn) == (None, None)


@pytest.mark.parametrize("file", ["registry", "test", "train"])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "is empty"),
        ("[]", "is empty"),
        (" \n\n", "is empty"),
        (b"\xff\xfe{}", "is not in UTF-8"),
        ("{'id': 1}", ":1: is not JSON"),
        ('[{"id": "a"},\n {"id"]', ":2: is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("7", ":1: is not a JSON object"),
        ("[7]", "entry 1: is not a JSON object"),
        ("null\n", ":1: is not a JSON object"),
    ],
    ids=["nothing", "no entry", "blank", "bytes", "quotes", "a bracket", "depth", "a number", "a list", "null"],
)
def test_a_file_that_cannot_be_read_is_named_with_the_line(
    suite_of: Callable[..., Suite], file: str, content: str | bytes, said: str
) -> None:
    detail = fault_of(suite_of, **{file: content})
    assert f"{file}.json" in detail
    assert said in detail


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"nowhere\.json: cannot be read: No such file"):
        read(tmp_path / "nowhere.json", tmp_path / "test.jsonl")


@pytest.mark.parametrize(
    ("contents", "said"),
    [
        ({"registry": [{"description": "x"}]}, "registry.json:1: has neither 'id' nor 'name'"),
        ({"registry": [REGISTRY[0], REGISTRY[0]]}, "registry.json:2: there is an agent 'billing' already"),
        ({"registry": [{"id": 7}]}, "registry.json:1: id: Input should be a valid string"),
        ({"registry": [{"id": "a", "examples": "one"}]}, "registry.json:1: examples: Input should be a valid tuple"),
        ({"test": [TEST[0], {"agent": "billing"}]}, "test.jsonl:2: text: Field required"),
        ({"test": [{"text": None, "agent": None}]}, "test.jsonl:1: text: Input should be a valid string"),
        ({"test": '{"text": "\\ud800", "agent": null}'}, "test.jsonl:1: text: has a NUL, or half of a surrogate"),
        ({"test": [TEST[0], {"text": "x"}]}, "test.jsonl:2: has no field 'agent'"),
        ({"label": "intent"}, "test.jsonl:1: has no field 'intent'"),
        ({"label": "id"}, "test.jsonl:1: the registry has no agent 't1', 't2'"),
        ({"train": [{"text": "x"}]}, "train.jsonl:1: has no field 'agent'"),
        ({"train": [{"text": "x", "agent": "sales"}]}, "train.jsonl:1: the registry has no agent 'sales'"),
        ({"test": [{"text": "x", "agent": ["billing"]}]}, "test.jsonl:1: label: Input should be a valid string"),
        ({"test": [TEST[0] | {"previous_agent": "sales"}]}, "test.jsonl:1: the registry has no agent 'sales'"),
        ({"test": [TEST[0] | {"candidates": [2]}]}, "test.jsonl:1: the registry, of 2 agents, has no candidate 2"),
        ({"test": [TEST[0] | {"candidates": [-1]}]}, "test.jsonl:1: the registry, of 2 agents, has no candidate -1"),
        ({"test": [TEST[0] | {"candidates": ["x"]}]}, "test.jsonl:1: the registry, of 2 agents, has no candidate 'x'"),
        ({"test": [TEST[0] | {"candidates": [True]}]}, "test.jsonl:1: candidates.0"),
        ({"shots": -1}, "the number of shots is -1; it must be 0 or more"),
    ],
)
def test_what_is_wrong_is_said_with_the_file_and_the_line(
    suite_of: Callable[..., Suite], contents: Mapping[str, Any], said: str
) -> None:
    assert said in fault_of(suite_of, **contents)


def test_of_many_unknown_agents_a_few_are_named(suite_of: Callable[..., Suite]) -> None:
    detail = fault_of(suite_of, test=[{"text": "x", "agent": f"a{n}"} for n in range(12)])
    assert detail.endswith("test.jsonl:1: the registry has no agent 'a0', 'a1', 'a2', 'a3', 'a4' and 7 more")
