"""JSON Schemas (2020-12) of outputs and of tools: whether they are some, and whether a value matches one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, cast

from agent_orchestra.core.values import Json, JsonObject
from agent_orchestra.errors import Fault, OutputInvalid

if TYPE_CHECKING:
    from jsonschema_rs import Validator

__all__ = ["OBJECT_SCHEMA", "compiled", "faults_in_schema", "invalid", "matching", "mismatch", "parsed"]

_MOST_OUTPUT: Final = 4_000
_MOST_SCHEMA: Final = 65_536
_TEXT: Final[JsonObject] = {"type": "string", "pattern": "^[^\\u0000]*$"}
#: How a schema of an object is described in the schema of settings: the keys that everybody uses, and any others.
OBJECT_SCHEMA: Final[JsonObject] = {
    "type": "object",
    "properties": {
        "type": {"const": "object"},
        "properties": {
            "type": "object",
            "propertyNames": _TEXT,
            "additionalProperties": {
                "type": ["object", "boolean"],
                "propertyNames": _TEXT,
                "additionalProperties": {"x-any-json": True},
            },
        },
        "required": {"type": "array", "items": _TEXT, "uniqueItems": True},
    },
    "required": ["type"],
    "propertyNames": _TEXT,
    "additionalProperties": {"x-any-json": True},
}


def faults_in_schema(schema: Json, path: str) -> Iterator[Fault]:
    """All that keeps a value from being a JSON Schema of type object."""
    import jsonschema_rs

    if not isinstance(schema, dict):
        yield Fault(path=path, message="must be a JSON Schema of type object")
        return
    if len(json.dumps(schema)) > _MOST_SCHEMA:
        yield Fault(path=path, message=f"is longer than {_MOST_SCHEMA} characters")
        return
    try:
        compiled(schema)
    except (jsonschema_rs.ValidationError, jsonschema_rs.ReferencingError, ValueError) as error:
        where = ".".join((path, *map(str, getattr(error, "instance_path", ()))))
        yield Fault(path=where, message=f"is no JSON Schema: {_first_line(error)}")
        return
    if schema.get("type") != "object":
        yield Fault(path=f"{path}.type", message="must be 'object'")


def compiled(schema: JsonObject) -> Validator:
    """What checks values against a schema. Patterns take time that is linear in the text, and nothing is fetched.

    Raises the package's errors for what is no schema.
    """
    from jsonschema_rs import Draft202012Validator, RegexOptions

    return Draft202012Validator(dict(schema), pattern_options=RegexOptions(), offline=True)


def mismatch(value: Json, schema: Validator) -> str | None:
    """The first thing in which a value does not match, in words for whoever made it; none when it matches."""
    try:
        error = next(iter(schema.iter_errors(value)), None)
    except ValueError as unreadable:
        return f"it is no JSON: {_first_line(unreadable)}"
    if error is None:
        return None
    place = "/".join(map(str, error.instance_path))
    reason = _first_line(error)
    return f"at '{place}': {reason}" if place else reason


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def parsed(text: str) -> Json:
    """What a text in JSON says. Raises :class:`ValueError` for what is none, NaN and nesting without end included."""
    try:
        return cast("Json", json.loads(text, parse_constant=_refused))
    except RecursionError:
        raise ValueError("is nested too deep") from None


def _refused(constant: str) -> Json:
    raise ValueError(f"{constant} is no JSON")


def matching(output: str, schema: Validator, *, provider: str, model: str) -> Json:
    """The value that an output in JSON is. Raises :class:`OutputInvalid`, with the output, where it does not match."""
    try:
        value = parsed(output)
    except ValueError:
        raise invalid(output, "it is no JSON", provider=provider, model=model) from None
    if reason := mismatch(value, schema):
        raise invalid(output, reason, provider=provider, model=model)
    return value


def invalid(output: str, reason: str, *, provider: str, model: str, **data: str | float | None) -> OutputInvalid:
    """The error for an output that does not match its schema; it keeps the output."""
    known = {name: value for name, value in data.items() if value is not None}
    return OutputInvalid(
        f"the output of '{model}' does not match its schema: {reason[:300]}",
        provider=provider,
        model=model,
        output=output[:_MOST_OUTPUT],
        **known,
    )
