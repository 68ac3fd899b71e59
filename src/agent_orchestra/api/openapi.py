"""Completes the OpenAPI document by what FastAPI cannot know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, cast

from fastapi import FastAPI

from agent_orchestra.api import problems
from agent_orchestra.core.values import JsonObject

__all__ = ["complete"]

_OPEN_PATHS: Final = ("/healthz", "/readyz")
_TEXT: Final = {"type": "string", "pattern": "^[^\\u0000]*$"}
#: Any JSON that can be stored.
_JSON: Final[dict[str, Any]] = {
    "JsonObject": {
        "type": "object",
        "propertyNames": _TEXT,
        "additionalProperties": {"$ref": "#/components/schemas/Json"},
    },
    "Json": {
        "anyOf": [
            {"type": ["null", "boolean", "number"]},
            _TEXT,
            {"type": "array", "items": {"$ref": "#/components/schemas/Json"}},
            {"$ref": "#/components/schemas/JsonObject"},
        ]
    },
}


def complete(app: FastAPI, kinds: Mapping[str, JsonObject], *, keys_required: bool) -> None:
    """Has the app's document tell the settings of each kind of agent, the problems, and whether a key is needed."""
    plain = app.openapi

    def completed() -> dict[str, Any]:
        if app.openapi_schema is not None:
            return app.openapi_schema
        document = plain()
        schemas = document["components"]["schemas"]
        schemas["Problem"] = problems.Problem.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas.update(schemas["Problem"].pop("$defs"))
        schemas.update(_JSON)
        for schema in schemas.values():
            _any_json(schema.get("properties", {}))
        for unused in ("HTTPValidationError", "ValidationError"):
            schemas.pop(unused, None)
        for name in ("AgentDefinition", "AgentReplacement"):
            schemas[name] = _by_kind(schemas[name], kinds)
        for path, operations in document["paths"].items():
            for operation in operations.values():
                _complete_operation(operation, keys_required=keys_required and path not in _OPEN_PATHS)
        if keys_required:
            document["components"]["securitySchemes"] = {
                "bearer": {"type": "http", "scheme": "bearer"},
                "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
            }
        return document

    app.openapi = completed  # pyright: ignore[reportAttributeAccessIssue]  FastAPI's own way to extend it


def _complete_operation(operation: dict[str, Any], *, keys_required: bool) -> None:
    for parameter in operation.get("parameters", ()):
        _never_null(parameter["schema"])
    # With keys every call looks into the database.
    statuses = [421] if not keys_required else [401, 403, 503]
    if "requestBody" not in operation:
        # Who sends a body that nobody asked for is told what is wrong with it all the same.
        statuses += [413, 415]
    operation["responses"].update({str(status): text for status, text in problems.described(*statuses).items()})
    if keys_required:
        operation["security"] = [{"bearer": []}, {"header": []}]


def _any_json(properties: dict[str, dict[str, Any]]) -> None:
    """Refers to the recursive description of JSON, which pydantic's own references cannot reach."""
    for name, schema in properties.items():
        if schema.get("x-any-json"):
            kept = {key: value for key, value in schema.items() if key in ("description", "default")}
            properties[name] = {"$ref": "#/components/schemas/JsonObject", **kept}


def _never_null(schema: dict[str, Any]) -> None:
    """A parameter is there or not; FastAPI says of an optional one that it may be null."""
    alternatives = [a for a in schema.pop("anyOf", ()) if a != {"type": "null"}]
    if len(alternatives) == 1:
        schema.update(alternatives[0])
    elif alternatives:
        schema["anyOf"] = alternatives


def _by_kind(schema: dict[str, Any], kinds: Mapping[str, JsonObject]) -> dict[str, Any]:
    """One alternative for each kind, with the settings that it takes."""
    alternatives: list[dict[str, Any]] = []
    for kind, settings in kinds.items():
        properties = {**schema["properties"], "kind": {"const": kind}, "settings": _referring(settings)}
        required = sorted({*schema["required"], *(["settings"] if {"required", "oneOf"} & set(settings) else [])})
        alternatives.append(
            {**schema, "title": f"{schema['title']} ({kind})", "properties": properties, "required": required}
        )
    return {"oneOf": alternatives, "title": schema["title"]}


def _referring(schema: Any) -> Any:
    """The schema, with any JSON that can be stored wherever a kind leaves open what stands there."""
    if isinstance(schema, Mapping):
        inner = cast("Mapping[str, Any]", schema)
        if inner.get("x-any-json"):
            return {"$ref": "#/components/schemas/Json"}
        return {key: _referring(value) for key, value in inner.items()}
    if isinstance(schema, list | tuple):
        return [_referring(value) for value in cast("Sequence[Any]", schema)]
    return schema
