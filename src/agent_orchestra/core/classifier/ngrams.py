"""A text as a short vector of its words and parts of words: the floor that stands without any encoder.

Words, pairs of neighbouring words and the character 3- to 5-grams of each word are weighted by their rarity, and
projected to a fixed width by signed hashing (K. Weinberger et al., "Feature Hashing for Large Scale Multitask
Learning", ICML 2009).
"""

from __future__ import annotations

import itertools
import math
import re
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from agent_orchestra.core.classifier.arrays import Floats, Ints
from agent_orchestra.core.words import singular

__all__ = ["READ_CHARS", "STOP_WORDS", "WIDTH", "Rarity", "Sketch", "Sketcher", "count"]

#: Length of a sketch.
WIDTH: Final = 1_024
#: Only so much of a text is read: work is bounded, and no request says what it wants after that.
READ_CHARS: Final = 8_000
_READ_WORDS: Final = 256
_LONGEST_WORD: Final = 40
_BUCKETS: Final = 1 << 18
_CACHED: Final = 50_000
#: Texts that are sketched at once, which bounds what that needs to some megabytes.
_TOGETHER: Final = 256
#: Knuth's multiplicative hashing, by the golden ratio; place and sign come from different bits of it.
_MULTIPLIER: Final = 0x9E3779B1
_MASK: Final = 0xFFFFFFFF
_SIGN: Final = 0x8000

#: Scripts that put no spaces between words: each character is a word there, and so each pair of them a bigram.
_UNSPACED: Final = r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD: Final = re.compile(rf"[{_UNSPACED}]|[^\W_{_UNSPACED}]+")

STOP_WORDS: Final = frozenset(
    """
    a about all am an and any are as at be been but by can could d did do does don for from get give go had has have he
    hello help her hey hi him his how i if in into is it its just know let like ll m me my need no not of off okay on or
    our out please re s she should so some t tell than thank thanks that the their them then there these they this those
    to up us ve very want was we were what when where which who why will with would yes you your
    """.split()
)


class Sketch(NamedTuple):
    """``values``: (WIDTH,), of length one, or less where words are unknown. ``coverage``: the share of the words'
    weight that belongs to known words, in [0, 1].
    """

    values: Floats
    coverage: float


class _Pair(NamedTuple):
    """Where two words that follow each other stand in a sketch. A pair that no text of the registry has weighs nothing
    there, since all that it could meet is chance; ``lost`` is its squared weight, which still counts as length.
    """

    place: int
    weight: float
    lost: float


class _Word(NamedTuple):
    """The same of a word, with the places and signed weights of its parts that are known. ``rarity``: its weight, known
    or not.
    """

    places: Ints
    weights: Floats
    parts_lost: float
    place: int
    weight: float
    lost: float
    rarity: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Rarity:
    """In how many of how many texts a feature occurs. ``counts``: by bucket of the feature's hash."""

    documents: int
    counts: Ints

    @classmethod
    def of(cls, documents: int, buckets: Ints, counts: Ints) -> Rarity:
        """From the counts of some buckets; raises IndexError for one that there is not."""
        every = np.zeros(_BUCKETS, np.int64)
        every[buckets] = counts
        return cls(documents=documents, counts=every)

    def seen(self, texts: Iterable[str]) -> Rarity:
        """The same, with the features of these texts known, though no more frequent than those seen once."""
        counts = self.counts.copy()
        for text in texts:
            buckets = _buckets(text)
            counts[buckets] = np.maximum(counts[buckets], 1)
        return Rarity(documents=self.documents, counts=counts)


def count(texts: Iterable[str]) -> Rarity:
    """The rarity of all features in these texts."""
    counts = np.zeros(_BUCKETS, np.int64)
    documents = 0
    for text in texts:
        counts[_buckets(text)] += 1
        documents += 1
    return Rarity(documents=documents, counts=counts)


