"""Models from the command line: which providers answer, and one question to one model."""

from __future__ import annotations

import json
import threading
from collections.abc import Generator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
import yaml

from tests.cli.running import Done, run
from tests.services.service import orchestra, running_service

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("model_requests")]

KEY: Final = "quoted-0123456789abcdef"
MODEL: Final = "openai:gpt-4o"
PNG: Final = b"\x89PNG"


class Vendor:
    """A server that speaks Chat Completions in a thread, since commands run a loop of their own."""

    def __init__(self) -> None:
        self.bodies: list[Any] = []
        self.checks: list[str] = []
        self.status = 200
        self.text = "Because of Rayleigh."
        vendor = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                vendor.checks.append(self.path)
                self.answer(json.dumps(vendor.completion()).encode(), "application/json")

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                vendor.bodies.append(body)
                if body["stream"] and vendor.status == 200:
                    self.answer(vendor.stream(), "text/event-stream")
                else:
                    self.answer(json.dumps(vendor.completion()).encode(), "application/json")

            def answer(self, content: bytes, kind: str) -> None:
                self.send_response(vendor.status)
                self.send_header("content-type", kind)
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  the standard library's name
                return

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def completion(self) -> Mapping[str, Any]:
        if self.status != 200:
            error = {"message": f"Incorrect API key provided: {KEY}", "param": KEY, "type": KEY}
            return {"error": {**error, "code": "invalid_api_key" if self.status == 401 else KEY}}
        message = {"role": "assistant", "content": self.text}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return {**self.head("chat.completion"), "choices": [choice], "usage": self.usage}

    def stream(self) -> bytes:
        head = self.head("chat.completion.chunk")
        deltas = [{"content": f"{word} "} for word in self.text.split()]
        chunks = [{**head, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas]
        chunks.append({**head, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}], "usage": self.usage})
        return b"".join(f"data: {part}\n\n".encode() for part in (*map(json.dumps, chunks), "[DONE]"))

    usage: Final = {"prompt_tokens": 1_000, "completion_tokens": 100, "total_tokens": 1_100}

    @staticmethod
    def head(kind: str) -> Mapping[str, Any]:
        return {"id": "chat-1", "object": kind, "created": 1, "model": "gpt-4o"}


@pytest.fixture
def vendor() -> Generator[Vendor]:
    found = Vendor()
    serving = threading.Thread(target=found.server.serve_forever, kwargs={"poll_interval": 0.02})
    serving.start()
    yield found
    found.server.shutdown()
    serving.join()
    found.server.server_close()


