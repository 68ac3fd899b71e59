"""What routing costs as agents grow in number, and what a fresh process needs until it has decided once."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from itertools import islice, product
from pathlib import Path
from statistics import median
from typing import Any, Final

from benchmarks.harness import Case, Figures, Question
from benchmarks.routing import DATA, ENCODER, ROOT, in_one_thread

__all__ = ["QUESTIONS"]

_SIZES: Final = (10, 1_000, 10_000)
_PLACES: Final = "Lagos Lima Oslo Osaka Perth Quito Riga Seoul Tunis Turin Vilnius Zagreb".split()
_SHOTS: Final = 20
#: The fields of a definition that routing reads.
_KEPT: Final = ("id", "kind", "name", "description", "capabilities", "keywords", "examples")


def grown(quick: bool) -> Figures:
    return in_one_thread(_grown(quick, lexical=False))


def grown_lexical(quick: bool) -> Figures:
    return in_one_thread(_grown(quick, lexical=True))


def started(quick: bool) -> Figures:
    return in_one_thread(_started(quick, lexical=False))


def started_lexical(quick: bool) -> Figures:
    return in_one_thread(_started(quick, lexical=True))


async def _grown(quick: bool, *, lexical: bool) -> Figures:
    figures: Figures = {}
    encoder = None if lexical else _encoder()
    for size in _SIZES[:2] if quick else _SIZES:
        figures |= await _of_size(size, encoder, quick)
    return figures


async def _of_size(size: int, encoder: Any, quick: bool) -> Figures:
    from agent_orchestra.core.classifier import fit, texts_of

    *agents, newcomer = _synthetic(size + 1)
    vectors = await _embedded(encoder, texts_of(agents))
    before = _resident()
    began = time.perf_counter()
    model = fit(agents, (), vectors)
    fitted = time.perf_counter() - began
    memory = _resident() - before
    began = time.perf_counter()
    grown = model.rebuilt([*agents, newcomer], await _embedded(encoder, texts_of([newcomer])))
    added = time.perf_counter() - began
    assert newcomer.id in grown.agents
    decisions = [await _milliseconds(model, encoder, text) for text in _requests(50 if quick else 500)]
    return {
        f"{size:,} agents: a decision, p50 ms": median(decisions),
        f"{size:,} agents: from definitions and vectors to a model, s": fitted,
        f"{size:,} agents: one more, embedding included, ms": added * 1_000,
        f"{size:,} agents: the model in memory, MB": max(memory, 0) / 1e6,
    }


async def _milliseconds(model: Any, encoder: Any, text: str) -> float:
    began = time.perf_counter()
    vector = None if encoder is None else (await encoder.encode([text]))[0]
    model.judge(text, vector)
    return (time.perf_counter() - began) * 1_000


def _encoder() -> Any:
    from agent_orchestra.adapters.encoders.folder import open_folder

    return open_folder(ENCODER)


async def _embedded(encoder: Any, texts: Sequence[str]) -> dict[str, Any]:
    return {} if encoder is None else dict(zip(texts, await encoder.encode(texts), strict=True))


def _synthetic(count: int) -> list[Any]:
    """Agents without examples, each of one line of the data's definitions; when all lines are taken they come again,
    each time for another place."""
    from agent_orchestra.core.agent import Agent

    lines = _lines()
    if count > len(lines) * (len(_PLACES) + 1):
        raise ValueError(f"there are no {count} variations of {len(lines)} lines")
    varied = islice(product(["", *(f" Only for {place}." for place in _PLACES)], lines), count)
    return [
        Agent(id=f"a{number}", kind="synthetic", description=f"{line.rstrip('.')}.{place}")
        for number, (place, line) in enumerate(varied)
    ]


def _lines() -> list[str]:
    found: list[str] = []
    for path in ("clinc/registry_10.json", "clinc/registry_150.json", "metatool_a/registry.json"):
        for agent in json.loads((DATA / path).read_text(encoding="utf-8")):
            found += [*agent["capabilities"], agent["description"]]
    functions = (DATA / "bfcl_a/functions.jsonl").read_text(encoding="utf-8").splitlines()
    found += [json.loads(line)["description"] for line in functions]
    return list(dict.fromkeys(line for line in found if line))


def _requests(count: int) -> list[str]:
    lines = (DATA / "clinc/test.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["text"] for line in lines[:: len(lines) // count]]


def _resident() -> int:
    gc.collect()
    psutil: Any = import_module("psutil")
    return psutil.Process().memory_info().rss


async def _started(quick: bool, *, lexical: bool) -> Figures:
    """Processes that decide one request by what this one has prepared: the median of some."""
    with tempfile.TemporaryDirectory() as folder:
        await _prepare(Path(folder), None if lexical else _encoder())
        runs = [_first_decision(folder) for _ in range(2 if quick else 5)]
    return {
        "from the start of the process to its first decision, s": median(seconds for seconds, _ in runs),
        "resident memory after it, MB": median(resident for _, resident in runs) / 1e6,
    }


async def _prepare(folder: Path, encoder: Any) -> None:
    """Writes what a service keeps: definitions, vectors of their texts, and what was learned."""
    import numpy as np

    from agent_orchestra.core.classifier import fit, texts_of
    from agent_orchestra.suites import read

    clinc = DATA / "clinc"
    suite = read(clinc / "registry_150.json", clinc / "test.jsonl", clinc / "train.jsonl", shots=_SHOTS, label="intent")
    agents = [
        replace(agent, examples=tuple(example.text for example in suite.examples if example.agent_id == agent.id))
        for agent in suite.agents
    ]
    vectors = await _embedded(encoder, texts_of(agents))
    (folder / "learned").write_bytes(fit(agents, (), vectors).dump())
    np.savez(folder / "vectors.npz", texts=np.array(list(vectors)), vectors=np.array(list(vectors.values())))
    definitions = [{name: getattr(agent, name) for name in _KEPT} for agent in agents]
    (folder / "agents.json").write_text(json.dumps(definitions), encoding="utf-8")


def _first_decision(folder: str) -> tuple[float, int]:
    """Seconds until a new process has decided, and the bytes that it holds then."""
    psutil: Any = import_module("psutil")
    began = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-m", "benchmarks.routing_start", folder, str(ENCODER)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as process:
        assert process.stdout is not None
        said = process.stdout.readline()
        seconds = time.perf_counter() - began
        resident = psutil.Process(process.pid).memory_info().rss if said else 0
        process.communicate("")
    assert said, "it ended without a decision"
    return seconds, resident


_OURS: Final = "Agent Orchestra"
_LEXICAL: Final = "Agent Orchestra, words alone"

QUESTIONS: Final = (
    Question(
        name="routing-growth",
        title="Routing among more and more agents",
        note=(
            "Agents without examples, each of one line of the definitions in `../shared/routing`, its capabilities, "
            'descriptions and functions; when the lines are used up they come again with "Only for" and a place. '
            "Requests are those of clinc. One thread; a decision from the text on, its embedding included."
        ),
        cases=(Case(name=_OURS, measure=grown), Case(name=_LEXICAL, measure=grown_lexical)),
        aims={f"{size:,} agents: one more, embedding included, ms": 50.0 for size in _SIZES},
    ),
    Question(
        name="routing-start",
        title="Start and memory of routing alone",
        note=(
            f"A fresh process with the 150 agents of clinc and {_SHOTS} examples of each: the interpreter, the "
            "imports, vectors of all texts and what was learned from files, the encoder, one decision."
        ),
        cases=(Case(name=_OURS, measure=started), Case(name=_LEXICAL, measure=started_lexical)),
        aims={
            "from the start of the process to its first decision, s": 0.3,
            "resident memory after it, MB": 150.0,
        },
    ),
)
