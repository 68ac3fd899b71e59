from __future__ import annotations

from pathlib import Path

import pytest

from agent_orchestra.core.alerts import Rule, Severity
from agent_orchestra.core.conversation import InputPolicy
from agent_orchestra.errors import ConfigurationError
from agent_orchestra.settings import config_file, database_url, load_settings, read_agent, without_effect

SECRET = "hunter2"


@pytest.fixture(autouse=True)
def _nothing_around(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No file in the working folder; the settings in the environment of whoever runs the tests are none of ours."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def env(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    return monkeypatch


def write(text: str, name: str = "orchestra.yaml") -> Path:
    path = Path(name)
    path.write_text(text, encoding="utf-8")
    return path.resolve()


def message(**overrides: dict[str, object]) -> str:
    """What is said about settings that are not valid: one line."""
    with pytest.raises(ConfigurationError) as caught:
        load_settings(None, **overrides)
    assert caught.value.code == "configuration"
    assert "\n" not in caught.value.detail
    return caught.value.detail


def test_without_file_and_environment_all_has_a_default() -> None:
    settings = load_settings()
    assert (settings.server.host, settings.server.port) == ("127.0.0.1", 8100)
    assert settings.database.url == "sqlite:///orchestra.db"
    assert settings.conversations.input_policy is InputPolicy.ENQUEUE
    assert settings.agents is None
    assert config_file() is None


def test_the_file_of_the_working_folder_is_read() -> None:
    write("server: {port: 8200}\norchestrator:\n  request_timeout: 2.5\n")
    settings = load_settings()
    assert settings.server.port == 8200
    assert settings.server.host == "127.0.0.1", "what the file leaves out keeps its default"
    assert settings.orchestrator.request_timeout == 2.5


def test_the_environment_wins_over_the_file_and_arguments_over_both(env: pytest.MonkeyPatch) -> None:
    write("server: {port: 8200, host: '::1', max_body_bytes: 4096}\n")
    env.setenv("ORCHESTRA_SERVER__PORT", "8300")
    settings = load_settings()
    assert (settings.server.port, settings.server.host, settings.server.max_body_bytes) == (8300, "::1", 4096)
    assert load_settings(server={"port": 8400}).server.port == 8400
    assert load_settings(server={"port": 8400}).server.host == "::1"


def test_nested_keys_come_from_the_environment(env: pytest.MonkeyPatch) -> None:
    env.setenv("ORCHESTRA_ORCHESTRATOR__LOAD_BALANCING__ENABLED", "false")
    env.setenv("orchestra_conversations__input_policy", "reject")
    env.setenv("ORCHESTRA_FUNCTIONS__ALLOWED_MODULES", '["a", "b"]')
    settings = load_settings()
    assert settings.orchestrator.load_balancing.enabled is False
    assert settings.orchestrator.load_balancing.algorithm == "round_robin"
    assert settings.conversations.input_policy is InputPolicy.REJECT
    assert settings.functions.allowed_modules == ("a", "b")


def test_the_file_is_named_by_argument_or_environment(env: pytest.MonkeyPatch) -> None:
    write("server: {port: 1}")
    other = write("server: {port: 2}", "other.yaml")
    third = write("server: {port: 3}", "third.yaml")
    assert load_settings().server.port == 1
    env.setenv("ORCHESTRA_CONFIG", str(other))
    assert load_settings().server.port == 2
    assert load_settings(third).server.port == 3
    env.setenv("ORCHESTRA_CONFIG", "gone.yaml")
    assert "gone.yaml" in message()


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n", "{}"])
def test_an_empty_file_says_nothing(text: str) -> None:
    write(text)
    assert load_settings().server.port == 8100


def test_agents_are_read_with_their_definitions() -> None:
    write("agents:\n  - {id: one, kind: offline, role: specialist, settings: {knowledge: [x]}}\n")
    settings = load_settings()
    assert settings.agents is not None
    assert [(agent.id, agent.role) for agent in settings.agents] == [("one", "specialist")]
    write("agents: []")
    assert load_settings().agents == ()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("sever: {port: 1}", "unknown key 'sever'; did you mean 'server'?"),
        ("server: {prot: 1}", "unknown key 'server.prot'; did you mean 'port'?"),
        (
            "orchestrator: {load_balancing: {enable: true}}",
            "unknown key 'orchestrator.load_balancing.enable'; did you mean 'enabled'?",
        ),
        ("agents: [{id: a, kind: offline, keyword: [x]}]", "unknown key 'agents.0.keyword'; did you mean 'keywords'?"),
        (
            "agents: [{id: a, kind: offline, limits: {timeot: 1}}]",
            "unknown key 'agents.0.limits.timeot'; did you mean 'timeout'?",
        ),
        ("server: {qqq: 1}", "known keys: "),
        ("server: {port: 70000}", "server.port: "),
        ("server: 8100", "server: "),
        ("orchestrator: {request_timeout: 0}", "orchestrator.request_timeout: "),
        ("agents: [{kind: offline}]", "agents.0.id: "),
        ("agents: {one: two}", "agents: "),
        ("conversations: {input_policy: wait}", "conversations.input_policy: "),
        ("- a\n- b", "must hold keys and values"),
        ("just text", "must hold keys and values"),
        ("server:\n  port: [1\nx: y", "is not YAML, line 3"),
        ("server:\n\tport: 1", "is not YAML, line 2"),
        ("a: !!python/object/apply:os.system ['true']", "is not YAML, line 1"),
        ("server: {port: 1}\n1: 2", "unknown key '1'"),
    ],
)
def test_what_is_wrong_in_a_file_is_told_with_its_place(text: str, said: str) -> None:
    write(text)
    found = message()
    assert said in found
    assert "orchestra.yaml" in found