@pytest.fixture
def folder(tmp_path: Path, vendor: Vendor) -> Path:
    """A working folder whose settings have a key for OpenAI."""
    settings = {"providers": {"openai": {"api_key": KEY, "base_url": vendor.url}}}
    (tmp_path / "orchestra.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    (tmp_path / "sky.png").write_bytes(PNG)
    return tmp_path


def fails(status: int, code: str, done: Done) -> str:
    """The one line of an error of ours."""
    assert done.returncode == status, (done.returncode, done.stdout, done.stderr)
    assert done.stderr.startswith("error: "), done.stderr
    assert done.stderr.endswith(f" [{code}]\n"), done.stderr
    assert done.stderr.count("\n") == 1
    assert KEY not in done.stdout + done.stderr
    return done.stderr


def left_behind(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir() if file.name not in ("orchestra.yaml", "sky.png"))


# --- orchestra providers check


def test_a_table_of_the_providers(folder: Path, vendor: Vendor) -> None:
    done = run("providers", "check", cwd=folder)
    assert (done.returncode, done.stderr) == (0, ""), done
    head, *rows = [line.split() for line in done.stdout.splitlines()]
    assert head == ["provider", "configured", "installed", "reachable", "last", "error", "detail"]
    assert [row[:4] for row in rows] == [
        ["anthropic", "no", "yes", "-"],
        ["openai", "yes", "yes", "yes"],
        ["google", "no", "yes", "-"],
        ["local", "no", "yes", "-"],
    ]
    assert rows[0][4:] == ["set", "ANTHROPIC_API_KEY", "or", "providers.anthropic.api_key"]
    assert rows[1][4:] == ["answers"]
    assert KEY not in done.stdout
    assert vendor.checks == ["/models"]
    assert left_behind(folder) == [], "no database is opened for it"


def test_a_key_that_is_not_taken_fails_the_check(folder: Path, vendor: Vendor) -> None:
    vendor.status = 401
    done = run("providers", "check", cwd=folder)
    assert done.returncode == 1
    row = next(line for line in done.stdout.splitlines() if line.startswith("openai"))
    assert row.split()[1:5] == ["yes", "yes", "no", "model_authentication_failed"]
    assert "OPENAI_API_KEY" in row
    assert KEY not in done.stdout + done.stderr


def test_the_check_as_json(folder: Path, vendor: Vendor) -> None:
    done = run("providers", "check", "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    found = {provider["name"]: provider for provider in json.loads(done.stdout)}
    assert list(found) == ["anthropic", "openai", "google", "local"]
    assert (found["openai"]["reachable"], found["openai"]["last_error"]) == (True, None)
    assert (found["google"]["configured"], found["google"]["reachable"]) == (False, None)
    vendor.status = 503
    done = run("providers", "check", "--json", cwd=folder)
    assert done.returncode == 1
    assert json.loads(done.stdout)[1]["last_error"] == "model_overloaded"


def test_with_nothing_configured_nothing_fails(tmp_path: Path) -> None:
    done = run("providers", "check", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "OPENAI_API_KEY" in done.stdout


def test_keys_of_the_environment_are_found(tmp_path: Path, vendor: Vendor) -> None:
    variables = {"OPENAI_API_KEY": KEY, "ORCHESTRA_PROVIDERS__OPENAI__BASE_URL": vendor.url}
    done = run("providers", "check", "--json", cwd=tmp_path, more_environment=variables)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[1]["reachable"] is True


def test_settings_that_are_wrong_are_said_without_their_values(tmp_path: Path) -> None:
    (tmp_path / "orchestra.yaml").write_text(
        yaml.safe_dump({"providers": {"opnai": {"api_key": KEY}}}), encoding="utf-8"
    )
    assert "did you mean 'openai'?" in fails(2, "configuration", run("providers", "check", cwd=tmp_path))
    (tmp_path / "orchestra.yaml").write_text(
        yaml.safe_dump({"providers": {"openai": {"api_key": [KEY], "timeout": 0}}}), encoding="utf-8"
    )
    line = fails(2, "configuration", run("providers", "check", cwd=tmp_path))
    assert "providers.openai.api_key" in line
    assert "providers.openai.timeout" in line


# --- orchestra ask --model


def test_one_model_is_asked_itself(folder: Path, vendor: Vendor) -> None:
    done = run("ask", "--model", MODEL, "why is the sky blue?", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "Because of Rayleigh. \n"
    assert done.stderr.startswith("-- gpt-4o, stop: 1000 tokens in, 100 out, $0.0035")
    (body,) = vendor.bodies
    assert body["stream"] is True
    assert body["messages"] == [{"role": "user", "content": "why is the sky blue?"}]
    assert left_behind(folder) == [], "nothing is recorded"


def test_the_answer_of_a_model_as_json(folder: Path, vendor: Vendor) -> None:
    done = run("ask", "--model", MODEL, "--json", "-", cwd=folder, given="from standard input")
    assert (done.returncode, done.stderr) == (0, ""), done
    reply = json.loads(done.stdout)
    assert (reply["output"], reply["value"], reply["tool_calls"]) == ("Because of Rayleigh.", None, [])
    assert reply["generation"]["provider"] == "openai"
    assert reply["usage"]["cost_usd"] == pytest.approx(0.0035)
    (body,) = vendor.bodies
    assert (body["stream"], body["messages"][0]["content"]) == (False, "from standard input")


def test_a_file_goes_along(folder: Path, vendor: Vendor) -> None:
    done = run("ask", "--model", MODEL, "--attach", "sky.png", "--attach", folder / "sky.png", "what?", cwd=folder)
    assert done.returncode == 0, done.stderr
    content = vendor.bodies[0]["messages"][0]["content"]
    assert [part["type"] for part in content] == ["text", "image_url", "image_url"]
    assert content[1]["image_url"]["url"] == "data:image/png;base64,iVBORw=="


def test_a_file_goes_along_to_an_agent_too(folder: Path, vendor: Vendor) -> None:
    agent = {"id": "painter", "kind": "prompt", "settings": {"model": MODEL}}
    with (folder / "orchestra.yaml").open("a", encoding="utf-8") as file:
        file.write(yaml.safe_dump({"agents": [agent]}))
    done = run("ask", "--agent", "painter", "--attach", "sky.png", "what?", cwd=folder)
    assert (done.returncode, done.stdout) == (0, "Because of Rayleigh. \n"), done.stderr
    assert len(vendor.bodies[0]["messages"][0]["content"]) == 2
    assert not any(KEY.encode() in file.read_bytes() for file in folder.glob("orchestra.db*"))


def test_what_cannot_go_along(folder: Path, vendor: Vendor) -> None:
    (folder / "noname").write_bytes(PNG)
    (folder / "film.mp4").write_bytes(PNG)
    ask = ("ask", "--model", MODEL, "what?", "--attach")
    assert "'gone.png' cannot be read" in fails(2, "invalid_input", run(*ask, "gone.png", cwd=folder))
    assert "does not say what it is" in fails(2, "invalid_input", run(*ask, "noname", cwd=folder))
    assert "video/mp4" in fails(1, "attachment_not_supported", run(*ask, "film.mp4", cwd=folder))
    assert vendor.bodies == []


def test_what_is_no_model(folder: Path, vendor: Vendor) -> None:
    ask = ("ask", "hello", "--model")
    assert "did you mean 'openai'?" in fails(2, "invalid_input", run(*ask, "opnai:gpt-4o", cwd=folder))
    assert "write it as in 'openai:gpt-4o'" in fails(2, "invalid_input", run(*ask, "gpt-4o", cwd=folder))
    missing = fails(1, "provider_key_missing", run(*ask, "anthropic:claude-sonnet-4-5", cwd=folder))
    assert "ANTHROPIC_API_KEY" in missing
    for option in ("--agent", "--capability", "--conversation", "--user"):
        line = fails(2, "invalid_input", run(*ask, MODEL, option, "x", cwd=folder))
        assert "--model asks a model itself" in line
    assert vendor.bodies == []


@pytest.mark.parametrize("as_json", [[], ["--json"]])
def test_a_model_that_does_not_answer(folder: Path, vendor: Vendor, as_json: list[str]) -> None:
    vendor.status = 401
    done = run("ask", "hello", "--model", MODEL, *as_json, cwd=folder)
    line = fails(1, "model_authentication_failed", done)
    assert "OPENAI_API_KEY" in line
    assert done.stdout == ""
    assert len(vendor.bodies) == 1


def test_the_real_command_does_the_same(folder: Path, vendor: Vendor) -> None:
    done = orchestra("ask", "--model", MODEL, "why is the sky blue?", cwd=folder, seconds=60)
    assert (done.returncode, done.stdout) == (0, "Because of Rayleigh. \n"), done.stderr
    assert "Traceback" not in done.stderr
    assert "Warning" not in done.stderr


def test_what_is_no_question(folder: Path, vendor: Vendor) -> None:
    (folder / "empty.png").touch()
    assert "must not be blank" in fails(2, "invalid_input", run("ask", "--model", MODEL, " ", cwd=folder))
    assert "must not be blank" in fails(2, "invalid_input", run("ask", "--model", MODEL, "-", cwd=folder, given=""))
    fails(2, "invalid_input", run("ask", "--model", MODEL, "\udcff", cwd=folder))
    done = run("ask", "--model", MODEL, "what?", "--attach", "empty.png", cwd=folder)
    assert "attachments.0.data: is empty" in fails(2, "invalid_input", done)
    assert vendor.bodies == []


def test_a_service_tells_nobody_its_key(tmp_path: Path, vendor: Vendor) -> None:
    """A process of its own, with all that it can log, and a vendor that quotes the key."""
    agents = [
        {"id": "agent", "kind": "prompt", "settings": {"model": MODEL}, "recovery": {"attempts": 1}},
        {
            "id": "other",
            "kind": "prompt",
            "settings": {"model": "google:gemini-2.5-flash"},
            "recovery": {"attempts": 1},
        },
    ]
    settings = {
        "providers": {"openai": {"base_url": vendor.url}, "google": {"api_key": KEY, "base_url": vendor.url}},
        "agents": agents,
        "logs": {"level": "debug"},
        "metrics": {"detailed_logging": True},
    }
    told: list[str] = []
    with running_service(tmp_path, settings, more_environment={"OPENAI_API_KEY": KEY}) as service:
        with httpx.Client(base_url=service.url, timeout=30) as client:
            for status in (200, 400, 401, 500):
                vendor.status = status
                for agent in ("agent", "other"):
                    response = client.post("/v1/orchestrate", json={"content": "hello", "agent_id": agent})
                    told.append(response.text)
                told.append(client.get("/v1/providers", params={"fresh": "true"}).text)
            told += [client.get(path).text for path in ("/v1/agents", "/v1/status", "/openapi.json")]
        assert "model_authentication_failed" in "".join(told)
        assert "Because of Rayleigh." in told[0]
        assert service.stop() == 0
        log = service.read_log()
        assert log.count("request_failed") >= 6
        told.append(log)
    for text in told:
        assert KEY not in text
    for file in tmp_path.glob("orchestra.db*"):
        assert KEY.encode() not in file.read_bytes()
