"""Evaluates routing on labelled requests: has each one decided as the service does, and gives the figures."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Final

from agent_orchestra.core.classifier import Judgement, Model, Vector, fit, texts_of
from agent_orchestra.core.evaluation import Prediction, Scores, quantile, score
from agent_orchestra.errors import InvalidInput
from agent_orchestra.runtime.encoding import Encoder
from agent_orchestra.suites import Request, Suite, read

__all__ = ["Evaluation", "Options", "evaluate", "figures", "rows", "run"]

#: The figures that are always printed, in this order; those after them may grow in number.
_FIGURES: Final = (
    *("n", "top1", "top3", "macro_f1", "oos_auroc", "oos_recall", "oos_precision", "in_scope_rejected", "ece"),
    *("p50_ms", "p99_ms", "fit_s"),
    *("oos", "acc_after_rejection", "brier", "switch_top1", "stay_top1", "encode_s", "examples", "agents", "encoder"),
)
#: Decisions before the first that counts.
_WARM_UP: Final = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What :func:`agent_orchestra.suites.read` takes, and a file to write: ``predictions``.

    It gets a line for each request, with ``id``, ``ranking``, ``confidence`` and ``accept``.
    """

    registry: Path
    test: Path
    train: Path | None = None
    shots: int | None = None
    label: str = "agent"
    seed: int = 0
    predictions: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """``predictions``: one for each request, in order. ``encoder``: its name.

    ``p50_ms``, ``p99_ms``: milliseconds of a decision, from the text on, its embedding included. ``encode_s``: seconds
    in which the texts of definitions and examples were embedded, which a service does once. ``fit_s``: seconds from
    there to a model that decides.
    """

    scores: Scores
    predictions: Sequence[Prediction]
    p50_ms: float | None
    p99_ms: float | None
    fit_s: float
    encode_s: float | None
    examples: int
    agents: int
    encoder: str | None


async def evaluate(options: Options, encoder: Encoder | None) -> Evaluation:
    """Without an encoder, words alone are compared.

    Raises :class:`InvalidInput` for what is wrong with a file, and :class:`EncoderFailed`.
    """
    suite = read(
        options.registry,
        options.test,
        options.train,
        shots=options.shots,
        label=options.label,
        seed=options.seed,
    )
    if options.predictions is not None:
        # What cannot be written is better known before the work than after it.
        _write(options.predictions, (), ())
    evaluation = await run(suite, encoder, seed=options.seed)
    if options.predictions is not None:
        _write(options.predictions, suite.requests, evaluation.predictions)
    return evaluation


def figures(evaluation: Evaluation) -> dict[str, float | int | str | None]:
    """The figures by their names, with four decimals; none where a figure is not defined."""
    parts = (evaluation.scores, evaluation)
    found = {field.name: getattr(part, field.name) for part in parts for field in fields(part)}
    return {name: round(found[name], 4) if isinstance(found[name], float) else found[name] for name in _FIGURES}


def rows(evaluation: Evaluation) -> list[tuple[str, str]]:
    """The figures as a table has them: the name and what stands beside it, ``-`` where a figure is not defined."""
    return [(name, "-" if value is None else str(value)) for name, value in figures(evaluation).items()]


async def run(suite: Suite, encoder: Encoder | None, *, seed: int = 0) -> Evaluation:
    """Has each request decided by itself, one after the other. Raises :class:`EncoderFailed`."""
    lines = texts_of(suite.agents)
    began = time.perf_counter()
    vectors = await _embedded(encoder, [*lines, *(example.text for example in suite.examples)])
    encoded = time.perf_counter()
    model = fit(suite.agents, suite.examples, vectors, seed=seed)
    fitted = time.perf_counter()
    for text in lines[:_WARM_UP]:
        await _decided(model, encoder, Request(id="", text=text, truth=None))
    predictions: list[Prediction] = []
    taken: list[float] = []
    for request in suite.requests:
        asked = time.perf_counter()
        judgement = await _decided(model, encoder, request)
        taken.append((time.perf_counter() - asked) * 1_000)
        predictions.append(_prediction(request, judgement, suite.labels))
    return Evaluation(
        scores=score(predictions),
        predictions=predictions,
        p50_ms=quantile(taken, 0.50),
        p99_ms=quantile(taken, 0.99),
        fit_s=fitted - encoded,
        encode_s=encoded - began if encoder is not None else None,
        examples=len(suite.examples) + sum(len(agent.examples) for agent in suite.agents),
        agents=len(suite.agents),
        encoder=encoder.name if encoder is not None else None,
    )


async def _embedded(encoder: Encoder | None, texts: Sequence[str]) -> Mapping[str, Vector]:
    texts = list(dict.fromkeys(texts))
    if encoder is None or not texts:
        return {}
    return dict(zip(texts, await encoder.encode(texts), strict=True))


async def _decided(model: Model, encoder: Encoder | None, request: Request) -> Judgement:
    """One decision as the service takes it. The last turn is embedded with the text: it is as new as the text is."""
    turn = request.turn
    vector = None
    if encoder is not None and model.dimension:
        texts = [request.text, turn.last] if turn is not None and turn.last else [request.text]
        vector, *last = await encoder.encode(texts)
        if turn is not None and last:
            turn = replace(turn, last_vector=last[0])
    return model.judge(request.text, vector, among=request.among, turn=turn)


def _prediction(request: Request, judgement: Judgement, labels: Mapping[str, str]) -> Prediction:
    return Prediction(
        truth=request.truth,
        ranking=tuple(dict.fromkeys(labels[scored.agent_id] for scored in judgement.ranked)),
        confidence=judgement.confidence,
        accepted=judgement.accepted,
        previous=request.previous,
    )


def _write(path: Path, requests: Sequence[Request], predictions: Sequence[Prediction]) -> None:
    lines = [
        {"id": request.id, "ranking": said.ranking, "confidence": said.confidence, "accept": said.accepted}
        for request, said in zip(requests, predictions, strict=True)
    ]
    try:
        path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    except OSError as error:
        raise InvalidInput(f"{path}: cannot be written: {error.strerror}") from None
