from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx

from agent_orchestra.core.access import Scope
from tests.api.functions import echo
from tests.api.serving import Served, problem_of, serving
from tests.services.service import orchestra, running_service

OFFLINE = {"kind": "offline", "settings": {"knowledge": ["It is so."]}}

#: Every operation that needs a key, with the scope that it needs.
OPERATIONS: tuple[tuple[str, str, Scope, Mapping[str, Any] | None], ...] = (
    ("GET", "/v1/status", Scope.READ, None),
    ("GET", "/v1/providers", Scope.READ, None),
    ("GET", "/v1/alerts", Scope.READ, None),
    ("GET", "/v1/agents", Scope.READ, None),
    ("GET", "/v1/agents/health", Scope.READ, None),
    ("GET", "/v1/agents/resolve?action=x", Scope.READ, None),
    ("GET", "/v1/agents/x", Scope.READ, None),
    ("POST", "/v1/agents", Scope.ADMIN, {"id": "x", **OFFLINE}),
    ("PUT", "/v1/agents/x", Scope.ADMIN, OFFLINE),
    ("PATCH", "/v1/agents/x", Scope.ADMIN, {}),
    ("DELETE", "/v1/agents/x", Scope.ADMIN, None),
    ("POST", "/v1/orchestrate", Scope.RUN, {"content": "hi"}),
    ("GET", "/v1/requests/x", Scope.READ, None),
    ("GET", "/v1/requests/x/events", Scope.READ, None),
    ("POST", "/v1/conversations", Scope.RUN, {}),
    ("GET", "/v1/conversations", Scope.READ, None),
    ("GET", "/v1/conversations/x", Scope.READ, None),
    ("GET", "/v1/conversations/x/messages", Scope.READ, None),
    ("POST", "/v1/conversations/x/messages", Scope.RUN, {"content": "hi"}),
    ("POST", "/v1/conversations/x/process", Scope.RUN, {"content": "hi"}),
    ("GET", "/v1/escalations", Scope.READ, None),
    ("POST", "/v1/escalations/x/answer", Scope.ADMIN, {"output": "hi"}),
    ("POST", "/v1/escalations/x/reject", Scope.ADMIN, {"reason": "no"}),
    ("POST", "/v1/route", Scope.RUN, {"content": "hi"}),
    ("GET", "/v1/decisions", Scope.READ, None),
    ("GET", "/v1/decisions/x", Scope.READ, None),
    ("POST", "/v1/feedback", Scope.RUN, {"decision_id": "x", "opinion": "right"}),
    ("GET", "/v1/routing/report", Scope.READ, None),
    ("POST", "/v1/routing/rollback", Scope.ADMIN, None),
    ("POST", "/v1/agents/x/suggestions", Scope.ADMIN, {}),
)


async def bearer(served: Served, *scopes: Scope, tenant: str = "default") -> dict[str, str]:
    _, text = await served.orchestra.keys.create(tenant, scopes)
    return {"Authorization": f"Bearer {text}"}


async def test_every_operation_is_listed_above(served: Served) -> None:
    paths: dict[str, dict[str, Any]] = (await served.client.get("/openapi.json")).json()["paths"]
    described = {(method.upper(), path) for path, operations in paths.items() for method in operations}
    names = {"/x/": "/{}/", "?action=x": ""}
    listed: set[tuple[str, str]] = set()
    for method, path, _, _ in OPERATIONS:
        for old, changed in names.items():
            path = path.replace(old, changed)  # noqa: PLW2901
        listed.add((method, path[:-2] + "/{}" if path.endswith("/x") else path))
    plain = {(m, re.sub(r"{\w+}", "{}", p)) for m, p in described}
    assert plain - listed == {("GET", "/healthz"), ("GET", "/readyz")}
    assert listed <= plain


async def test_each_operation_needs_a_key_of_its_scope() -> None:
    async with serving(keys_required=True) as served:
        keys = {scope: await bearer(served, scope) for scope in Scope}
        order = list(Scope)
        for method, path, needed, body in OPERATIONS:
            response = await served.client.request(method, path, json=body)
            problem_of(response, 401, "unauthenticated")
            assert response.headers["www-authenticate"].startswith("Bearer")
            for scope, headers in keys.items():
                response = await served.client.request(method, path, json=body, headers=headers)
                if order.index(scope) < order.index(needed):
                    assert needed in problem_of(response, 403, "forbidden")["detail"], (method, path, scope)
                else:
                    assert response.status_code not in (401, 403), (method, path, scope)
        for path in ("/healthz", "/readyz"):
            assert (await served.client.get(path)).status_code == 200


