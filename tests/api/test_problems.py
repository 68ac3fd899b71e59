from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import AsyncIterator, Generator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from agent_orchestra import Limits
from tests.api.functions import SECRET, echo
from tests.api.serving import Served, problem_of, serving
from tests.services.service import Service, running_service

JSON = {"Content-Type": "application/json"}


async def post(served: Served, content: bytes | str, path: str = "/v1/orchestrate") -> httpx.Response:
    return await served.client.post(path, content=content, headers=JSON)


async def test_bodies_that_are_no_json(served: Served) -> None:
    deep = "[" * 200_000
    for content in (b"", b"{", b"nonsense", b'{"content": "x"', b"\xff\xfe", b'{"content": "\xff"}', b"'a'", deep):
        response = await post(served, content)
        if content == b"":
            problem_of(response, 422, "invalid_input")
        else:
            problem_of(response, 400, "malformed_body")


async def test_bodies_that_are_no_object(served: Served) -> None:
    for content in (b"null", b"1", b'"text"', b"[]", b"true"):
        problem_of(await post(served, content), 422, "invalid_input")


async def test_unknown_fields_are_told_by_name(served: Served) -> None:
    problem = problem_of(await served.ask("hi", agentid="x", conversation="y"), 422, "invalid_input")
    assert sorted(fault["path"] for fault in problem["errors"]) == ["agentid", "conversation"]
    for path, body in (
        ("/v1/conversations", {"title": "x"}),
        ("/v1/conversations/x/messages", {"content": "hi", "role": "user"}),
    ):
        problem_of(await served.client.post(path, json=body), 422, "invalid_input")


async def test_types_are_not_guessed(served: Served) -> None:
    await served.has("echo", echo)
    wrong: tuple[dict[str, Any], ...] = (
        {"content": 1},
        {"content": None},
        {"content": ["hi"]},
        {"content": "hi", "user_id": 7},
        {"content": "hi", "context": []},
        {"content": "hi", "agent_id": ""},
        {"content": "hi", "agent_id": "no spaces"},
        {"content": "hi", "conversation_id": {}},
    )
    for body in wrong:
        response = await served.client.post("/v1/orchestrate", json=body)
        problem_of(response, 422, "invalid_input")


async def test_blank_contents_are_refused(served: Served) -> None:
    await served.has("echo", echo)
    for content in ("", " ", "\n\t", "\u00a0\u2003", "\x1c\x85"):
        problem = problem_of(await served.ask(content, agent_id="echo"), 422, "invalid_input")
        assert [fault["path"] for fault in problem["errors"]] == ["content"]


async def test_what_no_database_can_hold_is_refused_with_its_place(served: Served) -> None:
    await served.has("echo", echo)
    cases = (
        ('{"agent_id": "echo", "content": "nul \\u0000"}', "content"),
        ('{"agent_id": "echo", "content": "half \\ud800"}', "content"),
        ('{"agent_id": "echo", "content": "hi", "user_id": "half \\udfff"}', "user_id"),
        ('{"agent_id": "echo", "content": "hi", "user_id": "nul \\u0000"}', "user_id"),
        ('{"agent_id": "echo", "content": "hi", "context": {"a": {"b": "\\ud800"}}}', "context.a.b"),
        ('{"agent_id": "echo", "content": "hi", "context": {"a": [1, NaN]}}', "context.a.1"),
        ('{"agent_id": "echo", "content": "hi", "context": {"a": Infinity}}', "context.a"),
        ('{"agent_id": "echo", "content": "hi", "context": {"a": -1e999}}', "context.a"),
        ('{"agent_id": "echo", "content": "hi", "capability": "\\ud800"}', "capability"),
    )
    for content, path in cases:
        problem = problem_of(await post(served, content), 422, "invalid_input")
        assert [fault["path"] for fault in problem["errors"]] == [path], content
    strange_key = '{"agent_id": "echo", "content": "hi", "context": {"\\ud800": 1, "\\u0000": 2}, "\\udfff": 3}'
    problem_of(await post(served, strange_key), 422, "invalid_input")