class Sketcher:
    """Makes sketches. What it finds out about a word it keeps, up to a bound; it may be shared by threads."""

    def __init__(self, rarity: Rarity, *, stop_share: float = 1.0, known_from: int = 1) -> None:
        """``stop_share``: what a word that carries no matter counts, beside one that does. ``known_from``: in how many
        texts a feature occurs that is known; with 2, a text that was counted is seen as if it had not been.
        """
        self._stop_share = stop_share
        self._known = rarity.counts >= known_from
        self._idf = np.log((1 + rarity.documents) / (1 + rarity.counts)) + 1
        self._words: dict[str, _Word] = {}
        self._pairs: dict[tuple[str, str], _Pair] = {}

    def sketch(self, text: str) -> Sketch:
        words = _words_of(text)
        if not words:
            return Sketch(np.zeros(WIDTH, np.float32), 0.0)
        entries = [self._words.get(word) or self._word(word) for word in words]
        pairs = [self._pairs.get(pair) or self._pair(pair) for pair in itertools.pairwise(words)]
        by_words = np.bincount(
            [entry.place for entry in entries] + [pair.place for pair in pairs],
            [entry.weight for entry in entries] + [pair.weight for pair in pairs],
            WIDTH,
        )
        by_parts = np.bincount(
            np.concatenate([entry.places for entry in entries]),
            np.concatenate([entry.weights for entry in entries]),
            WIDTH,
        )
        lost = sum(entry.lost for entry in entries) + sum(pair.lost for pair in pairs)
        values = by_words * _to_half(by_words, lost)
        values += by_parts * _to_half(by_parts, sum(entry.parts_lost for entry in entries))
        known = sum(entry.rarity for entry in entries if entry.weight)
        return Sketch(values.astype(np.float32), known / sum(entry.rarity for entry in entries))

    def sketches(self, texts: Sequence[str]) -> Floats:
        """(texts, WIDTH): the values of the sketches of many texts, in a fraction of the time that one by one takes."""
        parts = [self._together(texts[begin : begin + _TOGETHER]) for begin in range(0, len(texts), _TOGETHER)]
        return np.concatenate([np.zeros((0, WIDTH), np.float32), *parts])

    def _together(self, texts: Sequence[str]) -> Floats:
        spoken = [_words_of(text) for text in texts]
        entries = [self._words.get(word) or self._word(word) for words in spoken for word in words]
        pairs = [self._pairs.get(pair) or self._pair(pair) for words in spoken for pair in itertools.pairwise(words)]
        rows = np.repeat(np.arange(len(texts)), [len(words) for words in spoken])
        pair_rows = np.repeat(np.arange(len(texts)), [max(len(words) - 1, 0) for words in spoken])
        values = _halves(
            len(texts),
            np.r_[rows, pair_rows],
            np.array([entry.place for entry in (*entries, *pairs)], np.int64),
            np.array([entry.weight for entry in (*entries, *pairs)]),
            np.bincount(np.r_[rows, pair_rows], np.array([entry.lost for entry in (*entries, *pairs)]), len(texts)),
        )
        values += _halves(
            len(texts),
            np.repeat(rows, [len(entry.places) for entry in entries]),
            np.concatenate([np.zeros(0, np.int64), *(entry.places for entry in entries)]),
            np.concatenate([np.zeros(0), *(entry.weights for entry in entries)]),
            np.bincount(rows, np.array([entry.parts_lost for entry in entries]), len(texts)),
        )
        return values.astype(np.float32)

    def _word(self, word: str) -> _Word:
        share = self._stop_share if word in STOP_WORDS else 1.0
        places, weights, lost = self._weighed(_hashes(word), share)
        known = weights != 0
        known[0] = False
        entry = _Word(
            places=places[known],
            weights=weights[known],
            parts_lost=float(lost[1:].sum()),
            place=int(places[0]),
            weight=float(weights[0]),
            lost=float(lost[0]),
            rarity=float(abs(weights[0]) or math.sqrt(lost[0])),
        )
        if len(self._words) < _CACHED:
            self._words[word] = entry
        return entry

    def _pair(self, pair: tuple[str, str]) -> _Pair:
        share = self._stop_share if pair[0] in STOP_WORDS and pair[1] in STOP_WORDS else 1.0
        hashed = _pair_hash(*pair)
        mixed = (hashed * _MULTIPLIER) & _MASK
        place, weight = (mixed >> 16) & (WIDTH - 1), float(self._idf[hashed >> 14]) * share
        if self._known[hashed >> 14]:
            entry = _Pair(place, weight if mixed & _SIGN else -weight, 0.0)
        else:
            entry = _Pair(place, 0.0, weight * weight)
        if len(self._pairs) < _CACHED:
            self._pairs[pair] = entry
        return entry

    def _weighed(self, hashes: Ints, share: float) -> tuple[Ints, Floats, Floats]:
        """Places, signed weights, zero for what no text has, and the squared weights of that."""
        buckets, places, signs = _placed(hashes)
        weights = self._idf[buckets] * share
        known = self._known[buckets]
        return places, np.where(known, weights * signs, 0.0), np.where(known, 0.0, weights**2)


def _to_half(block: NDArray[Any], lost: float) -> float:
    """What scales a block, with what it lost, to a squared length of one half."""
    return math.sqrt(0.5 / max(float(block @ block) + lost, 1e-12))


def _halves(texts: int, rows: Ints, places: Ints, weights: Floats, lost: NDArray[Any]) -> Floats:
    """(texts, WIDTH): weights at their places, each row scaled as :func:`_to_half` does."""
    block = np.bincount(rows * WIDTH + places, weights, texts * WIDTH).reshape(texts, WIDTH)
    block *= np.sqrt(0.5 / np.maximum((block * block).sum(1) + lost, 1e-12))[:, None]
    return block


def _words_of(text: str) -> list[str]:
    return [word[:_LONGEST_WORD] for word in _WORD.findall(text[:READ_CHARS].casefold())[:_READ_WORDS]]


@lru_cache(maxsize=8_192)
def _hashes(word: str) -> Ints:
    """The hash of a word, then those of its parts: counted, then known, then weighed, a word is asked for thrice."""
    padded = f" {word} "
    parts = [padded[at : at + size] for size in (3, 4, 5) for at in range(max(1, len(padded) - size + 1))]
    return np.array([zlib.crc32(part.encode()) for part in (f"w{singular(word)}", *parts)], np.int64)


def _pair_hash(first: str, second: str) -> int:
    return zlib.crc32(f"{singular(first)} {singular(second)}".encode())


def _buckets(text: str) -> Ints:
    """Of all features of a text, some of them twice: an index that adds to an array adds once to each place."""
    words = _words_of(text)
    if not words:
        return np.zeros(0, np.int64)
    pairs = [_pair_hash(*pair) for pair in itertools.pairwise(words)]
    hashes = np.concatenate([*(_hashes(word) for word in dict.fromkeys(words)), np.array(pairs, np.int64)])
    return hashes >> 14


def _placed(hashes: Ints) -> tuple[Ints, Ints, Floats]:
    """Bucket, place in the sketch, and sign of each hash; the three come from different bits."""
    mixed = (hashes * _MULTIPLIER) & _MASK
    return hashes >> 14, (mixed >> 16) & (WIDTH - 1), np.where(mixed & _SIGN, 1.0, -1.0)
