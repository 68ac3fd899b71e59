"""What can be set of dispatch, for the service and for each agent, and what is said about a slip."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent_orchestra.core.agent import Balancing, Limits, check
from agent_orchestra.core.balancing import Algorithm
from agent_orchestra.core.breaker import BreakerPolicy
from agent_orchestra.core.resilience import Action, BudgetPolicy, Recovery
from agent_orchestra.errors import ConfigurationError
from agent_orchestra.settings import Orchestrator, load_settings, read_agent


@pytest.fixture(autouse=True)
def _nothing_around(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(text: str) -> Path:
    path = Path("orchestra.yaml")
    path.write_text(text, encoding="utf-8")
    return path


def orchestrator() -> Orchestrator:
    return load_settings().orchestrator


def message() -> str:
    """What is said about settings that are not valid: one line."""
    with pytest.raises(ConfigurationError) as caught:
        load_settings()
    assert "\n" not in caught.value.detail
    return caught.value.detail


# --- for the service


def test_what_holds_requests_back_has_the_defaults_that_are_promised() -> None:
    found = orchestrator()
    assert (found.max_concurrent_requests, found.max_waiting_requests, found.max_wait) == (100, 100, 10.0)
    assert (found.request_timeout, found.health_check_interval) == (300.0, 30.0)
    assert (found.load_balancing.enabled, found.load_balancing.algorithm) == (True, Algorithm.ROUND_ROBIN)
    breaker, budget = found.circuit_breaker, found.retry_budget
    assert (breaker.enabled, breaker.failure_threshold, breaker.recovery_timeout) == (True, 5, 60.0)
    assert (breaker.failure_share, breaker.slow_call) == (None, None)
    assert (budget.share, budget.floor, budget.window) == (0.2, 10, 10.0)


def test_the_settings_have_the_defaults_of_the_core() -> None:
    breaker, budget = orchestrator().circuit_breaker, orchestrator().retry_budget
    policy = BreakerPolicy(
        enabled=breaker.enabled,
        failures=breaker.failure_threshold,
        rest=breaker.recovery_timeout,
        failure_share=breaker.failure_share,
        window=breaker.window,
        least_calls=breaker.least_calls,
        slow=breaker.slow_call,
    )
    assert policy == BreakerPolicy()
    assert BudgetPolicy(share=budget.share, floor=budget.floor, window=budget.window) == BudgetPolicy()


def test_dispatch_is_set_in_the_file_and_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    write("orchestrator: {load_balancing: {algorithm: weighted}, circuit_breaker: {slow_call: 2.5}}")
    monkeypatch.setenv("ORCHESTRA_ORCHESTRATOR__CIRCUIT_BREAKER__FAILURE_SHARE", "0.5")
    monkeypatch.setenv("ORCHESTRA_ORCHESTRATOR__RETRY_BUDGET__FLOOR", "0")
    found = orchestrator()
    assert found.load_balancing.algorithm is Algorithm.WEIGHTED
    assert (found.circuit_breaker.slow_call, found.circuit_breaker.failure_share) == (2.5, 0.5)
    assert found.retry_budget.floor == 0
    monkeypatch.setenv("ORCHESTRA_ORCHESTRATOR__LOAD_BALANCING__ALGORITHM", "peak_ewna")
    assert "did you mean 'peak_ewma'?" in message()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("load_balancing: {algorithm: round_robbin}", "there is no 'round_robbin'; did you mean 'round_robin'?"),
        ("load_balancing: {algorithm: zzz}", "known: round_robin, weighted_round_robin, least_connections, "),
        ("load_balancing: {algorithm: 3}", "orchestrator.load_balancing.algorithm: "),
        ("load_balancing: {weight: 3}", "unknown key 'orchestrator.load_balancing.weight'"),
        ("max_concurrent_requests: 0", "orchestrator.max_concurrent_requests: "),
        ("max_waiting_requests: -1", "orchestrator.max_waiting_requests: "),
        ("max_waiting_request: 3", "did you mean 'max_waiting_requests'?"),
        ("max_wait: 0", "orchestrator.max_wait: "),
        ("max_wait: .inf", "orchestrator.max_wait: "),
        ("hand_over_from: 1.1", "orchestrator.hand_over_from: "),
        ("hand_over_from: .nan", "orchestrator.hand_over_from: "),
        ("circuit_breaker: {failure_threshold: 0}", "orchestrator.circuit_breaker.failure_threshold: "),
        ("circuit_breaker: {recovery_timeout: 0}", "orchestrator.circuit_breaker.recovery_timeout: "),
        ("circuit_breaker: {recovery_timeout: .nan}", "orchestrator.circuit_breaker.recovery_timeout: "),
        ("circuit_breaker: {failure_share: 0}", "orchestrator.circuit_breaker.failure_share: "),
        ("circuit_breaker: {failure_share: 20}", "orchestrator.circuit_breaker.failure_share: "),
        ("circuit_breaker: {window: -1}", "orchestrator.circuit_breaker.window: "),
        ("circuit_breaker: {least_calls: 0}", "orchestrator.circuit_breaker.least_calls: "),
        ("circuit_breaker: {slow_call: 0}", "orchestrator.circuit_breaker.slow_call: "),
        ("circuit_breaker: {failure_treshold: 1}", "did you mean 'failure_threshold'?"),
        ("retry_budget: {share: 1.5}", "orchestrator.retry_budget.share: "),
        ("retry_budget: {floor: -1}", "orchestrator.retry_budget.floor: "),
        ("retry_budget: {window: 0}", "orchestrator.retry_budget.window: "),
        ("retry_budget: {shares: 0.1}", "did you mean 'share'?"),
    ],
)
def test_a_slip_in_the_settings_is_told_with_its_place(text: str, said: str) -> None:
    write(f"orchestrator: {{{text}}}")
    assert said in message()
    assert f"orchestrator.{text.partition(':')[0]}" in message()


# --- for an agent

AGENT = "id: a\nkind: offline\nsettings: {knowledge: [x]}\n"
POLICY = """
read_only: true
limits: {concurrency: 2, queue: 7}
balancing: {algorithm: peak_ewma, weights: {one: 2, two: 0}, sticky: true}
recovery:
  attempts: 3
  base: 0.5
  cap: 5
  actions: {agent_failed.ValueError: retry, model_rate_limited: reassign, "*": abort}
  exhausted: escalate
  hedge: true
