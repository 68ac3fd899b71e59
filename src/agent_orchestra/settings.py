"""One YAML file and the environment, read into one checked value.

The file is ``orchestra.yaml`` in the working folder, or the one that ``--config`` or ``ORCHESTRA_CONFIG`` names. The
environment wins over it: ``ORCHESTRA_SERVER__PORT=8200`` is ``server: {port: 8200}``.
"""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final, Literal, cast, get_args, get_origin

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, ValidationError
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from agent_orchestra.core.agent import ID_PATTERN, Agent
from agent_orchestra.core.alerts import Metric, Rule, Severity, check
from agent_orchestra.core.balancing import Algorithm
from agent_orchestra.core.conversation import InputPolicy
from agent_orchestra.core.routing import Strategy
from agent_orchestra.definitions import AgentDefinition, choice
from agent_orchestra.errors import ConfigurationError

__all__ = [
    "DatabaseSettings",
    "Logs",
    "Orchestrator",
    "ProviderSettings",
    "Secondary",
    "Server",
    "Settings",
    "config_file",
    "database_url",
    "load_settings",
    "read_agent",
    "without_effect",
]

_ENVIRONMENT: Final = "ORCHESTRA_"
_CONFIG_VARIABLE: Final = "ORCHESTRA_CONFIG"
_DEFAULT_FILE: Final = "orchestra.yaml"

