"""What was learned, apart from the definitions that it is applied to; it can be kept as bytes."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from agent_orchestra.core.classifier.arrays import Floats, Vector
from agent_orchestra.core.classifier.calibration import Calibration
from agent_orchestra.core.classifier.corpus import Topic, checked
from agent_orchestra.core.classifier.lines import Example
from agent_orchestra.core.classifier.ngrams import WIDTH, Rarity

__all__ = ["Knowledge", "dump", "load"]

#: Of the bytes; others are refused, since sketches of another form mean nothing to these coefficients.
_FORMAT: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Knowledge:
    """``coefficients``: (dimension + WIDTH + 1, topics), none where there was nothing to learn from. ``examples``:
    those that no definition holds, with their ``vectors``. ``loss``: out-of-fold, in nats, the weighted mean of the
    examples that are somebody's. ``fitted_on``: how many examples there were.
    """

    dimension: int
    rarity: Rarity
    calibration: Calibration
    topics: tuple[Topic, ...] = ()
    coefficients: Floats | None = None
    examples: tuple[Example, ...] = ()
    vectors: Mapping[str, Vector] = field(default_factory=dict[str, Vector])
    loss: float | None = None
    fitted_on: int = 0


def dump(known: Knowledge) -> bytes:
    """The knowledge as an ``npz`` archive without pickled objects."""
    buckets = np.flatnonzero(known.rarity.counts)
    with_vectors = [number for number, example in enumerate(known.examples) if example.text in known.vectors]
    words = {
        "format": _FORMAT,
        "width": WIDTH,
        "dimension": known.dimension,
        "documents": known.rarity.documents,
        "topics": known.topics,
        "threshold": known.calibration.threshold,
        "examples": [(example.text, example.agent_id, example.weight) for example in known.examples],
        "loss": known.loss,
        "fitted_on": known.fitted_on,
    }
    arrays: dict[str, Any] = {
        "words": np.frombuffer(json.dumps(words).encode(), np.uint8),
        "buckets": buckets.astype(np.uint32),
        "counts": known.rarity.counts[buckets].astype(np.uint32),
        "mix": known.calibration.mix,
        "inside": known.calibration.inside,
        "right": known.calibration.right,
        "encoded": np.array(with_vectors, np.int64),
        "vectors": np.array([known.vectors[known.examples[n].text] for n in with_vectors], np.float32),
    }
    if known.coefficients is not None:
        arrays["coefficients"] = known.coefficients
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def load(learned: bytes) -> Knowledge:
    """What :func:`dump` wrote. Raises ValueError for anything else."""
    try:
        with np.load(io.BytesIO(learned), allow_pickle=False) as archive:
            arrays: dict[str, Any] = {name: archive[name] for name in archive.files}
        words = json.loads(arrays["words"].tobytes())
        return _knowledge(words, arrays)
    except (ValueError, KeyError, TypeError, EOFError, OSError, IndexError, zipfile.BadZipFile) as error:
        raise ValueError(f"what was learned cannot be read: {error}") from None


def _knowledge(words: dict[str, Any], arrays: dict[str, Any]) -> Knowledge:
    if (words["format"], words["width"]) != (_FORMAT, WIDTH):
        raise ValueError("it is of another format")
    rarity = Rarity.of(words["documents"], arrays["buckets"], arrays["counts"])
    examples = tuple(Example(text=text, agent_id=agent, weight=weight) for text, agent, weight in words["examples"])
    dimension = int(words["dimension"])
    encoded = zip(arrays["encoded"], arrays["vectors"], strict=True)
    coefficients = arrays.get("coefficients")
    topics = tuple(Topic(agent, name) for agent, name in words["topics"])
    if coefficients is not None and coefficients.shape != (dimension + WIDTH + 1, len(topics)):
        raise ValueError("its coefficients do not fit its topics")
    return Knowledge(
        dimension=dimension,
        rarity=rarity,
        calibration=Calibration(
            mix=arrays["mix"], inside=arrays["inside"], right=arrays["right"], threshold=float(words["threshold"])
        ),
        topics=topics,
        coefficients=coefficients,
        examples=examples,
        vectors={examples[int(number)].text: checked(vector, dimension) for number, vector in encoded},
        loss=words["loss"],
        fitted_on=int(words["fitted_on"]),
    )
