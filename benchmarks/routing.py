"""Whose a request is: how often routers find it out, how sure they are, and what that costs.

All are given the same definitions, examples and vectors, and decide the same requests one after the other, each from
its text on.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any, Final

import benchmarks
from benchmarks import harness
from benchmarks import routing_rivals as rivals
from benchmarks.harness import Case, Figures, Question, Result
from benchmarks.routing_rivals import Decide, Taught

__all__ = ["DATA", "ENCODER", "QUESTIONS", "ROOT", "ROUNDS", "TABLES", "in_one_thread"]

ROOT: Final = Path(benchmarks.__file__).resolve().parent.parent
DATA: Final = ROOT.parent / "shared" / "routing"
ENCODER: Final = ROOT.parent / "shared" / "encoder"

_TOP1: Final = "top-1, %"
_ECE: Final = "ECE"
_AUROC: Final = "AUROC, out of scope"
_P50: Final = "p50, ms"
_P99: Final = "p99, ms"
_FIT: Final = "fit, s"
_TOKENS: Final = "tokens"
_COLUMNS: Final = (_TOP1, _ECE, _AUROC, _P50, _P99, _FIT, _TOKENS)
_WARM_UP: Final = 50
_QUICK: Final = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A suite of ``../shared/routing``. ``aims``: of ours with the encoder, and of ours by words alone."""

    name: str
    folder: str
    registry: str
    shots: int
    label: str = "agent"
    aims: Mapping[str, float] = field(default_factory=dict[str, float])
    lexical_aims: Mapping[str, float] = field(default_factory=dict[str, float])


_TRIALS: Final = (
    Trial(
        name="clinc, 10 agents, 5 examples each",
        folder="clinc",
        registry="registry_10.json",
        shots=5,
        aims={_TOP1: 92, _ECE: 0.03},
    ),
    Trial(
        name="metatool, 100 tools, 5 examples each",
        folder="metatool_a",
        registry="registry.json",
        shots=5,
        aims={_TOP1: 79, _ECE: 0.03},
    ),
    Trial(
        name="clinc, 10 agents, 20 examples each",
        folder="clinc",
        registry="registry_10.json",
        shots=20,
        aims={_TOP1: 94},
    ),
    Trial(
        name="clinc, 150 agents, 5 examples each",
        folder="clinc",
        registry="registry_150.json",
        shots=5,
        label="intent",
        aims={_TOP1: 90, _ECE: 0.03},
    ),
    Trial(
        name="clinc, 150 agents, 20 examples each",
        folder="clinc",
        registry="registry_150.json",
        shots=20,
        label="intent",
        aims={_TOP1: 94, _P50: 1, _P99: 3},
        lexical_aims={_P50: 0.1},
    ),
)
#: What is measured where there is no time.
_QUICK_TRIALS: Final = _TRIALS[:2]


def ours(quick: bool) -> Figures:
    return in_one_thread(_ours(quick, lexical=False))


def ours_lexical(quick: bool) -> Figures:
    return in_one_thread(_ours(quick, lexical=True))


def linear(quick: bool) -> Figures:
    modules = ("sklearn.feature_extraction.text", "sklearn.linear_model", "sklearn.pipeline")
    return in_one_thread(_rival(rivals.linear, quick, modules=modules, probable=True))


def centroid(quick: bool) -> Figures:
    return in_one_thread(_rival(rivals.centroid, quick))


def semantic_router(quick: bool) -> Figures:
    # Its environment has what our modules need here, and not the modules themselves.
    sys.path.append(str(ROOT / "src"))
    return in_one_thread(_rival(rivals.semantic_router, quick, modules=("semantic_router", "semantic_router.encoders")))


def llm(quick: bool) -> Figures:
    """The tokens of a prompt that tells all agents, as the tokenizer of the encoder counts them."""
    tokenizer: Any = import_module("tokenizers").Tokenizer.from_file(str(ENCODER / "tokenizer.json"))
    tokenizer.no_truncation()
    figures: Figures = {}
    for trial in _QUICK_TRIALS if quick else _TRIALS:
        suite = _suite(trial, quick)
        agents = "\n".join(f"{agent.id}: {agent.description}" for agent in suite.agents)
        request = median(len(tokenizer.encode(request.text).ids) for request in suite.requests)
        figures[_key(trial, _TOKENS)] = len(tokenizer.encode(agents).ids) + request
    return figures