Seconds = Annotated[float, Field(gt=0, le=86_400)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class LoadBalancing(_Section):
    enabled: bool = True
    """Off: an agent's first free instance takes every call."""
    algorithm: Annotated[Algorithm, choice(Algorithm)] = Algorithm.ROUND_ROBIN
    """``round_robin``, ``weighted_round_robin``, ``least_connections``, ``weighted`` (by speed, success, load and
    health) or ``peak_ewma`` (of two drawn at random, the faster one). An agent may say otherwise."""


class CircuitBreaker(_Section):
    enabled: bool = True
    failure_threshold: Annotated[int, Field(ge=1, le=10_000)] = 5
    """Failures in a row after which an instance gets no calls."""
    recovery_timeout: Seconds = 60.0
    """Seconds until one call tries it again."""
    failure_share: Annotated[float, Field(gt=0, le=1)] | None = None
    """The share of failed calls that opens it too, however they are spread."""
    window: Seconds = 30.0
    """Seconds over which that share is taken."""
    least_calls: Annotated[int, Field(ge=1, le=1_000_000)] = 20
    """Calls in the window before their share says anything."""
    slow_call: Seconds | None = None
    """A call that takes so many seconds counts as failed, however it ends."""


class RetryBudget(_Section):
    share: Annotated[float, Field(ge=0, le=1)] = 0.2
    """Retries beside first calls, for each agent."""
    floor: Annotated[int, Field(ge=0, le=1_000_000)] = 10
    """Retries in a window that there may be in any case."""
    window: Seconds = 10.0


class Metrics(_Section):
    collection_enabled: bool = True
    retention_days: Annotated[int, Field(ge=1)] = 7
    detailed_logging: bool = False
    """Log the message and place of what an agent's own code raises, not only its class. Messages may hold secrets."""


class Secondary(StrEnum):
    PARALLEL = "parallel"
    SEQUENTIAL = "sequential"
    IGNORE = "ignore"


class Orchestrator(_Section):
    routing_strategy: Strategy = Strategy.HYBRID
    """``simple`` compares words, ``semantic`` meanings too, ``learned`` uses examples and feedback besides; ``hybrid``
    asks a model where all that leaves a doubt, ``llm`` asks it always. What is not configured is left out."""
    fallback_agent: str | None = None
    """The agent that answers when no other matches."""
    max_concurrent_requests: Annotated[int, Field(ge=1, le=100_000)] = 100
    """Requests at once; others wait."""
    max_waiting_requests: Annotated[int, Field(ge=0, le=100_000)] = 100
    """Requests that may wait for their turn; one more is refused at once with 503 and Retry-After."""
    max_wait: Seconds = 10.0
    """Seconds that a request waits for its turn before it is refused."""
    request_timeout: Seconds = 300.0
    """Seconds for a whole request, waiting for its turn in a conversation included."""
    health_check_interval: Seconds = 30.0
    """Seconds between two checks of an instance, where it has one."""
    max_output_chars: Annotated[int, Field(ge=1, le=100_000_000)] = 1_000_000
    """The longest output that an agent may give."""
    hand_over_from: Annotated[float, Field(ge=0, le=1)] = 0.1
    """The least confidence with which another candidate of the route answers when the chosen agent cannot. Agents with
    the capability that was asked for may always."""
    secondary_agents: Annotated[Secondary, choice(Secondary)] = Secondary.PARALLEL
    """What becomes of the agents that a model names besides the first: ``parallel`` and ``sequential`` have all of them
    answer, ``ignore`` only the first."""
    load_balancing: LoadBalancing = LoadBalancing()
    circuit_breaker: CircuitBreaker = CircuitBreaker()
    retry_budget: RetryBudget = RetryBudget()


class RoutingRule(_Section):
    agent: str
    phrases: Annotated[tuple[Annotated[str, Field(pattern=r"\w")], ...], Field(min_length=1, max_length=1_000)]
    """A request that has one of them, as whole words in whatever case, goes to the agent."""


class RoutingModel(_Section):
    model: str | None = None
    """Such as ``local:llama3.2`` or ``anthropic:claude-haiku-4-5``. Without one, no model is asked."""
    doubt_from: Annotated[float, Field(ge=0, le=1)] = 0.1
    doubt_to: Annotated[float, Field(ge=0, le=1)] = 0.7
    """With ``hybrid`` the model is asked where the confidence lies from the one to below the other."""
    timeout: Seconds = 5.0
    """Seconds until the decision that was made without the model stands."""
    calls_per_minute: Annotated[int, Field(ge=1, le=1_000_000)] = 60
    usd_per_day: Annotated[float, Field(gt=0)] | None = None
    """Of this process, as far as prices are known."""


class RoutingLearning(_Section):
    enabled: bool = True
    feedback: Annotated[int, Field(ge=1, le=1_000_000)] = 20
    """Entries of feedback after which what was learned is fitted anew."""
    seconds: Seconds = 300.0
    """Seconds after which fewer are enough."""


class Routing(_Section):
    encoder: str | None = None
    """What turns texts into vectors: a folder with model.onnx and tokenizer.json, a name of the Hugging Face hub that
    ``orchestra encoder install`` has fetched, or a vendor's model such as ``openai:text-embedding-3-small``."""
    encoder_folder: Path | None = None
    """Where ``orchestra encoder install`` keeps what it fetches; else the user's cache."""
    encoder_timeout: Seconds = 2.0
    """Seconds until a request is routed by its words alone."""
    custom: str | None = None
    """A function of one's own that chooses first, as ``module:function``."""
    custom_timeout: Seconds = 1.0
    rules: tuple[RoutingRule, ...] = ()
    """They win over every estimate. The first that matches holds."""
    exploration: Annotated[float, Field(ge=0, le=0.2)] = 0.0
    """The share of estimated decisions in which another plausible agent is tried, to learn from it."""
    llm: RoutingModel = RoutingModel()
    learning: RoutingLearning = RoutingLearning()


class Server(_Section):
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65_535)] = 8100
    """0 takes any free port."""
    max_body_bytes: Annotated[int, Field(ge=1_024)] = 2_097_152
    """The longest body of a request that is read."""
    allowed_hosts: tuple[str, ...] = ()
    """Names besides those of loopback by which the service may be called without a key."""
    shutdown_grace: Annotated[float, Field(ge=0, le=3_600)] = 10.0
    """Seconds that running requests have to end when the service is stopped."""
    shutdown_delay: Annotated[float, Field(ge=0, le=3_600)] = 0.0
    """Seconds before that, in which requests are still taken while ``/readyz`` asks for them to be sent elsewhere."""


class DatabaseSettings(_Section):
    url: str = "sqlite:///orchestra.db"
    """``sqlite:///file.db`` (relative to the working folder) or ``postgresql://user@host/name``."""
    synchronous: Literal["NORMAL", "FULL"] = "NORMAL"
    """SQLite only. NORMAL survives the death of the process, FULL that of the machine, at the cost of a disk flush."""
    pool_size: Annotated[int, Field(ge=1, le=1_000)] = 10
    """Postgres only: connections that are kept; twice as many may be open."""


class ConversationSettings(_Section):
    input_policy: InputPolicy = InputPolicy.ENQUEUE
    """What becomes of input that comes while another request holds the conversation."""
    history_messages: Annotated[int, Field(ge=0, le=1_000)] = 50
    """How many of the last messages an agent is given."""


class Functions(_Section):
    allowed_modules: tuple[str, ...] = ()
    """Modules whose functions may be named by agents that are registered over the API."""


class ProviderSettings(_Section):
    api_key: SecretStr | None = None
    """Better in the environment, by the vendor's usual name. It is never logged and never stored."""
    base_url: Annotated[str, Field(pattern=r"^https?://[!-~]+$")] | None = None
    """Where the vendor's API is; else the vendor's own address."""
    timeout: Seconds = 120.0
    """Seconds without a sign from the vendor, until the call is given up."""
    max_concurrency: Annotated[int, Field(ge=1, le=100_000)] = 100
    """Calls at once with this key; others wait."""
    max_wait: Annotated[float, Field(ge=0, le=3_600)] = 10.0
    """Seconds that a call may wait for the vendor's rate limit, before it goes to another model or fails."""