def test_bytes_that_are_no_text_are_told() -> None:
    Path("orchestra.yaml").write_bytes(b"server: {host: '\xff\xfe'}")
    assert "orchestra.yaml" in message()


def test_a_file_that_cannot_be_read_is_told(env: pytest.MonkeyPatch) -> None:
    Path("folder.yaml").mkdir()
    env.setenv("ORCHESTRA_CONFIG", "folder.yaml")
    assert "folder.yaml" in message()


def test_deep_nesting_is_told() -> None:
    write("a: " + "[" * 5_000)
    assert "orchestra.yaml" in message()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("ORCHESTRA_SERVR__PORT", "unknown key 'servr'; did you mean 'server'?"),
        ("ORCHESTRA_SERVER__PRT", "unknown key 'server.prt'; did you mean 'port'?"),
        ("ORCHESTRA_PORT", "unknown key 'port'"),
        (
            "ORCHESTRA_ORCHESTRATOR__CIRCUIT_BREAKER__ENABLE",
            "unknown key 'orchestrator.circuit_breaker.enable'; did you mean 'enabled'?",
        ),
        ("orchestra_servr__port", "unknown key 'servr'; did you mean 'server'?"),
    ],
)
def test_an_environment_variable_that_nothing_reads_is_told(env: pytest.MonkeyPatch, name: str, said: str) -> None:
    env.setenv(name, SECRET)
    found = message()
    assert said in found
    assert name in found
    assert SECRET not in found


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ORCHESTRA_SERVER__PORT", SECRET),
        ("ORCHESTRA_SERVER", SECRET),
        ("ORCHESTRA_AGENTS", f'["{SECRET}'),
        ("ORCHESTRA_FUNCTIONS__ALLOWED_MODULES", SECRET),
        ("ORCHESTRA_CONVERSATIONS__INPUT_POLICY", SECRET),
        ("ORCHESTRA_DATABASE", f'{{"url": 1, "urll": "{SECRET}"}}'),
    ],
)
def test_a_value_of_the_environment_is_never_told(env: pytest.MonkeyPatch, name: str, value: str) -> None:
    env.setenv(name, value)
    assert SECRET not in message()


@pytest.mark.parametrize(
    "text",
    [
        f"database: {{url: 'postgresql://me:{SECRET}@host/name', colour: red}}",
        f"database: {{urll: 'postgresql://me:{SECRET}@host/name'}}",
        f"database: {{url: ['{SECRET}']}}",
        f"database:\n  url: 'postgresql://me:{SECRET}@host/name\n",
        f"database: {{pool_size: '{SECRET}'}}",
    ],
)
def test_a_password_is_never_told(text: str) -> None:
    write(text)
    assert SECRET not in message()


