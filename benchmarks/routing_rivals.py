"""Rivals of our router: each learns from texts whose they are, and then decides whose others are."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, TypeAlias

__all__ = ["Decide", "Taught", "centroid", "linear", "semantic_router"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Taught:
    """What a rival learns from: all texts of agents, lines and examples alike, whose each is, and their vectors."""

    texts: Sequence[str]
    owners: Sequence[str]
    vectors: Mapping[str, Any]
    encoder: Any


#: Agents, best first, and how sure it is of the first.
Decide: TypeAlias = Callable[[str], Awaitable[tuple[Sequence[str], float]]]


def linear(taught: Taught) -> Decide:
    """N-grams of words and characters, weighted by rarity, and a logistic regression on them."""
    text: Any = import_module("sklearn.feature_extraction.text")
    pipeline: Any = import_module("sklearn.pipeline")
    models: Any = import_module("sklearn.linear_model")
    words = text.TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    characters = text.TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 5), sublinear_tf=True)
    model = pipeline.make_pipeline(
        pipeline.make_union(words, characters), models.LogisticRegression(C=10, max_iter=1_000)
    )
    model.fit(taught.texts, taught.owners)

    async def decide(text: str) -> tuple[Sequence[str], float]:
        shares = model.predict_proba([text])[0]
        best: list[int] = shares.argsort()[::-1][:5].tolist()
        return [str(model.classes_[n]) for n in best], float(shares[best[0]])

    return decide


def centroid(taught: Taught) -> Decide:
    """The agent whose texts have the mean that is nearest by its angle."""
    np: Any = import_module("numpy")
    agents = list(dict.fromkeys(taught.owners))
    owners = np.array(taught.owners)
    vectors = np.stack([taught.vectors[text] for text in taught.texts])
    means = np.stack([vectors[owners == agent].mean(axis=0) for agent in agents])
    means /= np.linalg.norm(means, axis=1, keepdims=True)

    async def decide(text: str) -> tuple[Sequence[str], float]:
        near = means @ (await taught.encoder.encode([text]))[0]
        best: list[int] = near.argsort()[::-1][:5].tolist()
        return [agents[n] for n in best], float(near[best[0]])

    return decide


def semantic_router(taught: Taught) -> Decide:
    """Its router over an index, as it comes. The encoder is asked for requests only, without a change of threads."""
    module: Any = import_module("semantic_router")
    encoders: Any = import_module("semantic_router.encoders")

    class Known(encoders.DenseEncoder):  # pyright: ignore[reportUntypedBaseClass]
        def __call__(self, docs: list[str]) -> list[list[float]]:
            return [taught.vectors[text].tolist() for text in docs]

        async def acall(self, docs: list[str]) -> list[list[float]]:
            return (await taught.encoder.encode(docs)).tolist()

    utterances: dict[str, list[str]] = {}
    for text, owner in zip(taught.texts, taught.owners, strict=True):
        utterances.setdefault(owner, []).append(text)
    routes = [module.Route(name=agent, utterances=texts) for agent, texts in utterances.items()]
    router = module.IndexedRouter(encoder=Known(name="folder"), routes=routes)

    async def decide(text: str) -> tuple[Sequence[str], float]:
        choices = await router.acall(text, limit=5)
        return [str(choice.name) for choice in choices], float(choices[0].confidence)

    return decide
