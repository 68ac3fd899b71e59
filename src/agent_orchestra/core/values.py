"""The few value types that every part shares, and what makes a value fit to be stored."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Final, TypeAlias

from agent_orchestra.errors import Fault

__all__ = ["Json", "JsonObject", "cleaned", "faults_in", "is_number", "nearest"]

Json: TypeAlias = "bool | int | float | str | Sequence[Json] | Mapping[str, Json] | None"
JsonObject: TypeAlias = Mapping[str, Json]

_DEEPEST: Final = 50
#: How many choices a sentence names.
_SHOWN: Final = 40
_UNSTORABLE: Final = re.compile("[\0\ud800-\udfff]")


def faults_in(path: str, value: Json, *, depth: int = 0) -> Iterator[Fault]:
    """What in a value cannot be stored: NUL and half characters, numbers that are none, nesting without end."""
    if isinstance(value, str):
        if cleaned(value) != value:
            yield Fault(path=path, message="has a NUL, or half of a surrogate pair; leave such characters out")
    elif isinstance(value, float):
        if not math.isfinite(value):
            yield Fault(path=path, message="is not a finite number")
    elif depth >= _DEEPEST and isinstance(value, Mapping | Sequence):
        yield Fault(path=path, message=f"is nested more than {_DEEPEST} deep")
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from faults_in(path, key, depth=depth + 1)
            yield from faults_in(f"{path}.{key}", inner, depth=depth + 1)
    elif isinstance(value, Sequence):
        for number, inner in enumerate(value):
            yield from faults_in(f"{path}.{number}", inner, depth=depth + 1)


def is_number(given: object) -> bool:
    """Whether a value is a finite number: what a caller in Python gives is of whatever type."""
    return isinstance(given, int | float) and not isinstance(given, bool) and math.isfinite(given)


def nearest(given: str, known: Collection[str]) -> str:
    """The valid choice that is nearest to a wrong one, or else all of them: the end of a sentence."""
    near = difflib.get_close_matches(given, known, n=1)
    return f"did you mean '{near[0]}'?" if near else f"known: {', '.join(list(known)[:_SHOWN])}"


def cleaned(text: str) -> str:
    """The text with U+FFFD for each character that no database can hold. Most texts come back as they are."""
    return text if text.isascii() and "\0" not in text else _UNSTORABLE.sub("\ufffd", text)
