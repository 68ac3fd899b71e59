from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import pytest

from agent_orchestra.core.agent import RESERVED_IDS
from tests.api.serving import PROBLEM, Served, serving
from tests.services.service import environment, running_service

#: Agents that answer everything, so that what is found is a fault of the service.
AGENTS = [
    {
        "id": "notes",
        "kind": "offline",
        "capabilities": ["refunds"],
        "keywords": ["refund"],
        "settings": {"knowledge": ["Refunds take five days."]},
    },
    {"id": "echo", "kind": "function", "settings": {"function": "tests.api.functions:echo"}},
]
CONFIG = Path(__file__).with_name("schemathesis.toml")
SETTINGS = {
    "agents": AGENTS,
    "orchestrator": {"fallback_agent": "echo"},
    "functions": {"allowed_modules": ["tests.api.functions"]},
    "logs": {"level": "warning"},
}


@pytest.mark.slow
@pytest.mark.timeout(150)
def test_schemathesis_finds_nothing(tmp_path: Path) -> None:
    """Thousands of requests made from the OpenAPI document: no server error, no answer that is not described."""
    command = [
        *(str(Path(sys.executable).with_name("schemathesis")), "--config-file", str(CONFIG), "run"),
        *("--checks", "all", "--max-examples", "10", "--max-failures", "50", "--continue-on-failure"),
        *("--generation-deterministic", "--no-color", "--warnings", "off"),
        # Long texts take long to make, and this machine may be slow: neither says anything about the service.
        *("--suppress-health-check", "too_slow,data_too_large,large_base_example,filter_too_much"),
    ]
    with running_service(tmp_path, SETTINGS) as service:
        done = subprocess.run(
            [*command, f"{service.url}/openapi.json"],
            cwd=tmp_path,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=140,
            check=False,
        )
        said = "\n".join(line[:500] for line in (done.stdout + done.stderr).splitlines())
        assert done.returncode == 0, said
        assert service.stop() == 0
        assert "Traceback" not in service.read_log()


async def document_of(served: Served) -> dict[str, Any]:
    document: dict[str, Any] = (await served.client.get("/openapi.json")).json()
    return document


def operations(document: Mapping[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


async def test_every_problem_is_described_as_one(served: Served) -> None:
    document = await document_of(served)
    problem = document["components"]["schemas"]["Problem"]
    assert {"type", "title", "status", "detail", "code", "retryable"} <= set(problem["required"])
    for path, method, operation in operations(document):
        for status, response in operation["responses"].items():
            if int(status) >= 400 and path != "/readyz":
                schema = response["content"][PROBLEM]["schema"]
                assert schema == {"$ref": "#/components/schemas/Problem"}, (path, method, status)
    assert "HTTPValidationError" not in document["components"]["schemas"]


async def test_names_of_operations_are_stable_and_their_own(served: Served) -> None:
    names = [operation["operationId"] for _, _, operation in operations(await document_of(served))]
    assert len(names) == len(set(names))
    assert {"orchestrate", "register_agent", "list_agents", "create_conversation", "process_message"} <= set(names)


async def test_the_settings_of_an_agent_follow_from_its_kind(served: Served) -> None:
    schemas = (await document_of(served))["components"]["schemas"]
    for name in ("AgentDefinition", "AgentReplacement"):
        kinds = {one["properties"]["kind"]["const"]: one for one in schemas[name]["oneOf"]}
        assert set(kinds) == {"function", "offline", "prompt", "team"}
        assert "knowledge" in kinds["offline"]["properties"]["settings"]["properties"]
        assert "function" in kinds["function"]["properties"]["settings"]["properties"]
        for one in kinds.values():
            assert {"kind", "settings"} <= set(one["required"])
            assert one["additionalProperties"] is False
    identity = schemas["AgentDefinition"]["oneOf"][0]["properties"]["id"]
    assert set(identity["not"]["enum"]) == RESERVED_IDS


async def test_a_parameter_is_there_or_not_and_never_null(served: Served) -> None:
    for path, method, operation in operations(await document_of(served)):
        for parameter in operation.get("parameters", ()):
            alternatives = cast("list[dict[str, Any]]", parameter["schema"].get("anyOf", []))
            assert {"type": "null"} not in alternatives, (path, method, parameter["name"])


async def test_an_answer_is_described_as_document_and_as_stream(served: Served) -> None:
    paths = (await document_of(served))["paths"]
    for path in ("/v1/orchestrate", "/v1/conversations/{conversation_id}/process"):
        content = paths[path]["post"]["responses"]["200"]["content"]
        assert set(content) == {"application/json", "text/event-stream"}
        assert content["application/json"]["schema"] == {"$ref": "#/components/schemas/AnswerOut"}


async def test_every_reference_leads_somewhere(served: Served) -> None:
    document = await document_of(served)

    def references(value: object) -> Iterator[str]:
        if isinstance(value, dict):
            inner = cast("dict[str, object]", value)
            if isinstance(reference := inner.get("$ref"), str):
                yield reference
            for one in inner.values():
                yield from references(one)
        elif isinstance(value, list):
            for one in cast("list[object]", value):
                yield from references(one)

    found = set(references(document))
    assert found
    assert {reference.rpartition("/")[2] for reference in found} <= set(document["components"]["schemas"])


async def test_keys_are_described_where_they_are_needed(served: Served) -> None:
    assert "securitySchemes" not in (await document_of(served))["components"]
    async with serving(keys_required=True) as guarded:
        document = await document_of(guarded)
    assert document["components"]["securitySchemes"] == {
        "bearer": {"type": "http", "scheme": "bearer"},
        "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
    }
    for path, _, operation in operations(document):
        if path in ("/healthz", "/readyz"):
            assert "security" not in operation
        else:
            assert operation["security"] == [{"bearer": []}, {"header": []}]
            assert {"401", "403"} <= set(operation["responses"])
