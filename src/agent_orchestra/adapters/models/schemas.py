"""JSON Schemas (2020-12) of outputs and of tools: whether they are some, and whether a value matches one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final, cast

from agent_orchestra.core.values import Json, JsonObject
from agent_orchestra.errors import Fault, OutputInvalid

if TYPE_CHECKING:
    from jsonschema.exceptions import ValidationError

__all__ = ["OBJECT_SCHEMA", "faults_in_schema", "matching", "mismatch"]

_MOST_OUTPUT: Final = 4_000
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
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import SchemaError

    if not isinstance(schema, dict):
        yield Fault(path=path, message="must be a JSON Schema of type object")
        return
    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        where = ".".join((path, *map(str, error.absolute_path)))
        yield Fault(path=where, message=f"is no JSON Schema: {error.message[:200]}")
        return
    if schema.get("type") != "object":
        yield Fault(path=f"{path}.type", message="must be 'object'")
    for reference in _references(schema):
        if not _resolves(schema, reference):
            yield Fault(path=path, message=f"refers to '{reference[:100]}', which is not in it")


def _references(schema: Json) -> Iterator[str]:
    if isinstance(schema, dict):
        for key, value in schema.items():
            if key in ("$ref", "$dynamicRef") and isinstance(value, str):
                yield value
            else:
                yield from _references(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from _references(value)


def _resolves(schema: Any, reference: str) -> bool:
    if reference == "#":
        return True
    if not reference.startswith("#/"):
        return False
    found: Any = schema
    for part in reference[2:].split("/"):
        key = part.replace("~1", "/").replace("~0", "~")
        if not isinstance(found, dict) or key not in found:
            return False
        found = cast("dict[str, Any]", found)[key]
    return True


def mismatch(value: Json, schema: JsonObject) -> str | None:
    """The first thing in which a value does not match, in words for whoever made it; none when it matches."""
    from jsonschema import Draft202012Validator, exceptions

    # The package's types leave open what its validators find.
    validator: Any = Draft202012Validator(schema)
    error = cast("ValidationError | None", cast("Any", exceptions).best_match(validator.iter_errors(value)))
    if error is None:
        return None
    place = "/".join(map(str, error.absolute_path))
    return f"at '{place}': {error.message}" if place else error.message


def matching(output: str, schema: JsonObject, *, provider: str, model: str) -> Json:
    """The value that an output in JSON is. Raises :class:`OutputInvalid`, with the output, where it does not match."""
    try:
        value = cast("Json", json.loads(output))
    except ValueError:
        raise invalid(output, "it is no JSON", provider=provider, model=model) from None
    if reason := mismatch(value, schema):
        raise invalid(output, reason, provider=provider, model=model)
    return value


def invalid(output: str, reason: str, *, provider: str, model: str) -> OutputInvalid:
    """The error for an output that does not match its schema; it keeps the output."""
    return OutputInvalid(
        f"the output of '{model}' does not match its schema: {reason[:300]}",
        provider=provider,
        model=model,
        output=output[:_MOST_OUTPUT],
    )