async def test_nesting_has_an_end(served: Served) -> None:
    """At any depth there is an answer or a problem; none breaks the service."""
    await served.has("echo", echo)
    statuses: dict[int, int] = {}
    for depth in (10, 48, 60, 200, 500, *range(880, 1_000, 3), 2_000, 50_000):
        for opening, closing_ in (("[", "]"), ('{"a":', "}")):
            context = '{"x": ' + opening * depth + ("1" if opening != "[" else "") + closing_ * depth + "}"
            response = await post(served, f'{{"agent_id": "echo", "content": "hi", "context": {context}}}')
            statuses[depth] = response.status_code
            if response.status_code != 200:
                assert response.status_code in (400, 422), (depth, response.text[:200])
                problem_of(response, response.status_code, response.json()["code"])
    assert statuses[10] == 200
    assert statuses[60] == 422
    settings = '{"knowledge": ["x"], "more": ' + "[" * 900 + "]" * 900 + "}"
    for method, path in (("POST", "/v1/agents"), ("PUT", "/v1/agents/echo")):
        body = '{"kind": "offline", "settings": ' + settings + (', "id": "deep"}' if method == "POST" else "}")
        response = await served.client.request(method, path, content=body, headers=JSON)
        assert response.status_code in (400, 422), response.text[:200]
    conversation = '{"context": {"x": ' + "[" * 900 + "]" * 900 + "}}"
    assert (await post(served, conversation, "/v1/conversations")).status_code in (400, 422)


async def test_numbers_without_measure(served: Served) -> None:
    await served.has("echo", echo)
    for digits, status in ((100, 200), (4_000, 200), (5_000, 400)):
        content = f'{{"agent_id": "echo", "content": "hi", "context": {{"n": {"9" * digits}}}}}'
        response = await post(served, content)
        assert response.status_code == status, response.text[:300]
    huge = '{"content": "hi", "expected_seq": ' + "9" * 4_000 + "}"
    problem_of(await post(served, huge, "/v1/conversations/x/messages"), 422, "invalid_input")


async def test_bodies_that_are_too_long(served: Served) -> None:
    await served.has("echo", echo)
    length = 10 * 1_024 * 1_024
    content = b'{"agent_id": "echo", "content": "' + b"x" * length + b'"}'
    problem = problem_of(await post(served, content), 413, "body_too_large")
    assert "1048576" in problem["detail"]

    async def chunks() -> AsyncIterator[bytes]:
        for begin in range(0, len(content), 65_536):
            yield content[begin : begin + 65_536]

    response = await served.client.post("/v1/orchestrate", content=chunks(), headers=JSON)
    assert "content-length" not in response.request.headers
    problem_of(response, 413, "body_too_large")
    assert (await served.answer("hello", agent_id="echo"))["output"] == "hello", "the connection is not out of step"


async def test_the_limit_of_a_body_is_exact() -> None:
    async with serving(max_body_bytes=2_000) as served:
        await served.has("echo", echo)
        frame = len('{"agent_id": "echo", "content": ""}')

        async def whole(content: bytes) -> AsyncIterator[bytes]:
            yield content

        for length, status in ((2_000 - frame, 200), (2_001 - frame, 413)):
            content = b'{"agent_id": "echo", "content": "' + b"x" * length + b'"}'
            assert (await post(served, content)).status_code == status
            response = await served.client.post("/v1/orchestrate", content=whole(content), headers=JSON)
            assert response.status_code == status


async def test_a_length_that_lies_breaks_nothing(served: Served) -> None:
    """A client that promises a body and hangs up is no error of ours."""
    host, port = served.url.removeprefix("http://").split(":")
    for promised in ("100", "99999999999999999999999", "-1", "abc"):
        reader, writer = await asyncio.open_connection(host, int(port))
        with closing(writer):
            head = f"POST /v1/orchestrate HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
            writer.write(f'{head}Content-Length: {promised}\r\n\r\n{{"content": '.encode())
            await writer.drain()
            if promised != "100":
                status = (await reader.readline()).split()
                assert status[1] in (b"400", b"413"), status
        await writer.wait_closed()
    assert (await served.client.get("/healthz")).status_code == 200
    assert [entry for entry in served.log.entries if entry[0] == "error"] == []


