"""Examples for an agent in a model's words: what the model is told, and which of its lines are fit to be some."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final, cast

import pytest

from agent_orchestra.core.agent import Agent, check
from agent_orchestra.core.prompt import Prompt, Wrote
from agent_orchestra.core.request import Reply
from agent_orchestra.core.values import Json
from agent_orchestra.errors import ModelServerError, OutputInvalid
from agent_orchestra.runtime.executor import Emit
from agent_orchestra.runtime.models import ProviderStatus
from agent_orchestra.runtime.suggesting import suggest
from tests.adapters.models.recorded import APIS, name_of, open_models, prompt_in
from tests.services.replay import Answer, ReplayServer, read_case

#: The first test of a process imports the SDKs of the vendors, which takes seconds.
pytestmark = [pytest.mark.timeout(120), pytest.mark.usefixtures("model_requests")]

MODEL: Final = "openai:gpt-4o"
BILLING: Final = Agent(
    id="billing",
    kind="offline",
    description="Invoices, refunds and payments.",
    capabilities=("explain an invoice", "refund a payment"),
    examples=("Why was I charged twice?",),
)
TRAVEL: Final = Agent(id="travel", kind="offline", name="Travel desk", examples=("Book me a flight",))


class Writer:
    """Models of which every one gives the same value. Conforms to `Models`."""

    def __init__(self, value: Json) -> None:
        self.value = value
        self.asked: list[Prompt] = []

    async def ask(self, model: str, prompt: Prompt, emit: Emit | None = None) -> Reply:
        assert model == MODEL
        self.asked.append(prompt)
        return Reply(output=json.dumps(self.value), value=self.value)

    async def prepare(self, model: str) -> None:
        raise AssertionError(f"nobody makes '{model}' ready here")

    async def check(self, *, fresh: bool = False) -> Sequence[ProviderStatus]:
        return ()


async def suggested(*lines: Json, count: int = 10) -> list[str]:
    return await suggest(Writer({"utterances": list(lines)}), MODEL, BILLING, [BILLING, TRAVEL], count)


def sent(prompt: Prompt) -> Any:
    [turn] = prompt.turns
    assert isinstance(turn, Wrote)
    return json.loads(turn.content)


async def test_suggestions_are_what_the_model_writes() -> None:
    assert await suggested("refund order 5", "what is this fee?") == ["refund order 5", "what is this fee?"]


async def test_there_are_no_more_than_are_wanted() -> None:
    assert await suggested("refund order 5", "what is this fee?", "pay now", count=2) == [
        "refund order 5",
        "what is this fee?",
    ]


async def test_lines_are_one_line_each_and_can_be_stored() -> None:
    [line] = await suggested("  refund\n\torder\0 5 ")
    assert line == "refund order\ufffd 5"
    assert check(Agent(id="agent", kind="offline", examples=(line,))) == ()


@pytest.mark.parametrize(
    "line",
    ["", " \n", "?!", "x" * 501, 5, None, ["refund"], "why was I charged twice", "  BOOK me\na flight!!"],
    ids=repr,
)
async def test_a_line_that_is_no_new_example_is_left_out(line: Json) -> None:
    assert await suggested(line, "pay now") == ["pay now"]


async def test_a_line_as_long_as_an_example_may_be_is_kept() -> None:
    assert await suggested("x" * 500) == ["x" * 500]


async def test_suggestions_differ_in_more_than_case_space_and_punctuation() -> None:
    assert await suggested("Pay now", "pay now!", "pay  NOW", "pay later") == ["Pay now", "pay later"]


@pytest.mark.parametrize("value", [None, "pay now", ["pay now"], {}, {"utterances": "pay now"}], ids=repr)
async def test_an_answer_of_another_form_is_an_error(value: Json) -> None:
    with pytest.raises(OutputInvalid):
        await suggest(Writer(value), MODEL, BILLING, [TRAVEL], 5)


async def test_a_model_is_told_of_the_agent_and_of_the_others() -> None:
    writer = Writer({"utterances": []})
    assert await suggest(writer, MODEL, BILLING, [BILLING, TRAVEL], 7) == []

    assert sent(writer.asked[0]) == {
        "agent": {
            "name": "billing",
            "description": "Invoices, refunds and payments.",
            "capabilities": ["explain an invoice", "refund a payment"],
            "examples": ["Why was I charged twice?"],
        },
        "others": [{"name": "Travel desk", "description": "", "capabilities": []}],
        "wanted": 7,
    }


async def test_however_large_the_registry_is_the_question_stays_short() -> None:
    writer = Writer({"utterances": []})
    lines = tuple(f"{number} {'x' * 490}" for number in range(256))
    large = [
        Agent(id=f"agent{number}", kind="offline", description="x" * 4_000, capabilities=lines, examples=lines)
        for number in range(1_000)
    ]
    await suggest(writer, MODEL, large[0], large, 10)
    assert len(json.dumps(sent(writer.asked[0]))) < 40_000


@pytest.mark.parametrize("provider", APIS)
async def test_every_vendor_is_asked_for_lines_and_gives_them(provider: str) -> None:
    case = read_case(f"{provider}/structured")
    lines = json.dumps({"utterances": ["refund order 5", "what is this fee?"]})
    recorded, told = (json.dumps(text, ensure_ascii=False).encode() for text in (case.expect["text"], lines))
    async with ReplayServer() as server, open_models(server.url) as models:
        server.always(Answer.made(200, json.loads(case.content.replace(recorded, told))))
        assert await suggest(models, name_of(case), BILLING, [TRAVEL], 5) == ["refund order 5", "what is this fee?"]

    prompt = prompt_in(provider, server.requests[0].body)
    assert sent(prompt)["wanted"] == 5
    assert set(cast("Any", prompt.output_schema)["properties"]) == {"utterances"}


async def test_what_a_model_fails_with_is_raised_as_it_is() -> None:
    async with ReplayServer() as server, open_models(server.url) as models:
        server.answer(500)
        with pytest.raises(ModelServerError):
            await suggest(models, MODEL, BILLING, [TRAVEL], 5)