def test_a_path_means_sqlite() -> None:
    assert database_url("some/file.db") == "sqlite:///some/file.db"
    assert database_url("/abs/file.db") == "sqlite:////abs/file.db"
    assert database_url("postgresql://host/name") == "postgresql://host/name"


def test_an_agent_is_read_from_yaml_and_json() -> None:
    for name, text in (
        ("a.yaml", "id: one\nkind: offline\nlimits: {concurrency: 3}\nsettings:\n  knowledge: [x]\n"),
        ("a.json", '{"id": "one", "kind": "offline", "limits": {"concurrency": 3}, "settings": {"knowledge": ["x"]}}'),
    ):
        agent = read_agent(write(text, name))
        assert (agent.id, agent.kind, agent.limits.concurrency) == ("one", "offline", 3)
        assert dict(agent.settings) == {"knowledge": ["x"]}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "agent.yaml"),
        ("[]", "agent.yaml"),
        ("kind: offline", "id: "),
        ("id: a\nkind: offline\nkeyword: [x]", "unknown key 'keyword'; did you mean 'keywords'?"),
        ("id: a\nkind: offline\nlimits: {timeot: 1}", "unknown key 'limits.timeot'; did you mean 'timeout'?"),
        ("id: [", "is not YAML, line 1"),
    ],
)
def test_what_is_wrong_in_an_agent_is_told(text: str, said: str) -> None:
    path = write(text, "agent.yaml")
    with pytest.raises(ConfigurationError) as caught:
        read_agent(path)
    assert said in caught.value.detail
    assert "\n" not in caught.value.detail


def test_settings_that_do_nothing_yet_are_told() -> None:
    write("metrics: {collection_enabled: false, retention_days: 3}")
    assert without_effect(load_settings()) == ["metrics.collection_enabled", "metrics.retention_days"]
    Path("orchestra.yaml").unlink()
    assert without_effect(load_settings()) == []


def test_alerts_are_read_as_rules() -> None:
    write("alerts: [{name: busy, metric: requests.waiting, above: 50, for: 30, severity: critical}]")
    (rule,) = load_settings().alerts
    assert rule.to_rule() == Rule(
        name="busy", metric="requests.waiting", above=50, seconds=30, severity=Severity.CRITICAL
    )
    assert load_settings(None, server={}).alerts[0].to_rule().agent is None


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        (
            "[{name: a, metric: agents.unhelthy, above: 1}]",
            "alerts.0.metric: there is no 'agents.unhelthy'; did you mean 'agents.unhealthy'?",
        ),
        (
            "[{name: a, metric: agents.unhealthy, above: 1, severity: crit}]",
            "alerts.0.severity: there is no 'crit'; did you mean 'critical'?",
        ),
        ("[{name: a, metric: agents.unhealthy}]", "alerts.0: must have 'above' or 'below', and not both"),
        (
            "[{name: a, metric: agents.unhealthy, above: 1, below: 2}]",
            "alerts.0: must have 'above' or 'below', and not both",
        ),
        (
            "[{name: a, metric: agents.unhealthy, above: 1}, {name: a, metric: agent.p95_ms, above: 1}]",
            "alerts.1.name: 'a' is the name of 0 already; alerts.1.agent: is required for 'agent.p95_ms'",
        ),
        (
            "[{name: a, metric: agent.success_rate, agent: x, below: 95}]",
            "alerts.0.below: must lie between 0 and 1, as 'agent.success_rate' does",
        ),
        (
            "[{name: a, metric: agents.unhealthy, above: 1, fore: 1}]",
            "unknown key 'alerts.0.fore'; did you mean 'for'?",
        ),
        ("[{name: a b, metric: agents.unhealthy, above: 1}]", "alerts.0.name: "),
        ("{name: a}", "alerts: "),
    ],
)
def test_a_wrong_alert_is_refused_with_its_place(rules: str, said: str) -> None:
    write(f"alerts: {rules}")
    assert said in message()
