"""An evaluation: what is asked of the encoder and the classifier, what is printed, and how good routing is at least."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest
from numpy.typing import NDArray

from agent_orchestra.core.agent import Agent
from agent_orchestra.core.classifier import Turn
from agent_orchestra.errors import EncoderFailed, InvalidInput
from agent_orchestra.evaluation import Options, evaluate, figures, rows, run
from agent_orchestra.suites import Request, Suite
from tests.evaluation.conftest import ROUTING, Sampled

BILLING = Agent(id="billing", kind="offline", description="Invoices, refunds and payments.")
TRAVEL = Agent(id="travel", kind="offline", description="Flights, hotels and trains.")
ALWAYS_PRINTED = (
    "n top1 top3 macro_f1 oos_auroc oos_recall oos_precision in_scope_rejected ece p50_ms p99_ms fit_s".split()
)


class Recorder:
    """An encoder without a meaning: it remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []

    @property
    def name(self) -> str:
        return "recorder"

    @property
    def dimension(self) -> int:
        return 16

    async def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        self.asked.append(list(texts))
        drawn = [np.random.default_rng(crc32(text.encode())).normal(size=16) for text in texts]
        return np.array([vector / np.linalg.norm(vector) for vector in drawn], np.float32)

    async def close(self) -> None:
        pass


class Broken(Recorder):
    async def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        raise EncoderFailed("the model is gone")


def suite_of(*requests: Request, agents: Sequence[Agent] = (BILLING, TRAVEL)) -> Suite:
    return Suite(agents=agents, labels={agent.id: agent.id for agent in agents}, examples=(), requests=requests)


def asked(text: str, truth: str | None, *, among: frozenset[str] | None = None, turn: Turn | None = None) -> Request:
    return Request(id=text, text=text, truth=truth, among=among, turn=turn, previous=turn.previous if turn else None)


def by_the_reference(options: Options) -> dict[str, float]:
    """What ``score.py`` prints of the predictions that were written."""
    command = [sys.executable, str(ROUTING / "score.py"), str(options.test), str(options.predictions)]
    return json.loads(subprocess.run(command, capture_output=True, check=True).stdout)


async def test_the_figures_that_are_always_printed_come_first_and_in_order() -> None:
    printed = figures(await run(suite_of(asked("refund my invoice", "billing")), None))
    assert list(printed)[: len(ALWAYS_PRINTED)] == ALWAYS_PRINTED
    assert (printed["n"], printed["top1"], printed["oos"], printed["agents"], printed["encoder"]) == (
        1,
        1.0,
        0,
        2,
        None,
    )


async def test_figures_that_are_not_defined_are_null_and_a_dash_in_the_table() -> None:
    evaluation = await run(suite_of(asked("refund my invoice", "billing")), None)
    undefined = {"oos_auroc", "oos_recall", "oos_precision", "switch_top1", "stay_top1", "encode_s", "encoder"}
    assert {name for name, value in figures(evaluation).items() if value is None} == undefined
    assert {name for name, value in rows(evaluation) if value == "-"} == undefined


async def test_figures_are_numbers_that_json_can_hold() -> None:
    printed = figures(await run(suite_of(asked("a refund", "billing"), asked("hm", None)), Recorder()))
    assert json.loads(json.dumps(printed)) == printed


async def test_no_requests_give_no_figures_and_no_error() -> None:
    printed = figures(await run(suite_of(), None))
    assert (printed["n"], printed["top1"], printed["p50_ms"]) == (0, None, None)


async def test_only_the_candidates_of_a_request_are_ranked() -> None:
    some, none = frozenset({"travel"}), frozenset[str]()
    text = "refund my invoice"
    evaluation = await run(suite_of(asked(text, None, among=some), asked(text, None, among=none)), None)
    assert [prediction.ranking for prediction in evaluation.predictions] == [("travel",), ()]


async def test_agents_of_one_label_take_one_place_in_the_ranking() -> None:
    agents = [BILLING, Agent(id="more", kind="offline", description="Invoices of companies."), TRAVEL]
    labels = {"billing": "money", "more": "money", "travel": "travel"}
    suite = Suite(agents=agents, labels=labels, examples=(), requests=[asked("an invoice", "money")])
    assert (await run(suite, None)).predictions[0].ranking == ("money", "travel")


async def test_each_request_is_embedded_by_itself_and_with_the_last_turn_where_there_is_one() -> None:
    encoder = Recorder()
    turn = Turn(previous="travel", last="By train?", last_vector=None)
    await run(suite_of(asked("a refund", "billing"), asked("yes", "travel", turn=turn)), encoder)
    assert encoder.asked[-2:] == [["a refund"], ["yes", "By train?"]]


async def test_texts_of_definitions_and_examples_are_embedded_once() -> None:
    encoder = Recorder()
    await run(suite_of(asked("a refund", "billing")), encoder)
    assert BILLING.description in encoder.asked[0]
    assert len(encoder.asked[0]) == len(set(encoder.asked[0]))


async def test_an_encoder_that_fails_ends_the_evaluation() -> None:
    with pytest.raises(EncoderFailed, match="the model is gone"):
        await run(suite_of(asked("a refund", "billing")), Broken())


@pytest.mark.parametrize("folder", ["clinc", "bfcl_a", "sgd_dev"])
async def test_the_reference_says_the_same_of_the_predictions(sampled: Sampled, folder: str, tmp_path: Path) -> None:
    registry = {"clinc": "registry_10.json", "bfcl_a": "functions.jsonl", "sgd_dev": "registry.json"}[folder]
    options = Options(
        registry=ROUTING / folder / registry,
        test=sampled(folder, 90, nobodys=0 if folder == "sgd_dev" else 30),
        shots=0,
        predictions=tmp_path / "predictions.jsonl",
    )
    printed = figures(await evaluate(options, None))
    reference = by_the_reference(options)
    assert {name: printed[name] for name in reference} == pytest.approx(reference, abs=1e-9)


async def test_the_same_evaluation_gives_the_same_predictions(sampled: Sampled) -> None:
    folder = ROUTING / "clinc"
    options = Options(
        registry=folder / "registry_10.json",
        test=sampled("clinc", 60),
        train=folder / "train.jsonl",
        shots=1,
    )
    one, other = [await evaluate(options, None) for _ in range(2)]
    assert one.predictions == other.predictions


async def test_predictions_that_cannot_be_written_are_an_error_before_the_work(
    sampled: Sampled, tmp_path: Path
) -> None:
    options = Options(
        registry=ROUTING / "clinc" / "registry_10.json",
        test=sampled("clinc", 3),
        predictions=tmp_path / "nowhere" / "predictions.jsonl",
    )
    encoder = Recorder()
    with pytest.raises(InvalidInput, match=r"predictions\.jsonl: cannot be written"):
        await evaluate(options, encoder)
    assert not encoder.asked