async def test_other_types_of_body_are_refused(served: Served) -> None:
    for kind in ("text/plain", "application/xml", "", "application/x-www-form-urlencoded", "json"):
        response = await served.client.post("/v1/orchestrate", content=b"{}", headers={"Content-Type": kind})
        problem_of(response, 415, "unsupported_media_type")
    await served.has("echo", echo)
    for kind in ("application/json", "application/json; charset=utf-8", "APPLICATION/JSON", "application/vnd.x+json"):
        body = json.dumps({"content": "hi", "agent_id": "echo"})
        response = await served.client.post("/v1/orchestrate", content=body, headers={"Content-Type": kind})
        assert response.status_code == 200, (kind, response.text)


async def test_unknown_paths_and_methods(served: Served) -> None:
    for path in ("/", "/v1", "/v1/nothing", "/v2/agents", "/docs", "/v1/agents/a/b"):
        problem_of(await served.client.get(path), 404, "not_found")
    cases = {
        "/v1/orchestrate": {"POST"},
        "/v1/agents": {"GET", "POST"},
        "/v1/agents/x": {"GET", "PUT", "PATCH", "DELETE"},
        "/v1/conversations": {"GET", "POST"},
        "/v1/conversations/x/messages": {"GET", "POST"},
        "/healthz": {"GET"},
    }
    for path, allowed in cases.items():
        for method in ("DELETE", "PUT", "PATCH", "OPTIONS", "TRACE"):
            if method in allowed:
                continue
            response = await served.client.request(method, path)
            problem_of(response, 405, "method_not_allowed")
            said = {name.strip() for name in response.headers["allow"].split(",")}
            assert said - {"HEAD"} == allowed, (method, path)


async def test_ids_in_paths_are_checked(served: Served) -> None:
    for path in (
        "/v1/agents/%00",
        "/v1/agents/a%20b",
        "/v1/conversations/%ff",
        "/v1/requests/%27%3B--",
        "/v1/agents/%2e%2e",
    ):
        response = await served.client.get(path)
        assert response.status_code in (404, 422), path
        problem_of(response, response.status_code, response.json()["code"])


async def test_a_function_that_raises(served: Served) -> None:
    def fails(content: str) -> str:
        raise KeyError(f"{SECRET} {content}")

    class Odd(Exception):
        def __str__(self) -> str:
            raise RuntimeError(SECRET)

    async def fails_oddly(_: str) -> str:
        raise Odd

    def ends(_: str) -> str:
        raise StopIteration(SECRET)

    for name, function, cause in (("fails", fails, "KeyError"), ("odd", fails_oddly, "Odd"), ("ends", ends, None)):
        await served.has(name, function)
        response = await served.ask("hello", agent_id=name)
        problem = problem_of(response, 502, "agent_failed")
        assert cause is None or problem["cause"] == cause
        assert SECRET not in response.text
        assert problem["retryable"] is False


async def test_a_function_that_never_ends(served: Served) -> None:
    release = threading.Event()

    async def never(_: str) -> str:
        await asyncio.Event().wait()
        return "unreachable"

    def never_in_thread(_: str) -> str:
        release.wait(30)
        return "too late"

    async def never_in_stream(_: str) -> AsyncIterator[str]:
        yield "begun"
        await asyncio.Event().wait()

    async def deaf(_: str) -> str:
        while not release.is_set():
            try:
                await asyncio.sleep(0.05)
            except asyncio.CancelledError:
                continue
        return "too late"

    try:
        for name, function in (
            ("never", never),
            ("in-thread", never_in_thread),
            ("in-stream", never_in_stream),
            ("deaf", deaf),
        ):
            await served.has(name, function, limits=Limits(timeout=0.2))
            response = await served.ask("hello", agent_id=name)
            problem = problem_of(response, 504, "deadline_exceeded")
            assert name in problem["detail"]
    finally:
        release.set()


async def test_a_runaway_keeps_its_place_until_it_ends(served: Served) -> None:
    release = threading.Event()

    def stuck(content: str) -> str:
        if content == "stuck":
            release.wait(30)
        return content

    await served.has("one-at-a-time", stuck, limits=Limits(timeout=0.1, concurrency=1))
    try:
        problem_of(await served.ask("stuck", agent_id="one-at-a-time"), 504, "deadline_exceeded")
        full = await served.ask("next", agent_id="one-at-a-time")
        assert problem_of(full, 503, "no_instance_available")["retryable"] is True
        assert int(full.headers["retry-after"]) >= 1
    finally:
        release.set()
    async with asyncio.timeout(10):
        while (response := await served.ask("next", agent_id="one-at-a-time")).status_code == 503:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert response.json()["output"] == "next"