"""


def test_an_agents_policy_is_read_with_its_definition() -> None:
    agent = read_agent(write(AGENT + POLICY))
    assert (agent.read_only, agent.limits) == (True, Limits(concurrency=2, queue=7))
    assert agent.balancing == Balancing(algorithm=Algorithm.PEAK_EWMA, weights={"one": 2, "two": 0}, sticky=True)
    actions = {"agent_failed.ValueError": Action.RETRY, "model_rate_limited": Action.REASSIGN, "*": Action.ABORT}
    assert agent.recovery == Recovery(
        attempts=3, base=0.5, cap=5, actions=actions, exhausted=Action.ESCALATE, hedge=True
    )
    assert check(agent) == ()


def test_an_agent_without_a_policy_has_the_defaults_of_the_core() -> None:
    agent = read_agent(write(AGENT))
    assert (agent.limits, agent.balancing, agent.recovery) == (Limits(), Balancing(), Recovery())
    assert not agent.read_only


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("balancing: {algorithm: weigthed}", "there is no 'weigthed'; did you mean 'weighted'?"),
        ("balancing: {algoritm: weighted}", "did you mean 'algorithm'?"),
        ("balancing: {weights: {one: -1}}", "balancing.weights.one: "),
        ("balancing: {weights: {one: .inf}}", "balancing.weights.one: "),
        ("balancing: {weights: {one: .nan}}", "balancing.weights.one: "),
        ("balancing: {weights: {one: true}}", "must be a number"),
        ("balancing: {weights: {one: '2'}}", "must be a number"),
        ("balancing: {weights: [1, 2]}", "balancing.weights: "),
        ("balancing: {sticky: 1}", "balancing.sticky: "),
        ("limits: {queue: -1}", "limits.queue: "),
        ("limits: {queue: 10001}", "limits.queue: "),
        ("limits: {queu: 1}", "did you mean 'queue'?"),
        ("recovery: {attempts: 0}", "recovery.attempts: "),
        ("recovery: {attempts: 21}", "recovery.attempts: "),
        ("recovery: {attempts: .inf}", "recovery.attempts: "),
        ("recovery: {base: 0}", "recovery.base: "),
        ("recovery: {cap: .nan}", "recovery.cap: "),
        ("recovery: {actions: {agent_failed: retri}}", "there is no 'retri'; did you mean 'retry'?"),
        ("recovery: {actions: {agent_failed: hand_over}}", "known: retry, reassign, escalate, abort"),
        ("recovery: {exhausted: retry}", "recovery.exhausted: "),
        ("recovery: {exhausted: escalat}", "did you mean 'escalate'?"),
        ("recovery: {hedge: yes please}", "recovery.hedge: "),
        ("recovery: {atempts: 1}", "did you mean 'attempts'?"),
        ("read_only: perhaps", "read_only: "),
    ],
)
def test_a_slip_in_an_agents_policy_is_told_with_its_place(text: str, said: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        read_agent(write(AGENT + text))
    assert said in caught.value.detail
    assert text.partition(":")[0] in caught.value.detail
    write(f"agents: [{{id: a, kind: offline, {text}}}]")
    assert said in message()
    assert f"agents.0.{text.partition(':')[0]}" in message()