def in_one_thread(measuring: Coroutine[Any, Any, Figures]) -> Figures:
    """Runs what imports numpy by itself: with numpy, the number of threads is settled."""
    os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"))
    return asyncio.run(measuring)


async def _ours(quick: bool, *, lexical: bool) -> Figures:
    from agent_orchestra.adapters.encoders.folder import open_folder
    from agent_orchestra.evaluation import run

    encoder = None if lexical else open_folder(ENCODER)
    figures: Figures = {}
    for trial in _QUICK_TRIALS if quick else _TRIALS:
        found = await run(_suite(trial, quick), encoder)
        figures |= _figures(trial, found.scores, found.p50_ms, found.p99_ms, found.fit_s, probable=True)
    return figures


async def _rival(
    fit: Callable[[Taught], Decide], quick: bool, *, modules: Sequence[str] = (), probable: bool = False
) -> Figures:
    """``modules``: what it imports, before any time is taken. ``probable``: its confidence is a probability."""
    from agent_orchestra.adapters.encoders.folder import open_folder

    for module in modules:
        import_module(module)
    encoder = open_folder(ENCODER)
    figures: Figures = {}
    for trial in _QUICK_TRIALS if quick else _TRIALS:
        figures |= await _tried(trial, fit, encoder, quick, probable=probable)
    return figures


async def _tried(
    trial: Trial, fit: Callable[[Taught], Decide], encoder: Any, quick: bool, *, probable: bool
) -> Figures:
    from agent_orchestra.core.evaluation import Prediction, quantile, score

    suite = _suite(trial, quick)
    taught = await _taught(suite, encoder)
    began = time.perf_counter()
    decide = fit(taught)
    fitted = time.perf_counter() - began
    for text in taught.texts[:_WARM_UP]:
        await decide(text)
    predictions: list[Prediction] = []
    taken: list[float] = []
    for request in suite.requests:
        asked = time.perf_counter()
        ranking, confidence = await decide(request.text)
        taken.append((time.perf_counter() - asked) * 1_000)
        bounded = min(max(confidence, 0.0), 1.0)
        said = Prediction(truth=request.truth, ranking=tuple(ranking[:5]), confidence=bounded, accepted=True)
        predictions.append(said)
    p50, p99 = quantile(taken, 0.50), quantile(taken, 0.99)
    return _figures(trial, score(predictions), p50, p99, fitted, probable=probable)


async def _taught(suite: Any, encoder: Any) -> Taught:
    given = [
        (text, agent.id)
        for agent in suite.agents
        for text in dict.fromkeys([agent.description, *agent.capabilities])
        if text
    ]
    given += [(example.text, example.agent_id) for example in suite.examples]
    texts = list(dict.fromkeys(text for text, _ in given))
    vectors = dict(zip(texts, await encoder.encode(texts), strict=True))
    return Taught(texts=[t for t, _ in given], owners=[o for _, o in given], vectors=vectors, encoder=encoder)


