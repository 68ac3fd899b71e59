"""Conditions, scores and choices in CEL (https://cel.dev): compiled and checked when set, evaluated within bounds.

What CEL sees of JSON, and what it gives back: a text is a ``string``, true and false are ``bool``, none is ``null``, a
whole number is an ``int`` of 64 bits (beyond that a ``double``), any other a ``double``, a list is a ``list``, an
object a ``map`` of strings, whose order is not kept. A ``timestamp`` comes back as a text (RFC 3339), a ``duration`` as
seconds, a ``uint`` as a whole number; ``bytes`` and maps with other keys than strings are no JSON and are refused.
Numbers compare across types (``1 < 1.5``), but do not add: ``double(x) + 0.5``. There are the functions of the CEL
core, without extensions.

CEL ends always, but not soon: loops multiply, and ``map`` and ``filter`` copy what they have. The evaluator cannot be
stopped, so what an expression may cost is estimated from its text and from the size of what it is given, and what would
take too long is refused before it begins.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from itertools import pairwise
from typing import Final, TypeAlias, cast

from agent_orchestra.core.values import Json, JsonObject, cleaned
from agent_orchestra.errors import ExpressionFailed

__all__ = ["MAX_CHARS", "Expression", "Fields", "NotAnExpressionError", "compile"]

#: The fields that a name has, and those of each where they are known too; none where any may be there.
Fields: TypeAlias = Mapping[str, Collection[str]] | Collection[str] | None

MAX_CHARS: Final = 2_000

_MOST_LOOPS: Final = 4
_DEEPEST_LOOPS: Final = 2
#: Nanoseconds, by measurement: of one round of a loop, of copying one entry of what it has made, of one character.
_ROUND_NS: Final = 1_000
_COPY_NS: Final = 30
_CHAR_NS: Final = 1
#: Of compiling one step of a pattern, which is done anew at each use; and where it has classes of Unicode's characters.
_STEP_NS: Final = 10_000
_CLASS_STEP_NS: Final = 350_000
_MOST_NS: Final = 200_000_000
#: Characters and entries of a result that is put together.
_MOST_MADE: Final = 20_000_000

_MACROS: Final = frozenset({"all", "exists", "exists_one", "existsOne", "filter", "map"})
_TYPES: Final = frozenset({"bool", "bytes", "double", "int", "list", "map", "null_type", "string", "type", "uint"})
_FUNCTIONS: Final = frozenset(
    """
    bytes contains double duration dyn endsWith getDate getDayOfMonth getDayOfWeek getDayOfYear getFullYear getHours
    getMilliseconds getMinutes getMonth getSeconds has int matches size startsWith string timestamp type uint
    """.split()
)
_TOKEN: Final = re.compile(
    r"""
    (?P<comment> //[^\n]* )
    | (?P<text> (?:[rR][bB]?|[bB][rR]?)? (?: \"{3}.*?\"{3} | '{3}.*?'{3} ) )
    | (?P<raw> (?:[rR][bB]?|[bB][rR]) (?: "[^"\n]*" | '[^'\n]*' ) )
    | (?P<plain> [bB]? (?: "(?:[^"\\\n]|\\.)*" | '(?:[^'\\\n]|\\.)*' ) )
    | (?P<name> [A-Za-z_][A-Za-z0-9_]* )
    | (?P<number> [0-9][0-9A-Fa-fxX]* (?:\.[0-9]+)? )
    | (?P<sign> \S )
    """,
    re.VERBOSE | re.DOTALL,
)
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_CLASSES: Final = re.compile(r"\\[A-Za-z]|\(\?")
_COUNT: Final = re.compile(r"\{\s*(\d{1,9})?\s*(?:,\s*(\d{1,9})?\s*)?\}")


class NotAnExpressionError(ValueError):
    """A text that cannot be used as an expression; it says why, in words for whoever wrote it."""


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str

    def is_sign(self, sign: str) -> bool:
        return self.kind == "sign" and self.text == sign


@dataclass(frozen=True, slots=True)
class _Shape:
    """What of a text decides how long it may take.

    ``loops`` counts how deep they stand in each other, ``maps`` says whether any makes a list, ``growth`` by how much
    what is put together may outgrow what it is put together of, ``entries`` how long the longest list may be that the
    text itself writes. ``calls`` is how often a text may be read from end to end, ``steps`` the size of all patterns,
    ``patterns_ns`` what it costs to compile them once.
    """

    loops: int
    maps: bool
    growth: int
    entries: int
    calls: int
    steps: int
    patterns_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Expression:
    """A text that has been compiled. Two of the same text are equal."""

    text: str

    def evaluate(self, values: JsonObject) -> Json:
        """What the expression gives for these values. Raises :class:`ExpressionFailed`, and nothing else."""
        execute, shape = _program(self.text)
        self._bound(shape, values)
        try:
            given = execute(dict(values))
        except KeyError as error:
            raise self._failed(f"there is no {str(error)[:100]}") from error
        except Exception as error:
            raise self._failed(_first_line(error)) from error
        except BaseException as error:
            if type(error).__name__ != "PanicException":
                raise
            # The evaluator is not Python: what breaks it is no Exception, and still breaks nothing else.
            raise self._failed("the evaluator broke") from error
        return self._json(given)

    def holds(self, values: JsonObject) -> bool:
        """Whether the condition is true. Raises :class:`ExpressionFailed`, also where it is neither true nor false."""
        given = self.evaluate(values)
        if not isinstance(given, bool):
            raise self._failed(f"gave {_named(given)}, not true or false")
        return given

    def number(self, values: JsonObject) -> float:
        """The number that it gives. Raises :class:`ExpressionFailed`, also where it is none."""
        given = self.evaluate(values)
        if isinstance(given, bool) or not isinstance(given, int | float):
            raise self._failed(f"gave {_named(given)}, not a number")
        return float(given)

    def _bound(self, shape: _Shape, values: JsonObject) -> None:
        if not shape.loops and not shape.steps and shape.growth == 1:
            return
        size = _Size()
        size.add(list(values.values()))
        chars = size.longest_text * shape.growth * (shape.calls + shape.steps) + size.chars // 10
        rounds = max(size.longest, shape.entries) * shape.growth
        once = _ROUND_NS + _COPY_NS * rounds + _CHAR_NS * chars + shape.patterns_ns
        cost = once * rounds**shape.loops
        made = (size.chars + size.entries) * shape.growth
        if shape.maps:
            made = max(made, size.longest_text * shape.growth * rounds**shape.loops)
        if ((shape.loops or shape.steps) and cost > _MOST_NS) or made > _MOST_MADE:
            raise self._failed(
                f"would take too long over {size.chars} characters in lists of up to {size.longest} entries"
            )

    def _json(self, given: object) -> Json:
        kind = type(given).__name__
        if given is None or isinstance(given, bool | int | str) or (isinstance(given, float) and math.isfinite(given)):
            return given
        if isinstance(given, datetime):
            return given.isoformat()
        if isinstance(given, timedelta):
            return given.total_seconds()
        if isinstance(given, list):
            return [self._json(entry) for entry in cast("list[object]", given)]
        if isinstance(given, Mapping):
            entries = cast("Mapping[object, object]", given)
            if all(isinstance(key, str) for key in entries):
                return {str(key): self._json(value) for key, value in entries.items()}
        raise self._failed(f"gave {kind}, which is no JSON")

    def _failed(self, why: str) -> ExpressionFailed:
        shown = self.text if len(self.text) <= 80 else f"{self.text[:77]}..."
        return ExpressionFailed(cleaned(f"'{shown}': {why}"))


@dataclass(slots=True)
class _Size:
    chars: int = 0
    longest_text: int = 0
    entries: int = 0
    longest: int = 1

    def add(self, value: Json) -> None:
        if isinstance(value, str):
            self.chars += len(value)
            self.longest_text = max(self.longest_text, len(value))
        elif isinstance(value, Mapping):
            self._counted(len(value))
            for key, inner in value.items():
                self.chars += len(key)
                self.add(inner)
        elif isinstance(value, Sequence):
            self._counted(len(value))
            for inner in value:
                self.add(inner)

    def _counted(self, entries: int) -> None:
        self.entries += entries
        self.longest = max(self.longest, entries)


def compile(text: str, names: Mapping[str, Fields]) -> Expression:  # noqa: A001  expression.compile
    """An expression over these names. Of a name the fields may be given that it has, and theirs; none admits any.

    Raises :class:`NotAnExpressionError` for a text that does not compile, that uses a name, a field or a function
    that is not there (with the nearest that is), or that could take longer than any condition should.
    """
    if len(text) > MAX_CHARS:
        raise NotAnExpressionError(f"has {len(text)} characters; at most {MAX_CHARS}")
    program, _ = _compiled(text)
    tokens = _tokens(text)
    bound = set(_bound_names(tokens))
    for name, path in _fields(tokens):
        known: Fields = names.get(name) if name not in bound else None
        for field in path:
            if known is None:
                break
            if field not in known:
                raise NotAnExpressionError(f"'{name}' has no '{field}' here; {_nearest(field, known, of=name)}")
            name = f"{name}.{field}"  # noqa: PLW2901
            known = cast("Mapping[str, Collection[str]]", known)[field] if isinstance(known, Mapping) else None
    for name in program.variables():
        if name not in names and name not in bound and name not in _TYPES:
            raise NotAnExpressionError(f"there is no '{name}' here; {_nearest(name, names)}")
    for name in program.functions():
        if _NAME.fullmatch(name) and name not in _FUNCTIONS:
            raise NotAnExpressionError(f"there is no function '{name}'; {_nearest(name, _FUNCTIONS | _MACROS)}")
    return Expression(text=text)


class _Program:
    """What is used of the evaluator's own class, whose types are looser."""

    def __init__(self, text: str) -> None:
        # It costs 20 to 200 ms, for its command line.
        import cel

        try:
            program = cel.compile(text)
        except (ValueError, RuntimeError) as error:
            raise NotAnExpressionError(_syntax(str(error))) from None
        self.execute: Callable[[dict[str, object]], object] = program.execute
        self.variables: Callable[[], list[str]] = program.variables
        self.functions: Callable[[], list[str]] = program.functions


@lru_cache(maxsize=1_024)
def _compiled(text: str) -> tuple[_Program, _Shape]:
    # What is too much to run is too much to compile.
    shape = _shape(_tokens(text))
    return _Program(text), shape


def _program(text: str) -> tuple[Callable[[dict[str, object]], object], _Shape]:
    program, shape = _compiled(text)
    return program.execute, shape


def _tokens(text: str) -> list[_Token]:
    return [
        _Token(str(found.lastgroup), found.group()) for found in _TOKEN.finditer(text) if found.lastgroup != "comment"
    ]


def _shape(tokens: Sequence[_Token]) -> _Shape:
    """Reads the text for loops, for what puts values together, and for patterns. Errs on the dear side."""
    loops = deepest = commas = 0
    #: What every open bracket is: a loop or not; and how much is put together in each loop and outside of all.
    open_: list[bool] = []
    grown: list[int] = [1]
    growths: list[int] = []
    names = {number + 3 for number in _loops(tokens)}
    for number, (before, token) in enumerate(pairwise([_Token("sign", ""), *tokens])):
        if token.kind != "sign" or number in names:
            # The comma behind the name in a loop puts nothing together.
            continue
        if token.text in "([{":
            is_loop = token.text == "(" and before.kind == "name" and before.text in _MACROS
            open_.append(is_loop)
            if is_loop:
                loops += 1
                deepest = max(deepest, sum(open_))
                grown.append(1)
        elif token.text in ")]}" and open_:
            if open_.pop():
                growths.append(grown.pop())
        elif token.text in "+,":
            grown[-1] += 1
            commas += 1
    if loops > _MOST_LOOPS:
        raise NotAnExpressionError(f"has {loops} loops (map, filter, all, exists); at most {_MOST_LOOPS}")
    if deepest > _DEEPEST_LOOPS:
        raise NotAnExpressionError(f"has loops {deepest} deep in each other; at most {_DEEPEST_LOOPS}")
    steps = patterns_ns = 0
    for pattern in _patterns(tokens):
        size = _steps(pattern)
        steps += size
        patterns_ns += size * (_CLASS_STEP_NS if _CLASSES.search(pattern) else _STEP_NS)
    if patterns_ns > _MOST_NS:
        raise NotAnExpressionError(
            "has too large a pattern in 'matches'; count less in it, or write out classes as [a-z]"
        )
    growth = math.prod([*growths, *grown])
    calls = sum(token.is_sign("(") or token.is_sign("=") for token in tokens)
    return _Shape(
        loops=deepest,
        maps=any(token.text == "map" for token in tokens),
        growth=growth,
        entries=commas + 1,
        calls=calls,
        steps=steps,
        patterns_ns=patterns_ns,
    )


def _patterns(tokens: Sequence[_Token]) -> Iterator[str]:
    """The patterns of a text. One that is only known when it is used could be anything, and is refused."""
    for number, token in enumerate(tokens):
        if token.text != "matches" or not tokens[number + 1 : number + 2] or not tokens[number + 1].is_sign("("):
            continue
        pattern, behind = (*tokens[number + 2 : number + 4], _Token("", ""), _Token("", ""))[:2]
        if pattern.kind not in {"raw", "plain", "text"} or not behind.is_sign(")"):
            raise NotAnExpressionError("the pattern of 'matches' must stand there as a text: x.matches('^a+$')")
        yield pattern.text


def _steps(pattern: str) -> int:
    """How large a pattern is once its counts are written out: those of groups multiply."""
    single = nested = 1
    for found in _COUNT.finditer(pattern):
        count = max((int(number) for number in found.groups() if number), default=1)
        if found.string[found.start() - 1] in ")}":
            nested *= count
        else:
            single = max(single, count)
    return len(pattern) * max(single, 1) * max(nested, 1)


def _bound_names(tokens: Sequence[_Token]) -> Iterator[str]:
    """The names that loops give to what they go over."""
    for number in _loops(tokens):
        yield tokens[number + 2].text


def _loops(tokens: Sequence[_Token]) -> Iterator[int]:
    """Where ``map(name,`` and its like begin."""
    for number in range(len(tokens) - 3):
        macro, bracket, name, comma = tokens[number : number + 4]
        if macro.text in _MACROS and bracket.is_sign("(") and name.kind == "name" and comma.is_sign(","):
            yield number


def _fields(tokens: Sequence[_Token]) -> Iterator[tuple[str, list[str]]]:
    """The fields that are taken of names, and of these, as ``name.field`` or ``name['field']``."""
    for number, token in enumerate(tokens):
        if token.kind == "name" and not (number and tokens[number - 1].is_sign(".")):
            path: list[str] = []
            place = number + 1
            while (step := _field(tokens, place)) is not None:
                path.append(step[0])
                place = step[1]
            if path:
                yield token.text, path


def _field(tokens: Sequence[_Token], place: int) -> tuple[str, int] | None:
    """The field that is taken at a place, and where what follows begins; none where none is."""
    mark, field, after = (*tokens[place : place + 3], *[_Token("", "")] * 3)[:3]
    if mark.is_sign(".") and field.kind == "name":
        return None if after.is_sign("(") else (field.text, place + 2)
    if mark.is_sign("[") and field.kind == "plain" and "\\" not in field.text and field.text[0] in "'\"":
        return field.text[1:-1], place + 3
    return None


def _nearest(name: str, known: Collection[str], *, of: str = "") -> str:
    near = difflib.get_close_matches(name, known, n=1)
    if not near:
        # `results.my-agent` is read as a difference.
        near = [one for one in known if one.startswith(f"{name}-")][:1]
    if near:
        if not of:
            return f"did you mean '{near[0]}'?"
        return f"did you mean {of}.{near[0]}?" if _NAME.fullmatch(near[0]) else f"did you mean {of}['{near[0]}']?"
    return f"known: {', '.join(sorted(known)[:20])}" if known else "nothing comes before it"


def _syntax(said: str) -> str:
    """The first complaint of the parser, without the text that it repeats."""
    if "recursion limit" in said.casefold():
        return "is nested too deep"
    found = re.search(r"ERROR: <input>:(\d+):(\d+): (?:Syntax error: )?(.*)", said)
    if found is None:
        return "is not an expression in CEL"
    line, column, why = found.groups()
    return f"is not an expression in CEL: line {line}, column {column}: {why[:200]}"


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _named(given: Json) -> str:
    if given is None:
        return "null"
    if isinstance(given, str):
        return "a text"
    if isinstance(given, bool | int | float):
        return str(given).lower()
    return "a list" if isinstance(given, Sequence) else "a map"
