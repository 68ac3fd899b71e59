"""Schemas that are none are refused when an agent is defined, and outputs that do not match one when they come."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_orchestra import Agent, Orchestra
from agent_orchestra.adapters.models.schemas import compiled, faults_in_schema, invalid, matching, mismatch
from agent_orchestra.bootstrap import open_from_settings
from agent_orchestra.core.prompt import Prompt, Wrote
from agent_orchestra.core.values import JsonObject
from agent_orchestra.errors import InvalidAgent, OutputInvalid
from agent_orchestra.settings import load_settings
from tests.adapters.models.recorded import KEY, open_models
from tests.services.replay import ReplayServer
from tests.services.replay import read_case as recorded

#: The first test of a process imports the SDKs of the vendors, which takes seconds.
pytestmark = pytest.mark.timeout(120)

PERSON: Final[JsonObject] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1},
        "age": {"type": "integer", "minimum": 0},
        "friends": {"type": "array", "items": {"$ref": "#/$defs/name"}},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
    "$defs": {"name": {"type": "string"}},
}
#: It says of a name that it is what it says of a name.
ENDLESS: Final[JsonObject] = {
    "type": "object",
    "properties": {"name": {"$ref": "#/$defs/name"}},
    "$defs": {"name": {"$ref": "#/$defs/name"}},
}


def faults(schema: Any) -> list[tuple[str, str]]:
    return [(fault.path, fault.message) for fault in faults_in_schema(schema, "settings.output_schema")]


# --- whether it is a schema


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object"},
        PERSON,
        {"type": "object", "properties": {"anything": True, "nothing": False}},
        {"type": "object", "properties": {"inner": {"$ref": "#"}}},
        {"type": "object", "properties": {"$ref": {"type": "string"}}},
        {"type": "object", "properties": {"a": {"$ref": "#/properties/b~1c"}, "b/c": {"type": "null"}}},
        {"type": "object", "properties": {"a": {"$ref": "#/$defs/b%20c"}}, "$defs": {"b c": {"type": "null"}}},
        {"type": "object", "properties": {"a": {"$ref": "#/allOf/0"}}, "allOf": [{"minProperties": 1}]},
        {"type": "object", "title": "A", "description": "B", "x-of-ones-own": {"c": [1]}},
        {"type": "object", "$schema": "https://json-schema.org/draft/2020-12/schema"},
    ],
)
def test_a_schema_has_no_faults(schema: JsonObject) -> None:
    assert faults(schema) == []


@pytest.mark.parametrize("schema", [None, True, 7, "object", [], [{"type": "object"}]])
def test_what_is_no_object_is_no_schema_of_one(schema: object) -> None:
    assert faults(schema) == [("settings.output_schema", "must be a JSON Schema of type object")]


@pytest.mark.parametrize(
    ("schema", "place", "words"),
    [
        ({}, "type", "must be 'object'"),
        ({"type": "string"}, "type", "must be 'object'"),
        ({"type": ["object", "null"]}, "type", "must be 'object'"),
        ({"type": "objekt"}, "type", "objekt"),
        ({"type": "object", "properties": []}, "properties", "object"),
        ({"type": "object", "properties": {"a": {"type": 7}}}, "properties.a.type", "7"),
        ({"type": "object", "properties": {"a": "string"}}, "properties.a", "string"),
        ({"type": "object", "required": "a"}, "required", "array"),
        ({"type": "object", "minProperties": -1}, "minProperties", "-1"),
        ({"type": "object", "properties": {"a": {"pattern": "["}}}, "properties.a.pattern", "regex"),
        ({"type": "object", "properties": {"a": {"enum": 1}}}, "properties.a.enum", "array"),
    ],
)
def test_what_is_wrong_with_a_schema_is_told_with_its_place(schema: JsonObject, place: str, words: str) -> None:
    [(path, message)] = faults(schema)
    assert path == f"settings.output_schema.{place}"
    assert words in message


@pytest.mark.parametrize(
    "reference",
    [
        "#/$defs/missing",
        "#/properties/a/b",
        "#/allOf/1",
        "#/allOf/-1",
        "#/allOf/x",
        "#missing",
        "missing",
        # Nothing is fetched.
        "https://example.com/schema",
        "http://127.0.0.1:1/schema",
        "file:///etc/hostname",
        "//example.com/schema",
    ],
)
def test_a_schema_refers_to_nothing_outside_of_it(reference: str) -> None:
    schema: JsonObject = {"type": "object", "properties": {"a": {"items": {"$ref": reference}}}, "allOf": [{}]}
    [(path, message)] = faults(schema)
    assert path == "settings.output_schema"
    assert message.startswith("is no JSON Schema: ")


def test_a_long_fault_is_cut() -> None:
    [(_, message)] = faults({"type": "x" * 10_000})
    assert len(message) < 300


# --- whether a value matches


@pytest.mark.parametrize(
    ("value", "place", "words"),
    [
        ({"name": "Ann", "age": 7}, None, ""),
        ({"name": "Ann", "age": 7.0, "friends": ["Bob"]}, None, ""),
        ({"name": "Ann"}, "", "age"),
        ({"name": "", "age": 7}, "name", "1"),
        ({"name": "Ann", "age": "7"}, "age", "integer"),
        ({"name": "Ann", "age": True}, "age", "integer"),
        ({"name": "Ann", "age": -1}, "age", "0"),
        ({"name": "Ann", "age": 7, "friends": ["Bob", 8]}, "friends/1", "string"),
        ({"name": "Ann", "age": 7, "more": 1}, "", "more"),
        ([], "", "object"),
        (None, "", "object"),
        ("text", "", "object"),
    ],
)
def test_a_value_matches_or_it_is_said_where_it_does_not(value: Any, place: str | None, words: str) -> None:
    found = mismatch(value, compiled(PERSON))
    output = json.dumps(value)
    if place is None:
        assert found is None
        assert matching(output, compiled(PERSON), provider="openai", model="gpt") == value
        return
    assert found is not None
    assert found.startswith(f"at '{place}': " if place else "")
    assert words in found
    with pytest.raises(OutputInvalid) as caught:
        matching(output, compiled(PERSON), provider="openai", model="gpt")
    assert dict(caught.value.data) == {"provider": "openai", "model": "gpt", "output": output}
    assert caught.value.detail == f"the output of 'gpt' does not match its schema: {found}"
    assert not caught.value.retryable
    assert not caught.value.elsewhere


def test_no_pattern_takes_for_ever() -> None:
    schema: JsonObject = {"type": "object", "properties": {"a": {"pattern": "^(a+)+$"}}}
    assert mismatch({"a": "a" * 10_000}, compiled(schema)) is None
    found = mismatch({"a": "a" * 10_000 + "!"}, compiled(schema))
    assert found is not None
    assert len(found) < 1_000


@pytest.mark.parametrize(
    "output",
    [
        "",
        " ",
        "no JSON",
        '{"name": "Ann", "age": 7',
        '```json\n{"name": "Ann", "age": 7}\n```',
        '{"name": "Ann", "age": NaN}',
        '{"name": "Ann", "age": -Infinity}',
        '{"name": "Ann"} and more',
        '{"age": ' + "9" * 5_000 + "}",
        "[" * 100_000,
    ],
    ids=lambda output: output[:30],
)
def test_an_output_that_is_no_json_does_not_match(output: str) -> None:
    with pytest.raises(OutputInvalid, match="it is no JSON") as caught:
        matching(output, compiled(PERSON), provider="openai", model="gpt")
    assert caught.value.data["output"] == output[:4_000]


def test_a_schema_that_refers_to_itself_comes_to_an_end() -> None:
    nested: JsonObject = {"type": "object", "properties": {"inner": {"$ref": "#"}}}
    assert mismatch({"inner": {"inner": {}}}, compiled(nested)) is None
    found = mismatch({"inner": {"inner": 1}}, compiled(nested))
    assert found is not None
    assert found.startswith("at 'inner/inner': ")
    # One that says no more than that it is itself says nothing.
    assert mismatch({}, compiled(ENDLESS)) is None
    mismatch({"name": "Ann"}, compiled(ENDLESS))


JSON: Final = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)


@given(value=JSON)
def test_what_matches_is_what_was_said(value: Any) -> None:
    anything: JsonObject = {}
    assert matching(json.dumps(value), compiled(anything), provider="openai", model="gpt") == value


@given(output=st.text())
def test_no_output_is_too_strange(output: str) -> None:
    try:
        value = matching(output, compiled(PERSON), provider="openai", model="gpt")
    except OutputInvalid as error:
        assert error.data["output"] == output  # noqa: PT017  any may be raised, or none
    else:
        assert mismatch(value, compiled(PERSON)) is None


def test_of_an_output_and_of_what_is_wrong_with_it_as_much_is_kept_as_is_needed() -> None:
    error = invalid("x" * 10_000, "y" * 10_000, provider="openai", model="gpt")
    assert error.data["output"] == "x" * 4_000
    assert len(error.detail) < 500


# --- of whole models and agents


@pytest.fixture
async def server() -> AsyncGenerator[ReplayServer]:
    async with ReplayServer() as opened:
        yield opened


@pytest.fixture
async def orchestra(server: ReplayServer, tmp_path: Path) -> AsyncGenerator[Orchestra]:
    nothing = tmp_path / "nothing.yaml"
    nothing.touch()
    database = {"url": f"sqlite:///{tmp_path / 'orchestra.db'}"}
    openai = {"api_key": KEY, "base_url": f"{server.url}/v1"}
    async with open_from_settings(load_settings(nothing, database=database, providers={"openai": openai})) as opened:
        yield opened


def says(server: ReplayServer, text: str) -> None:
    """The next answer of the model."""
    whole: dict[str, Any] = dict(recorded("openai-chat/structured").response["body"])
    choice = {**whole["choices"][0], "message": {"role": "assistant", "content": text}}
    server.answer(200, {**whole, "choices": [choice]})


@pytest.mark.usefixtures("model_requests")
async def test_a_model_that_is_asked_once_gives_what_matches_or_an_error(server: ReplayServer) -> None:
    prompt = Prompt(turns=[Wrote(content="Who?")], output_schema=PERSON)
    async with open_models(server.url) as models:
        says(server, '{"name": "Ann", "age": 7}')
        reply = await models.ask("openai:gpt-4o", prompt)
        assert reply.value == {"name": "Ann", "age": 7}
        for output in ('{"name": "Ann"}', "Ann, who is 7.", "[" * 100_000):
            says(server, output)
            with pytest.raises(OutputInvalid) as caught:
                await models.ask("openai:gpt-4o", prompt)
            assert caught.value.data["output"] == output[:4_000]
    assert len(server.requests) == 4


@pytest.mark.usefixtures("model_requests")
async def test_an_agent_asks_again_as_often_as_it_may(server: ReplayServer, orchestra: Orchestra) -> None:
    settings: JsonObject = {"model": "openai:gpt-4o", "output_schema": PERSON, "output_retries": 2}
    await orchestra.register_agent(Agent(id="who", kind="prompt", settings=settings))
    for output in ("Ann, who is 7.", '{"name": "Ann"}', '{"name": "Ann", "age": 7}'):
        says(server, output)
    answer = await orchestra.process_request("Who?", agent_id="who")
    assert answer.value == {"name": "Ann", "age": 7}
    assert json.loads(answer.output) == answer.value
    # It is told what was wrong, and all that was asked is counted.
    assert "is a required property" in str(server.requests[2].body["messages"])
    assert answer.usage.input_tokens == 3 * recorded("openai-chat/structured").expect["usage"]["input"]

    for output in ("?", "{}", '{"name": "Ann"}'):
        says(server, output)
    with pytest.raises(OutputInvalid) as caught:
        await orchestra.process_request("Who?", agent_id="who")
    assert caught.value.data["output"] == '{"name": "Ann"}'
    assert "is a required property" in caught.value.detail
    assert server.unused == 0
    assert len(server.requests) == 6


@pytest.mark.parametrize("retries", [0, 1])
@pytest.mark.usefixtures("model_requests")
async def test_an_agent_never_asks_more_often_than_it_may(
    retries: int, server: ReplayServer, orchestra: Orchestra
) -> None:
    settings: JsonObject = {"model": "openai:gpt-4o", "output_schema": PERSON, "output_retries": retries}
    await orchestra.register_agent(Agent(id="who", kind="prompt", settings=settings))
    outputs = ("?", "{}", '{"name": "Ann", "age": NaN}', "[" * 100_000)
    for output in outputs:
        for _ in range(retries + 1):
            says(server, output)
        with pytest.raises(OutputInvalid) as caught:
            await orchestra.process_request("Who?", agent_id="who")
        assert caught.value.data["output"] == output[:4_000]
    assert server.unused == 0
    assert len(server.requests) == len(outputs) * (retries + 1)


async def test_an_agent_with_a_schema_that_is_none_is_refused_with_all_that_is_wrong(orchestra: Orchestra) -> None:
    settings: JsonObject = {
        "model": "openai:gpt-4o",
        "output_schema": {"type": "object", "properties": {"a": {"$ref": "#/b"}}},
        "tools": [{"function": "json:dumps", "parameters": {"type": "string"}}],
    }
    with pytest.raises(InvalidAgent) as caught:
        await orchestra.register_agent(Agent(id="who", kind="prompt", settings=settings))
    assert {fault.path for fault in caught.value.faults} == {
        "settings.tools.0.parameters.type",
        "settings.output_schema",
    }
