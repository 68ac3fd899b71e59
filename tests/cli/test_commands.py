from __future__ import annotations

import asyncio
import json
import socket
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.cli.running import run
from tests.services.service import PROJECT, Service, environment, orchestra, running_service
from tests.services.waiting import wait_until

# Each command opens an orchestra of its own.
pytestmark = pytest.mark.slow

OFFLINE = """id: {id}
kind: offline
capabilities: [refunds]
keywords: [refund]
settings: {{knowledge: ["Refunds take five days."]}}
"""

#: What ``--help`` must not wait for.
HEAVY = (
    "alembic", "bm25s", "fastapi", "numpy", "opentelemetry", "sqlalchemy", "structlog", "uvicorn", "yaml"
)  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A working folder with a settings file of one agent."""
    agents = [yaml.safe_load(OFFLINE.format(id="billing"))]
    (tmp_path / "orchestra.yaml").write_text(yaml.safe_dump({"agents": agents}), encoding="utf-8")
    return tmp_path


def succeeds(*arguments: str | Path, cwd: Path, given: str | None = None) -> str:
    done = run(*arguments, cwd=cwd, given=given)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


def fails(
    status: int, code: str, *arguments: str | Path, cwd: Path, given: str | None = None, **more_environment: str
) -> str:
    """The one line of an error of ours. A service runs in a process of its own: it takes hold of logs and signals."""
    done = (orchestra if arguments[0] == "serve" else run)(
        *arguments, cwd=cwd, given=given, more_environment=more_environment
    )
    assert done.returncode == status, (done.returncode, done.stdout, done.stderr)
    assert done.stdout == ""
    assert done.stderr.startswith("error: "), done.stderr
    assert done.stderr.endswith(f" [{code}]\n"), done.stderr
    assert done.stderr.count("\n") == 1
    return done.stderr


def misused(*arguments: str | Path, cwd: Path) -> str:
    """What is said about a command line that cannot be read."""
    done = run(*arguments, cwd=cwd)
    assert done.returncode == 2, (done.returncode, done.stdout, done.stderr)
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    return done.stderr


def test_version_and_help(tmp_path: Path) -> None:
    assert succeeds("--version", cwd=tmp_path).startswith("orchestra ")
    text = succeeds("--help", cwd=tmp_path)
    for command in ("serve", "ask", "agents", "conversations", "migrate", "keys"):
        assert command in text
    assert "revoke" in succeeds("keys", "--help", cwd=tmp_path)
    assert "--port" in succeeds("serve", "-h", cwd=tmp_path)
    assert list(tmp_path.iterdir()) == [], "help leaves nothing behind"


@pytest.mark.parametrize(
    ("arguments", "heavy"),
    [
        (["--help"], (*HEAVY, "pydantic")),
        # For options Typer itself imports pydantic.
        (["--version"], HEAVY),
        (["serve", "--help"], HEAVY),
        (["keys", "create", "--help"], HEAVY),
    ],
)
def test_help_imports_nothing_heavy(tmp_path: Path, arguments: list[str], heavy: tuple[str, ...]) -> None:
    program = (
        "import sys\n"
        f"sys.argv = ['orchestra', *{arguments!r}]\n"
        "from agent_orchestra.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        f"print([name for name in {heavy!r} if name in sys.modules], file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert done.stderr == "[]\n"


def test_the_installed_command_is_the_same(tmp_path: Path) -> None:
    script = Path(sys.executable).with_name("orchestra")
    done = subprocess.run(
        [script, "--version"], cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout == succeeds("--version", cwd=tmp_path)


def test_ask_answers(folder: Path) -> None:
    done = run("ask", "a refund please", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "Refunds take five days." in done.stdout
    assert "billing (lexical" in done.stderr
    from_input = succeeds("ask", "-", "--agent", "billing", cwd=folder, given="a refund please")
    assert from_input == done.stdout


def test_ask_prints_json_and_goes_on(folder: Path) -> None:
    first = json.loads(succeeds("ask", "a refund", "--json", "--user", "ann", cwd=folder))
    assert (first["agent"], first["stage"]) == ("billing", "lexical")
    more = ("--conversation", first["conversation_id"], "--capability", "refunds")
    second = json.loads(succeeds("ask", "another", "--json", *more, cwd=folder))
    assert second["conversation_id"] == first["conversation_id"]
    assert second["stage"] == "capability"

    listed = json.loads(succeeds("conversations", "list", "--json", cwd=folder))
    assert [(c["id"], c["user_id"], c["last_seq"]) for c in listed] == [(first["conversation_id"], "ann", 4)]
    assert first["conversation_id"] in succeeds("conversations", "list", "--user", "ann", cwd=folder)
    assert first["conversation_id"] not in succeeds("conversations", "list", "--user", "bob", cwd=folder)
    shown = succeeds("conversations", "show", first["conversation_id"], cwd=folder)
    assert "1. user" in shown
    assert "4. billing" in shown
    messages = json.loads(succeeds("conversations", "show", first["conversation_id"], "--json", cwd=folder))
    assert [message["content"] for message in messages][::2] == ["a refund", "another"]


def test_what_ask_cannot_answer(folder: Path) -> None:
    fails(1, "no_agent_matches", "ask", "blue or green", cwd=folder)
    fails(2, "invalid_input", "ask", " ", cwd=folder)
    assert "did you mean 'billing'?" in fails(1, "agent_not_found", "ask", "hi", "--agent", "biling", cwd=folder)
    fails(1, "conversation_not_found", "ask", "hi", "--conversation", "gone", cwd=folder)
    fails(1, "no_agent_matches", "ask", "a refund", "--capability", "flying", cwd=folder)


def test_agents_are_listed_shown_registered_and_removed(folder: Path) -> None:
    listed = succeeds("agents", "list", cwd=folder)
    assert "billing" in listed
    assert "IDLE" in listed
    second = folder / "second.yaml"
    second.write_text(OFFLINE.format(id="second") + "role: supervisor\n", encoding="utf-8")
    assert succeeds("agents", "register", second, cwd=folder) == "registered second\n"
    fails(1, "agent_exists", "agents", "register", second, cwd=folder)
    assert succeeds("agents", "register", second, "--replace", cwd=folder) == "registered second\n"
    definition = json.dumps({"id": "third", "kind": "offline", "settings": {"knowledge": ["x"]}})
    assert succeeds("agents", "register", "-", cwd=folder, given=definition) == "registered third\n"

    found: list[dict[str, Any]] = json.loads(succeeds("agents", "list", "--json", cwd=folder))
    assert [(agent["id"], agent["source"]) for agent in found] == [
        ("billing", "config"),
        ("second", "api"),
        ("third", "api"),
    ]
    for filter_, expected in (
        (("--role", "supervisor"), ["second"]),
        (("--capability", "refunds"), ["billing", "second"]),
        (("--status", "idle"), ["billing", "second", "third"]),
        (("--domain", "x"), []),
        (("--provider", "x"), []),
    ):
        listed_json = json.loads(succeeds("agents", "list", "--json", *filter_, cwd=folder))
        assert [agent["id"] for agent in listed_json] == expected
    shown = json.loads(succeeds("agents", "show", "second", cwd=folder))
    assert (shown["role"], shown["status"]) == ("supervisor", "IDLE")
    assert succeeds("agents", "remove", "second", cwd=folder) == "removed second\n"
    fails(1, "agent_not_found", "agents", "show", "second", cwd=folder)
    fails(1, "agent_not_found", "agents", "remove", "second", cwd=folder)
    assert json.loads(succeeds("agents", "list", "--json", "--tenant", "other", cwd=folder))[0]["id"] == "billing"


def test_definitions_that_are_wrong(folder: Path) -> None:
    def register(text: str, code: str, status: int = 2) -> str:
        file = folder / "wrong.yaml"
        file.write_text(text, encoding="utf-8")
        return fails(status, code, "agents", "register", file, cwd=folder)

    assert "did you mean 'keywords'?" in register("id: a\nkind: offline\nkeyword: [x]", "configuration")
    assert "line 1" in register("id: [", "configuration")
    assert "settings.knowledge" in register("id: a\nkind: offline", "invalid_agent")
    assert "did you mean 'offline'?" in register("id: a\nkind: ofline", "invalid_agent")
    assert "gone.yaml" in fails(2, "configuration", "agents", "register", "gone.yaml", cwd=folder)
    assert "settings.function" in register("id: a\nkind: function\nsettings: {function: 'os'}", "invalid_agent")


def test_the_operator_at_the_terminal_may_name_any_function_that_can_answer(folder: Path) -> None:
    (folder / "agents_here.py").write_text("def echo(content):\n    return content\n", encoding="utf-8")
    (folder / "orchestra.yaml").write_text("{}", encoding="utf-8")
    file = folder / "function.yaml"
    file.write_text("id: f\nkind: function\nsettings: {function: 'agents_here:echo'}\n", encoding="utf-8")
    assert succeeds("agents", "register", file, cwd=folder) == "registered f\n"
    file.write_text("id: g\nkind: function\nsettings: {function: 'os:getcwd'}\n", encoding="utf-8")
    assert "must take the content" in fails(2, "invalid_agent", "agents", "register", file, cwd=folder)


def test_keys_are_made_listed_and_revoked(tmp_path: Path) -> None:
    done = run("keys", "create", "--scope", "run", "--scope", "read", "--tenant", "ann", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    text = done.stdout.strip()
    prefix, key_id, secret = text.split("_", 2)
    assert prefix == "orc"
    assert len(secret) >= 40
    assert key_id in done.stderr
    for arguments in (["keys", "list"], ["keys", "list", "--json"], ["keys", "list", "--tenant", "ann"]):
        listed = succeeds(*arguments, cwd=tmp_path)
        assert key_id in listed
        assert secret not in listed
        assert "digest" not in listed
    found = json.loads(succeeds("keys", "list", "--json", cwd=tmp_path))
    assert [(key["tenant"], key["scopes"], key["revoked_ms"]) for key in found] == [("ann", ["run", "read"], None)]
    assert json.loads(succeeds("keys", "list", "--tenant", "bob", "--json", cwd=tmp_path)) == []
    assert succeeds("keys", "revoke", key_id, cwd=tmp_path) == f"revoked {key_id}\n"
    assert json.loads(succeeds("keys", "list", "--json", cwd=tmp_path))[0]["revoked_ms"] > 0
    fails(1, "key_not_found", "keys", "revoke", "0123456789ab", cwd=tmp_path)
    for file in tmp_path.glob("orchestra.db*"):
        assert secret.encode() not in file.read_bytes()


def test_migrate_and_its_check(tmp_path: Path) -> None:
    checked = run("migrate", "--check", cwd=tmp_path)
    assert checked.returncode == 1
    assert "orchestra.db" in checked.stderr
    assert list(tmp_path.iterdir()) == [], "a check makes nothing"
    assert succeeds("migrate", cwd=tmp_path) == "the schema is current\n"
    assert succeeds("migrate", cwd=tmp_path) == "the schema is current\n"
    assert succeeds("migrate", "--check", cwd=tmp_path) == "the schema is current\n"
    with sqlite3.connect(tmp_path / "orchestra.db") as connection:
        connection.execute("DROP TABLE messages")
    connection.close()
    broken = run("migrate", "--check", cwd=tmp_path)
    assert broken.returncode == 1
    assert "messages" in broken.stderr
    assert "Traceback" not in broken.stderr


def test_databases_that_are_none_of_ours(tmp_path: Path) -> None:
    text = tmp_path / "text.db"
    text.write_bytes(b"these are no pages of a database\n" * 100)
    other = tmp_path / "other.db"
    connection = sqlite3.connect(other)
    connection.execute("CREATE TABLE customers (id)")
    connection.commit()
    connection.close()
    for file in (text, other):
        before = file.read_bytes()
        for arguments in (["ask", "hi"], ["serve", "--port", "0"], ["migrate"], ["agents", "list"]):
            said = fails(2, "foreign_database", *arguments, "--database", file, cwd=tmp_path)
            assert "choose another" in said
        assert file.read_bytes() == before
        checked = run("migrate", "--check", "--database", file, cwd=tmp_path)
        assert checked.returncode in (1, 2)
        assert checked.stderr
        assert "Traceback" not in checked.stderr


def test_a_database_of_a_newer_release(tmp_path: Path) -> None:
    succeeds("migrate", cwd=tmp_path)
    connection = sqlite3.connect(tmp_path / "orchestra.db")
    tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    versions = next(name for name in tables if "schema_version" in name)
    connection.execute(f"UPDATE {versions} SET version_num = '9999'")
    connection.commit()
    connection.close()
    fails(2, "database_too_new", "ask", "hi", cwd=tmp_path)


def test_databases_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    fails(2, "configuration", "ask", "hi", "--database", "gone/orchestra.db", cwd=tmp_path)
    fails(2, "configuration", "ask", "hi", "--database", "mysql://me:hunter2@host/name", cwd=tmp_path)
    fails(2, "configuration", "ask", "hi", "--database", ":memory:", cwd=tmp_path)
    for url in ("folder", "postgresql://me:hunter2@127.0.0.1:1/name"):
        done = run("ask", "hi", "--database", url, cwd=tmp_path)
        assert done.returncode in (1, 2)
        assert done.stderr.count("\n") == 1, done.stderr
        assert done.stderr.startswith("error: ")
        assert "hunter2" not in done.stderr


def test_settings_that_are_wrong(tmp_path: Path) -> None:
    (tmp_path / "orchestra.yaml").write_text("server: {prot: 1}", encoding="utf-8")
    for arguments in (["serve"], ["ask", "hi"], ["agents", "list"], ["keys", "list"], ["migrate"]):
        said = fails(2, "configuration", *arguments, cwd=tmp_path)
        assert "did you mean 'port'?" in said
    (tmp_path / "orchestra.yaml").unlink()
    said = fails(2, "configuration", "ask", "hi", cwd=tmp_path, ORCHESTRA_DATABSE__URL="postgresql://me:hunter2@h/n")
    assert "did you mean 'database'?" in said
    assert "hunter2" not in said
    fails(2, "configuration", "serve", "--port", "99999", cwd=tmp_path)
    fails(2, "configuration", "ask", "hi", "--config", "gone.yaml", cwd=tmp_path)
    (tmp_path / "orchestra.yaml").write_text("agents: [{id: a, kind: offline}]", encoding="utf-8")
    assert "settings.knowledge" in fails(2, "invalid_agent", "ask", "hi", cwd=tmp_path)


def test_command_lines_that_cannot_be_read(tmp_path: Path) -> None:
    assert "read, run, admin" in misused("keys", "create", "--scope", "all", cwd=tmp_path)
    misused("keys", "create", cwd=tmp_path)
    misused("serve", "--port", "many", cwd=tmp_path)
    misused("aks", "hi", cwd=tmp_path)
    misused("conversations", "list", "--limit", "0", cwd=tmp_path)
    assert "specialist" in misused("agents", "list", "--role", "boss", cwd=tmp_path)


def test_a_port_in_use(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        said = fails(2, "address_in_use", "serve", "--port", port, cwd=tmp_path)
    assert port in said
    assert "--port" in said
    fails(2, "configuration", "serve", "--host", "192.0.2.1", "--port", "0", cwd=tmp_path)


def test_what_lies_beside_the_settings_can_be_named(tmp_path: Path) -> None:
    beside, elsewhere = tmp_path / "beside", tmp_path / "elsewhere"
    beside.mkdir()
    elsewhere.mkdir()
    (beside / "my_agents.py").write_text("def shout(content):\n    return content.upper()\n", encoding="utf-8")
    (beside / "orchestra.yaml").write_text(
        "agents: [{id: shout, kind: function, settings: {function: 'my_agents:shout'}}]", encoding="utf-8"
    )
    asked = succeeds("ask", "hello", "--agent", "shout", "--config", beside / "orchestra.yaml", cwd=elsewhere)
    assert asked == "HELLO\n"


def test_the_examples_answer(tmp_path: Path) -> None:
    example = PROJECT / "examples" / "orchestra.yaml"
    answer = json.loads(succeeds("ask", "calculate 12 * (7 + 3)", "--json", "--config", example, cwd=tmp_path))
    assert (answer["agent"], answer["value"]["result"]) == ("calculator", 120)


async def test_a_running_service_takes_up_what_the_command_line_changes(tmp_path: Path) -> None:
    with running_service(tmp_path, {"registry": {"refresh_seconds": 0.1}}) as service:

        def known() -> list[str]:
            return [item["id"] for item in httpx.get(f"{service.url}/v1/agents").json()["items"]]

        def asked() -> dict[str, Any]:
            answer: dict[str, Any] = httpx.post(f"{service.url}/v1/orchestrate", json={"content": "a refund"}).json()
            return answer

        assert known() == []
        database = ("--database", str(service.database))
        definition = OFFLINE.format(id="late")
        await asyncio.to_thread(orchestra, "agents", "register", "-", *database, cwd=tmp_path, given=definition)
        await wait_until(lambda: known() == ["late"], "the service does not see the new agent")
        assert asked()["agent"] == "late"
        await asyncio.to_thread(orchestra, "agents", "remove", "late", *database, cwd=tmp_path)
        await wait_until(lambda: known() == [], "the service does not see that the agent is gone")


def test_commands_beside_a_running_service_leave_its_requests_alone(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    agents = [{"id": "gated", "kind": "function", "settings": {"function": "tests.api.functions:gated"}}]
    body = {"content": "hello", "agent_id": "gated", "context": {"gate": str(gate)}}
    with (
        running_service(tmp_path, {"agents": agents}) as service,
        httpx.Client(base_url=service.url, timeout=30) as client,
        client.stream("POST", "/v1/orchestrate", json=body, headers={"Accept": "text/event-stream"}) as response,
    ):
        lines = response.iter_lines()
        assert next(line for line in lines if line.startswith("event: delta"))
        succeeds("conversations", "list", "--database", str(service.database), cwd=tmp_path)
        gate.touch()
        assert "event: completed" in list(lines)


def test_the_service_announces_where_it_listens(tmp_path: Path) -> None:
    service = Service(tmp_path, {})
    try:
        service.start()
        assert httpx.get(f"{service.url}/healthz").json() == {"status": "alive"}
        assert service.stop() == 0
    finally:
        service.close()