class Providers(_Section):
    anthropic: ProviderSettings = ProviderSettings()
    """Its key is ANTHROPIC_API_KEY."""
    openai: ProviderSettings = ProviderSettings()
    """Its key is OPENAI_API_KEY."""
    google: ProviderSettings = ProviderSettings()
    """Its key is GOOGLE_API_KEY or GEMINI_API_KEY."""
    local: ProviderSettings = ProviderSettings()
    """Any server that speaks OpenAI's Chat Completions: Ollama (the default address), vLLM, llama.cpp."""


class Registry(_Section):
    modules: tuple[Annotated[str, Field(pattern=r"^[^\W\d]\w*(\.[^\W\d]\w*)*$")], ...] = ()
    """Modules whose functions marked with ``@agent`` are agents, shared by all tenants."""
    entry_points: bool = True
    """Take up the agents of installed packages: their entry points of the group ``agent_orchestra.agents``."""
    refresh_seconds: Seconds = 1.0
    """How soon a change by another process is seen."""


class AlertRule(_Section):
    name: Annotated[str, Field(pattern=ID_PATTERN)]
    metric: Annotated[Metric, choice(Metric)]
    above: float | None = None
    below: float | None = None
    """The metric may lie at the bound, but not beyond it."""
    seconds: Annotated[float, Field(alias="for")] = 0.0
    """For how long it must lie beyond, until the alert fires."""
    severity: Annotated[Severity, choice(Severity)] = Severity.WARNING
    agent: str | None = None
    """Whose metric, where it is one of an agent."""

    def to_rule(self) -> Rule:
        return Rule(**dict(self))


def _without_faults(rules: tuple[AlertRule, ...]) -> tuple[AlertRule, ...]:
    if faults := check([rule.to_rule() for rule in rules]):
        sentences = "; ".join(f"alerts.{fault.path}: {fault.message}" for fault in faults)
        raise PydanticCustomError("placed", "{sentences}", {"sentences": sentences})
    return rules


class Logs(_Section):
    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "json", "console"] = "auto"
    """``auto``: for people on a terminal, JSON elsewhere."""


class Settings(BaseSettings):
    """Everything that can be set. Unknown keys are errors."""

    model_config = SettingsConfigDict(
        env_prefix=_ENVIRONMENT,
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
    )

    orchestrator: Orchestrator = Orchestrator()
    server: Server = Server()
    database: DatabaseSettings = DatabaseSettings()
    conversations: ConversationSettings = ConversationSettings()
    functions: Functions = Functions()
    routing: Routing = Routing()
    providers: Providers = Providers()
    registry: Registry = Registry()
    metrics: Metrics = Metrics()
    logs: Logs = Logs()
    agents: tuple[AgentDefinition, ...] | None = None
    """The agents of the operator, shared by all tenants. None: the file says nothing about agents."""
    alerts: Annotated[tuple[AlertRule, ...], Field(max_length=1_000), AfterValidator(_without_faults)] = ()
    """Rules on figures of this process, and when one that is broken is told."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003  the signature is pydantic's
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        # The environment is merged in by load_settings, between the file and what the caller gives.
        return (init_settings,)


#: Keys that are read and checked, and that no part acts on yet.
_WITHOUT_EFFECT: Final = (
    "metrics.collection_enabled",
    "metrics.retention_days",
)


def load_settings(path: Path | None = None, **overrides: Mapping[str, object]) -> Settings:
    """The settings of a file and of the environment; ``overrides`` (sections, by name) win over both.

    Raises :class:`ConfigurationError` with the place and the nearest known key, never with a value that may be secret.
    """
    given = _read(path)
    _check_environment()
    try:
        settings = Settings(**_merged(_merged(given, EnvSettingsSource(Settings)()), overrides))
    except ValidationError as error:
        where = f" in {path or _DEFAULT_FILE}" if given else ""
        raise ConfigurationError(f"the settings{where} are not valid: {'; '.join(_sentences(error))}") from None
    except ValueError as error:
        # pydantic-settings says so when a variable that should hold JSON does not; its message holds no value.
        raise ConfigurationError(f"the environment is not valid: {error}") from None
    return settings


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Both, section by section; what is above wins."""
    merged = dict(below)
    for key, value in above.items():
        under = merged.get(key)
        both = isinstance(value, Mapping) and isinstance(under, Mapping)
        merged[key] = _merged(cast("Mapping[str, Any]", under), cast("Mapping[str, Any]", value)) if both else value
    return merged