def _suite(trial: Trial, quick: bool) -> Any:
    from agent_orchestra.suites import read

    folder = DATA / trial.folder
    train, test = folder / "train.jsonl", folder / "test.jsonl"
    suite = read(folder / trial.registry, test, train, shots=trial.shots, label=trial.label)
    return replace(suite, requests=suite.requests[:: len(suite.requests) // _QUICK]) if quick else suite


def _figures(trial: Trial, scores: Any, p50: float | None, p99: float | None, fit: float, *, probable: bool) -> Figures:
    found = {
        _TOP1: None if scores.top1 is None else 100 * scores.top1,
        _ECE: scores.ece if probable else None,
        _AUROC: scores.oos_auroc,
        _P50: p50,
        _P99: p99,
        _FIT: fit,
    }
    return {_key(trial, column): value for column, value in found.items() if value is not None}


def _key(trial: Trial, column: str) -> str:
    return f"{trial.name}: {column}"


def _table(question: Question, results: Mapping[str, Result]) -> str:
    """A Markdown section: for each suite a row for each router, with the median of its runs."""
    lines = [f"\n### {question.title}\n", f"{question.note}\n"]
    lines += [f"| suite | router | {' | '.join(_COLUMNS)} | aim |", f"|---|---|{'---:|' * len(_COLUMNS)}---|"]
    for trial in _TRIALS:
        for name, result in results.items():
            if isinstance(result, harness.Missing | harness.Failed):
                continue
            found = {column: _median(result, _key(trial, column)) for column in _COLUMNS}
            if any(value is not None for value in found.values()):
                cells = " | ".join("" if value is None else _number(value) for value in found.values())
                lines.append(f"| {trial.name} | {name} | {cells} | {_aims(trial, name, found)} |")
    for name, result in results.items():
        if isinstance(result, harness.Missing):
            lines.append(f"| all | {name} | not installed ({result.package}) {'| ' * len(_COLUMNS)}|")
        elif isinstance(result, harness.Failed):
            lines.append(f"| all | {name} | FAILED: {result.reason} {'| ' * len(_COLUMNS)}|")
    return "\n".join(lines)


def _median(runs: Sequence[Figures], figure: str) -> float | None:
    values = [run[figure] for run in runs if figure in run]
    return median(values) if values else None


def _aims(trial: Trial, name: str, found: Mapping[str, float | None]) -> str:
    said: list[str] = []
    for column, aim in {_OURS: trial.aims, _LEXICAL: trial.lexical_aims}.get(name, {}).items():
        value = found[column]
        if value is None:
            continue
        met = value >= aim if column == _TOP1 else value <= aim
        sign = "≥" if column == _TOP1 else "≤"
        said.append(f"{column.partition(',')[0]} {sign} {aim:g}: {'met' if met else 'missed'}")
    return "; ".join(said)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.3f}"


_OURS: Final = "Agent Orchestra"
_LEXICAL: Final = "Agent Orchestra, words alone"
#: It admits no SDK of OpenAI as new as ours.
_SEMANTIC_ROUTER: Final = ("semantic-router==1.1.1", "onnxruntime", "tokenizers")

QUESTIONS: Final = (
    Question(
        name="routing",
        title="Whose a request is",
        note=(
            "Suites of `../shared/routing`, examples drawn by one seed. All are given the lines of the definitions "
            "beside the examples, and vectors by the same encoder where they take any (made before, and not part of "
            "the fit). A decision is timed from the text on, its embedding included, in one thread. ECE where the "
            "confidence is meant for a probability; AUROC is that of the confidence between requests that are "
            "somebody's and those that are nobody's. scikit-learn: TF-IDF of words (1 to 2) and characters (3 to 5), "
            "logistic regression with C = 10. semantic-router: `IndexedRouter` as it comes, of "
            f"{_SEMANTIC_ROUTER[0].replace('==', ' ')}, in an environment of its own. An LLM router sends the ids and "
            "descriptions of all agents with each request; its tokens, without instructions and history, are counted "
            "with the encoder's own tokenizer (WordPiece)."
        ),
        cases=(
            Case(name=_OURS, measure=ours),
            Case(name=_LEXICAL, measure=ours_lexical),
            Case(name="scikit-learn, TF-IDF and regression", measure=linear),
            Case(name="nearest centroid", measure=centroid),
            Case(name="semantic-router", measure=semantic_router, apart=_SEMANTIC_ROUTER),
            Case(name="an LLM router", measure=llm),
        ),
    ),
)
#: A round takes minutes, and accuracy is the same in each.
ROUNDS: Final = {"routing": 2, "routing-growth": 2}
#: Questions that have a table of their own form.
TABLES: Final[Mapping[str, Callable[[Question, Mapping[str, Result]], str]]] = {"routing": _table}
