"""How routing learns from feedback, some of it wrong: ``python -m benchmarks.routing_feedback --quick``.

A registry of 150 agents without examples (CLINC150, ``../shared/routing/clinc``) is told of one request after another
whose it was: the training texts in random order, by twenty authors, one in ten with a wrong agent drawn at random.
After so many events everything is fitted anew, and takes the champion's place where its out-of-fold log-loss on the
events that the champion has not seen is not worse. The table has the share of the test's requests that go right, of
those that are in scope. A second table shows one author who claims request after request for the same agent.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from agent_orchestra.adapters.encoders.folder import open_folder
from agent_orchestra.core import classifier
from agent_orchestra.core.agent import Agent
from agent_orchestra.core.classifier import Example, Model, Vector
from agent_orchestra.core.feedback import Feedback, Source, better, examples_of, lead, unseen

SHARED: Final = Path(__file__).resolve().parent.parent.parent / "shared"
_EVENTS: Final = (250, 500, 1_000, 2_000, 4_000, 8_000)
_QUICK_EVENTS: Final = (250, 500)
#: So many events of many authors, and so many of one who wants everything for one agent.
_POISON: Final = (4_000, 1_500)
_QUICK_POISON: Final = (500, 200)
_WRONG: Final = 0.1
_AUTHORS: Final = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    """``train``, ``test``: texts and the ids of their agents."""

    agents: Sequence[Agent]
    train: Sequence[tuple[str, str]]
    test: Sequence[tuple[str, str]]
    vectors: Mapping[str, Vector]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stand:
    """After so many ``events``: the ``accuracy`` of what decides then, and how the last fit ended.

    ``lead``: over the champion, in nats an event that neither had seen. ``seconds``: of the fit.
    """

    events: int
    accuracy: float
    promoted: bool = True
    lead: float = 0.0
    seconds: float = 0.0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.routing_feedback", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few events, one seed: shows that it runs, no more")
    parser.add_argument("--seeds", type=int, default=3, help="how many orders of the events, each with its own errors")
    given = parser.parse_args()
    suite = asyncio.run(_suite())
    seeds = range(1 if given.quick else given.seeds)
    runs = [list(learned(suite, seed, _QUICK_EVENTS if given.quick else _EVENTS)) for seed in seeds]
    print(table(runs))
    print(poisoned(suite, *(_QUICK_POISON if given.quick else _POISON)))
    return 0


async def _suite() -> Suite:
    folder = SHARED / "routing/clinc"
    agents = [
        Agent(
            id=fields["id"],
            kind="prompt",
            name=fields["name"],
            description=fields["description"],
            capabilities=tuple(fields["capabilities"]),
            keywords=tuple(fields["keywords"]),
        )
        for fields in json.loads((folder / "registry_150.json").read_text("utf-8"))
    ]
    train, test = (_labelled(_rows(folder / name)) for name in ("train.jsonl", "test.jsonl"))
    texts = list(dict.fromkeys([*classifier.texts_of(agents), *(text for text, _ in (*train, *test))]))
    encoder = open_folder(SHARED / "encoder")
    try:
        vectors = dict(zip(texts, await encoder.encode(texts), strict=True))
    finally:
        await encoder.close()
    return Suite(agents=agents, train=train, test=test, vectors=vectors)


def _rows(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def _labelled(rows: Sequence[Any]) -> list[tuple[str, str]]:
    return [(row["text"], row["intent"]) for row in rows if row["intent"] is not None]


def learned(suite: Suite, seed: int, counts: Sequence[int]) -> Iterator[Stand]:
    """The stands of one order of events."""
    log = events(suite, seed)
    champion, heard = classifier.fit(suite.agents, [], suite.vectors), 0
    accuracy = _right(_answers(champion, suite), suite)
    yield Stand(events=0, accuracy=accuracy)
    for count in counts:
        began = time.perf_counter()
        examples = examples_of(log[:count])
        candidate = classifier.fit(suite.agents, examples, suite.vectors)
        seconds = time.perf_counter() - began
        fresh = np.flatnonzero(unseen(examples, log[:count], heard))
        judged = [examples[number] for number in fresh]
        losses, before = candidate.out_of_fold[fresh], champion.losses(judged, suite.vectors)
        weights = np.array([example.weight for example in judged])
        promoted = better(losses, before, weights)
        if promoted:
            champion, heard = candidate, count
            accuracy = _right(_answers(champion, suite), suite)
        yield Stand(
            events=count,
            accuracy=accuracy,
            promoted=promoted,
            lead=lead(losses, before, weights),
            seconds=seconds,
        )


def events(suite: Suite, seed: int) -> list[Feedback]:
    """What is said, and by whom."""
    chance = random.Random(seed)
    ids = [agent.id for agent in suite.agents]
    said: list[Feedback] = []
    for sequence, (text, right) in enumerate(chance.sample(suite.train, len(suite.train)), 1):
        wrong = chance.choice([agent_id for agent_id in ids if agent_id != right])
        said.append(
            Feedback(
                sequence=sequence,
                tenant="default",
                decision_id=str(sequence),
                text=text,
                agent_id=wrong if chance.random() < _WRONG else right,
                source=Source.HUMAN,
                author=str(chance.randrange(_AUTHORS)),
                created_ms=0,
            )
        )
    return said


def _answers(model: Model, suite: Suite) -> list[str]:
    return [model.judge(text, suite.vectors[text], limit=1).ranked[0].agent_id for text, _ in suite.test]


def _right(found: Sequence[str], suite: Suite) -> float:
    return sum(agent_id == right for agent_id, (_, right) in zip(found, suite.test, strict=True)) / len(found)


def table(runs: Sequence[Sequence[Stand]]) -> str:
    """A Markdown table, a row for each number of events; figures are means over the runs."""
    lines = [
        "### Learning from feedback, one event in ten wrong\n",
        f"150 agents without examples; means of {len(runs)} orders. Lead: nats, of events new to the champion.\n",
        "| events | right | lowest to highest | promoted | lead over the champion | fit, s |",
        "|---:|---:|---:|---:|---:|---:|",
    ]
    for stands in zip(*runs, strict=True):
        right = [100 * stand.accuracy for stand in stands]
        after = f"{np.mean(right):.1f} % | {min(right):.1f} to {max(right):.1f} %"
        if not stands[0].events:
            lines.append(f"| 0 | {after} | | | |")
            continue
        promoted = f"{sum(stand.promoted for stand in stands)} of {len(runs)}"
        ahead, seconds = (float(np.mean([getattr(stand, name) for stand in stands])) for name in ("lead", "seconds"))
        lines.append(f"| {stands[0].events:,} | {after} | {promoted} | {ahead:.3f} | {seconds:.1f} |")
    fell = sum(later.accuracy < earlier.accuracy for run in runs for earlier, later in itertools.pairwise(run))
    lines.append(f"\nAccuracy fell after {fell} of {sum(len(run) - 1 for run in runs)} fits.")
    return "\n".join(lines)


def poisoned(suite: Suite, honest: int, claimed: int) -> str:
    """A Markdown table of what one author's claims do to what was learned from others."""
    favoured = suite.agents[0].id
    log = events(suite, 0)[:honest]
    claims = [replace(said, agent_id=favoured, author="one who claims") for said in events(suite, 1)[:claimed]]
    ways = {
        "without the claims": examples_of(log),
        "with them": examples_of([*log, *claims]),
        "with them, if no author's share were bounded": [
            Example(text=said.text, agent_id=said.agent_id) for said in (*log, *claims)
        ],
    }
    lines = [
        f"\n### {claimed:,} false claims of one author for one agent, beside {honest:,} events of others\n",
        "| learned | right | requests that the agent gets |",
        "|---|---:|---:|",
    ]
    for name, examples in ways.items():
        found = _answers(classifier.fit(suite.agents, examples, suite.vectors), suite)
        gets = found.count(favoured) / len(found)
        lines.append(f"| {name} | {100 * _right(found, suite):.1f} % | {100 * gets:.1f} % |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
