"""How good routing is at least, on some hundred requests of each public suite.

The floors lie some points under what is reached, the ceilings over it: on so few requests a figure moves by as much.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from agent_orchestra.evaluation import Options, evaluate, figures
from agent_orchestra.runtime.encoding import Encoder
from tests.evaluation.conftest import ROUTING, Sampled

pytestmark = pytest.mark.slow

CLINC = ROUTING / "clinc"


async def missed(
    options: Options,
    encoder: Encoder | None,
    *,
    at_least: dict[str, float],
    at_most: dict[str, float] | None = None,
) -> Mapping[str, object]:
    """The figures that are not what they should be."""
    found = figures(await evaluate(options, encoder))
    below = {name: found[name] for name, floor in at_least.items() if not _number(found[name]) >= floor}
    over = {name: found[name] for name, ceiling in (at_most or {}).items() if not _number(found[name]) <= ceiling}
    return below | over


def _number(figure: object) -> float:
    return figure if isinstance(figure, float) else float("nan")


async def test_few_examples_of_broad_agents(sampled: Sampled, encoder: Encoder) -> None:
    options = Options(
        registry=CLINC / "registry_10.json",
        test=sampled("clinc", 300, nobodys=100),
        train=CLINC / "train.jsonl",
        shots=5,
    )
    assert not await missed(
        options,
        encoder,
        at_least={"top1": 0.88, "top3": 0.96, "oos_auroc": 0.90, "oos_recall": 0.45},
        at_most={"in_scope_rejected": 0.12, "ece": 0.09},
    )


async def test_broad_agents_without_examples(sampled: Sampled, encoder: Encoder) -> None:
    options = Options(registry=CLINC / "registry_10.json", test=sampled("clinc", 300, nobodys=100), shots=0)
    assert not await missed(
        options,
        encoder,
        at_least={"top1": 0.87, "oos_auroc": 0.89},
        at_most={"in_scope_rejected": 0.13, "ece": 0.10},
    )


async def test_words_alone(sampled: Sampled) -> None:
    options = Options(
        registry=CLINC / "registry_10.json",
        test=sampled("clinc", 300, nobodys=100),
        train=CLINC / "train.jsonl",
        shots=5,
    )
    assert not await missed(
        options,
        None,
        at_least={"top1": 0.74, "oos_auroc": 0.78},
        at_most={"in_scope_rejected": 0.25, "ece": 0.12},
    )


async def test_overlapping_tools_without_examples(sampled: Sampled, encoder: Encoder) -> None:
    folder = ROUTING / "metatool_a"
    options = Options(registry=folder / "registry.json", test=sampled("metatool_a", 300), shots=0)
    assert not await missed(
        options,
        encoder,
        at_least={"top1": 0.65, "top3": 0.78},
        at_most={"in_scope_rejected": 0.15, "ece": 0.11},
    )


async def test_a_choice_among_a_few_functions_or_none(sampled: Sampled, encoder: Encoder, tmp_path: Path) -> None:
    test = sampled("bfcl_a", 120, nobodys=60)
    candidates: set[int] = {
        n for line in test.read_text(encoding="utf-8").splitlines() for n in json.loads(line)["candidates"]
    }
    functions = (ROUTING / "bfcl_a" / "functions.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    registry = tmp_path / "functions.jsonl"
    registry.write_text("".join(functions[n] for n in sorted(candidates)), encoding="utf-8")
    options = Options(registry=registry, test=test)
    assert not await missed(options, encoder, at_least={"top1": 0.82, "top3": 0.95, "oos_auroc": 0.72})


async def test_turns_of_conversations(sampled: Sampled, encoder: Encoder) -> None:
    options = Options(registry=ROUTING / "sgd_dev" / "registry.json", test=sampled("sgd_dev", 400))
    assert not await missed(
        options, encoder, at_least={"top1": 0.92, "stay_top1": 0.96, "switch_top1": 0.70}, at_most={"ece": 0.06}
    )