async def test_a_refused_caller_learns_nothing_of_the_body() -> None:
    """Who has no key is told so before the body is looked at."""
    async with serving(keys_required=True) as served:
        for content in (b"{", b'{"content": 1}', b"{}"):
            response = await served.client.post(
                "/v1/orchestrate", content=content, headers={"Content-Type": "application/json"}
            )
            assert response.status_code in (400, 401), response.text
        problem_of(await served.ask("hello"), 401, "unauthenticated")


async def test_a_key_may_come_in_either_header() -> None:
    async with serving(keys_required=True) as served:
        key, text = await served.orchestra.keys.create("default", [Scope.READ])
        for headers in (
            {"Authorization": f"Bearer {text}"},
            {"Authorization": f"bearer {text}"},
            {"X-API-Key": text},
        ):
            assert (await served.client.get("/v1/status", headers=headers)).status_code == 200
        wrong = (
            {"Authorization": f"Basic {text}"},
            {"Authorization": "Bearer"},
            {"Authorization": f"Bearer {text}x"},
            {"Authorization": f"Bearer {text[:-1]}"},
            {"Authorization": f"Bearer orc_{key.id}_"},
            {"Authorization": "Bearer orc__"},
            {"Authorization": "Bearer orc_%27%20or%201=1_x"},
            {"X-API-Key": ""},
            {"X-API-Key": "ÿÿ"},
            {"X-API-Key": "x" * 10_000},
        )
        for headers in wrong:
            raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
            response = await served.client.get("/v1/status", headers=raw)
            problem_of(response, 401, "unauthenticated")
            assert text not in response.text


async def test_a_revoked_key_is_refused() -> None:
    async with serving(keys_required=True) as served:
        key, text = await served.orchestra.keys.create("default", [Scope.READ])
        headers = {"X-API-Key": text}
        assert (await served.client.get("/v1/status", headers=headers)).status_code == 200
        await served.orchestra.keys.revoke(key.id)
        problem_of(await served.client.get("/v1/status", headers=headers), 401, "unauthenticated")


async def test_a_wrong_key_is_refused_where_none_is_needed(served: Served) -> None:
    headers = {"X-API-Key": "orc_0123456789ab_wrong"}
    problem_of(await served.client.get("/v1/status", headers=headers), 401, "unauthenticated")


async def test_tenants_see_nothing_of_each_other() -> None:
    async with serving(keys_required=True) as served:
        ann = await bearer(served, Scope.ADMIN, tenant="ann")
        bob = await bearer(served, Scope.ADMIN, tenant="bob")
        client = served.client

        created = await client.post("/v1/agents", json={"id": "mine", "keywords": ["refund"], **OFFLINE}, headers=ann)
        assert created.status_code == 201
        talk = (await client.post("/v1/conversations", json={"id": "talk"}, headers=ann)).json()["id"]
        answer = (await served.ask("a refund", conversation_id=talk, headers=ann)).json()
        request_id = answer["request_id"]
        assert answer["agent"] == "mine"

        assert (await client.get("/v1/agents", headers=bob)).json()["items"] == []
        assert (await client.get("/v1/conversations", headers=bob)).json()["items"] == []
        assert (await client.get("/v1/agents/health", headers=bob)).json()["total_agents"] == 0
        for method, path, body, code in (
            ("GET", "/v1/agents/mine", None, "agent_not_found"),
            ("PATCH", "/v1/agents/mine", {"enabled": False}, "agent_not_found"),
            ("DELETE", "/v1/agents/mine", None, "agent_not_found"),
            ("GET", "/v1/conversations/talk", None, "conversation_not_found"),
            ("GET", "/v1/conversations/talk/messages", None, "conversation_not_found"),
            ("POST", "/v1/conversations/talk/messages", {"content": "hi"}, "conversation_not_found"),
            ("POST", "/v1/conversations/talk/process", {"content": "hi", "agent_id": "own"}, "conversation_not_found"),
            ("GET", "/v1/conversations?cursor=talk", None, "conversation_not_found"),
            ("GET", f"/v1/requests/{request_id}", None, "request_not_found"),
            ("GET", f"/v1/requests/{request_id}/events", None, "request_not_found"),
            ("POST", "/v1/orchestrate", {"content": "hi", "agent_id": "mine"}, "agent_not_found"),
            ("POST", "/v1/orchestrate", {"content": "a refund"}, "no_agent_matches"),
        ):
            response = await client.request(method, path, json=body, headers=bob)
            problem_of(response, 404, code)
        headers = {**bob, "Accept": "text/event-stream", "Last-Event-ID": f"{request_id}:1"}
        problem_of(await served.ask("a refund", conversation_id=talk, headers=headers), 404, "request_not_found")

        # The same names are free for another tenant.
        assert (await client.post("/v1/agents", json={"id": "mine", **OFFLINE}, headers=bob)).status_code == 201
        assert (await client.post("/v1/conversations", json={"id": "talk"}, headers=bob)).status_code == 201
        assert (await client.delete("/v1/agents/mine", headers=bob)).status_code == 204
        assert (await client.get("/v1/agents/mine", headers=ann)).status_code == 200