def database_url(text: str) -> str:
    """The address that a person means who gives a path or an address."""
    return text if "://" in text else f"sqlite:///{text}"


def read_agent(path: Path) -> Agent:
    """One definition of a file in YAML or JSON; ``-`` reads standard input. Raises :class:`ConfigurationError`."""
    given = _parsed(path)
    try:
        definition = AgentDefinition.model_validate(given)
    except ValidationError as error:
        faults = "; ".join(_sentences(error, AgentDefinition))
        raise ConfigurationError(f"the agent in '{path}' is not valid: {faults}") from None
    return definition.to_agent(definition.id)


def without_effect(settings: Settings) -> list[str]:
    """The keys that somebody has set and that no part acts on yet."""
    found: list[str] = []
    for path in _WITHOUT_EFFECT:
        value: object = settings
        default: object = Settings.model_construct()
        for name in path.split("."):
            value, default = getattr(value, name), getattr(default, name)
        if value != default:
            found.append(path)
    return found


def config_file(path: Path | None = None) -> Path | None:
    """The file that is read: the one that is named, or the default one where it exists."""
    if path is None and (named := os.environ.get(_CONFIG_VARIABLE)):
        path = Path(named)
    if path is None:
        return Path(_DEFAULT_FILE) if Path(_DEFAULT_FILE).is_file() else None
    return path


def _read(path: Path | None) -> dict[str, Any]:
    found = config_file(path)
    if found is None:
        return {}
    content = _parsed(found)
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigurationError(f"'{found}' must hold keys and values at its top")
    sections = {str(key): value for key, value in cast("dict[object, Any]", content).items()}
    if private := next((key for key in sections if key.startswith("_")), None):
        raise ConfigurationError(f"unknown key '{private}' in '{found}'{_near(private, Settings.model_fields)}")
    return sections


def _parsed(path: Path) -> object:
    try:
        if str(path) != "-":
            text = path.read_text(encoding="utf-8")
        elif sys.stdin is None:
            raise ConfigurationError("there is no standard input to read")
        else:
            text = sys.stdin.read()
        return yaml.safe_load(text)
    except OSError as error:
        raise ConfigurationError(f"cannot read '{path}': {error.strerror}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        # A date that is none, a number without end, bytes that are no text: values that YAML itself cannot make.
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "it cannot be read"
        raise ConfigurationError(f"'{path}' is not YAML{place}: {problem}") from None


def _check_environment() -> None:
    """An environment variable of ours that nothing reads is most likely a slip."""
    for name in os.environ:
        if not name.upper().startswith(_ENVIRONMENT) or name.upper() == _CONFIG_VARIABLE:
            continue
        keys = [key.lower() for key in name[len(_ENVIRONMENT) :].split("__")]
        model: Any = Settings
        for depth, key in enumerate(keys):
            known = _fields_of(model)
            if known is None:
                break
            if key not in known:
                before = ".".join([*keys[:depth], key])
                raise ConfigurationError(f"environment variable {name}: unknown key '{before}'{_near(key, known)}")
            model = known[key]


def _fields_of(kind: Any) -> Mapping[str, Any] | None:
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return {field.alias or name: field.annotation for name, field in kind.model_fields.items()}
    return None


def _sentences(error: ValidationError, root: type[BaseModel] = Settings) -> Iterator[str]:
    for found in error.errors(include_input=False, include_url=False):
        place = ".".join(str(part) for part in found["loc"])
        if found["type"] == "extra_forbidden":
            known = _known_at(root, found["loc"][:-1])
            yield f"unknown key '{place}'{_near(str(found['loc'][-1]), known)}"
        elif found["type"] == "placed":
            yield found["msg"]
        else:
            yield f"{place}: {found['msg']}"


def _known_at(root: type[BaseModel], place: tuple[int | str, ...]) -> Mapping[str, Any]:
    kind: Any = root
    for part in place:
        if isinstance(part, int):
            continue
        kind = _model_in((_fields_of(kind) or {}).get(part))
    return _fields_of(kind) or {}


def _model_in(annotation: Any) -> Any:
    """The model in an annotation such as ``tuple[Model, ...] | None``."""
    if get_origin(annotation) is None:
        return annotation
    inner = [_model_in(argument) for argument in get_args(annotation)]
    return next((kind for kind in inner if _fields_of(kind) is not None), None)


def _near(key: str, known: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.4)
    return f"; did you mean '{near[0]}'?" if near else f"; known keys: {', '.join(sorted(known))}"
