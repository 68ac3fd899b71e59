"""The words of a text, as an index of passages wants them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Final

__all__ = ["singular", "terms"]

_WORD = re.compile(r"[^\W_]+")
_STOP_WORDS: Final = frozenset(
    """
    a about am an and any are as at be been but by can could did do does for from get had has have hello hey hi how i if
    in into is it its just like me my need no not of on or our please she he should so some tell than thank thanks that
    the their them then there these they this to us very want was we were what when where which who why will with would
    yes you your
    """.split()
)


def terms(text: str) -> Iterator[str]:
    """The words of a text in order, folded: no case, no plural s, no stop words.

    Plurals are folded by the S-stemmer (D. Harman, "How effective is suffixing?", JASIS 42(1), 1991), and by one rule
    more: after a sibilant the ending is "es", so that "crashes" meets "crash".
    """
    for match in _WORD.finditer(text.casefold()):
        word = match.group()
        if word not in _STOP_WORDS:
            yield singular(word)


@lru_cache(maxsize=8_192)
def singular(word: str) -> str:
    """A folded word without its plural ending; see :func:`terms`."""
    if len(word) <= 3 or not word.endswith("s"):
        return word
    if word.endswith("ies") and word[-4] not in "ae":
        return word[:-3] + "y"
    if word.endswith(("ses", "xes", "zes", "ches", "shes")):
        return word[:-2]
    if word.endswith("es") and word[-3] not in "aeo":
        return word[:-1]
    return word if word[-2] in "us" else word[:-1]