async def test_shared_agents_are_seen_by_all_and_changed_by_their_operator() -> None:
    async with serving(keys_required=True) as served:
        await served.has("shared", echo)
        bob = await bearer(served, Scope.ADMIN, tenant="bob")
        assert (await served.client.get("/v1/agents/shared", headers=bob)).status_code == 200
        assert (await served.ask("hello", agent_id="shared", headers=bob)).json()["output"] == "hello"
        for method, body in (("DELETE", None), ("PATCH", {"enabled": False}), ("PUT", OFFLINE)):
            response = await served.client.request(method, "/v1/agents/shared", json=body, headers=bob)
            problem_of(response, 403, "forbidden")


async def test_without_keys_only_names_of_this_machine_are_answered_to() -> None:
    async with serving(allowed_hosts=["orchestra.test"]) as served:
        for host in ("127.0.0.1", "localhost:1", "LOCALHOST", "[::1]:8100", "orchestra.test", "127.0.0.2:80"):
            response = await served.client.get("/v1/status", headers={"Host": host})
            assert response.status_code == 200, host
        for host in ("evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "10.0.0.1", "[::2]", ""):
            for path in ("/v1/status", "/healthz", "/openapi.json"):
                response = await served.client.get(path, headers={"Host": host})
                problem_of(response, 421, "unknown_host")
    async with serving(keys_required=True) as served:
        headers = {**await bearer(served, Scope.READ), "Host": "orchestra.example"}
        assert (await served.client.get("/v1/status", headers=headers)).status_code == 200


async def test_a_page_of_another_origin_can_change_nothing(served: Served) -> None:
    """Without a preflight a browser sends only bodies of types that are no JSON; a preflight is not answered."""
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""):
        response = await served.client.post(
            "/v1/conversations", content=b"{}", headers={"Content-Type": kind, "Origin": "http://evil.example"}
        )
        problem_of(response, 415, "unsupported_media_type")
    preflight = await served.client.options(
        "/v1/conversations", headers={"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"}
    )
    assert preflight.status_code == 405
    assert not [name for name in preflight.headers if name.startswith("access-control")]


def test_the_service_listens_to_other_machines_only_with_keys(tmp_path: Path) -> None:
    database = tmp_path / "orchestra.db"
    refused = orchestra("serve", "--host", "0.0.0.0", "--port", "0", "--database", database, cwd=tmp_path)
    assert refused.returncode == 2
    assert refused.stdout == ""
    assert refused.stderr.count("\n") == 1
    assert "[keys_required]" in refused.stderr
    assert "orchestra keys create" in refused.stderr


def test_a_key_of_the_command_line_opens_the_service(tmp_path: Path) -> None:
    database = tmp_path / "orchestra.db"
    made = orchestra("keys", "create", "--scope", "read", "--database", database, cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    text = made.stdout.strip()
    with running_service(tmp_path, {}, arguments=["--host", "0.0.0.0"]) as service:
        problem_of(httpx.get(f"{service.url}/v1/status"), 401, "unauthenticated")
        headers = {"Authorization": f"Bearer {text}"}
        assert httpx.get(f"{service.url}/v1/status", headers=headers).status_code == 200
        refused = httpx.post(f"{service.url}/v1/conversations", json={}, headers=headers)
        problem_of(refused, 403, "forbidden")
        secret = text.rpartition("_")[2]
        assert secret not in service.read_log()
    assert secret.encode() not in database.read_bytes()