async def test_a_request_has_a_deadline_of_its_own() -> None:
    async with serving(orchestrator={"request_timeout": 0.3}) as served:
        release = asyncio.Event()

        async def slow(content: str) -> str:
            await release.wait()
            return content

        await served.has("slow", slow)
        problem_of(await served.ask("hello", agent_id="slow"), 504, "deadline_exceeded")
        conversation_id = (await served.client.post("/v1/conversations", json={})).json()["id"]
        waiting = [served.ask("hello", agent_id="slow", conversation_id=conversation_id) for _ in range(3)]
        for response in await asyncio.gather(*waiting):
            problem_of(response, 504, "deadline_exceeded")


async def test_too_many_requests_are_told_to_come_back() -> None:
    async with serving(orchestrator={"max_concurrent_requests": 3}) as served:
        release = asyncio.Event()
        begun: list[str] = []
        full = asyncio.Event()

        async def slow(content: str) -> str:
            begun.append(content)
            if len(begun) == 3:
                full.set()
            await release.wait()
            return content

        await served.has("slow", slow)
        asking = [asyncio.create_task(served.ask(f"q{n}", agent_id="slow")) for n in range(3)]
        await full.wait()
        response = await served.ask("one more", agent_id="slow")
        assert problem_of(response, 503, "overloaded")["retryable"] is True
        assert int(response.headers["retry-after"]) >= 1
        release.set()
        assert {r.status_code for r in await asyncio.gather(*asking)} == {200}
        assert (await served.answer("again", agent_id="slow"))["output"] == "again"


async def test_no_problem_leaves_a_line_of_error_in_the_log(served: Served) -> None:
    await served.ask("hello")
    await post(served, b"{")
    await served.client.get("/nothing")
    assert served.log.entries == []


@pytest.fixture
def breaking(tmp_path: Path) -> Generator[Service]:
    names = ("raising", "raising_async", "raising_in_stream", "quitting", "interrupting", "quitting_in_thread", "echo")
    agents = [
        {"id": name, "kind": "function", "settings": {"function": f"tests.api.functions:{name}"}} for name in names
    ]
    with running_service(tmp_path, {"agents": agents}) as service:
        yield service


def test_a_secret_in_an_error_appears_nowhere(breaking: Service) -> None:
    for name in ("raising", "raising_async", "raising_in_stream"):
        for accept in ("application/json", "text/event-stream"):
            response = httpx.post(
                f"{breaking.url}/v1/orchestrate",
                json={"content": "hello", "agent_id": name},
                headers={"Accept": accept},
            )
            assert SECRET not in response.text
            assert "ValueError" in response.text
            assert "Traceback" not in response.text
    assert breaking.stop() == 0
    log = breaking.read_log()
    assert log
    assert SECRET not in log
    for file in breaking.folder.glob("orchestra.db*"):
        assert SECRET.encode() not in file.read_bytes()


def test_a_function_that_wants_to_end_the_program_ends_its_own_call(breaking: Service) -> None:
    for name in ("quitting_in_thread", "quitting", "interrupting"):
        try:
            response = httpx.post(f"{breaking.url}/v1/orchestrate", json={"content": "7", "agent_id": name}, timeout=10)
        except httpx.TransportError as error:
            raise AssertionError(f"{name} took the service down: {error!r}\n{breaking.read_log()[-500:]}") from error
        problem_of(response, 502, "agent_failed")
        assert breaking.runs()
    answer = httpx.post(f"{breaking.url}/v1/orchestrate", json={"content": "still here", "agent_id": "echo"})
    assert answer.json()["output"] == "still here"


def test_what_is_no_http_is_refused(breaking: Service) -> None:
    port = int(breaking.url.rpartition(":")[2])
    for sent in (
        b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"\0" * 100 + b"\r\n\r\n",
    ):
        with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
            connection.sendall(sent)
            assert not connection.recv(1_000).startswith(b"HTTP/1.1 200")
    assert httpx.get(f"{breaking.url}/healthz").status_code == 200
    assert "Traceback" not in breaking.read_log()
