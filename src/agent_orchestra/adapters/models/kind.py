"""The kind ``prompt``: an agent is its instructions, and each of its models is an instance."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module

from agent_orchestra.adapters.models.backend import PromptBackend, vendor_model
from agent_orchestra.adapters.models.definition import PromptSettings, checked, schema
from agent_orchestra.adapters.models.providers import Provider, Providers
from agent_orchestra.adapters.models.tools import (
    McpServer,
    check_callers,
    faults_in_signatures,
    functions_of,
    missing_variables,
)
from agent_orchestra.adapters.models.vendors import ModelName, parse
from agent_orchestra.core.agent import Agent
from agent_orchestra.core.prompt import Prompt
from agent_orchestra.core.request import Reply
from agent_orchestra.core.values import JsonObject
from agent_orchestra.errors import Fault, InvalidAgent, ProviderKeyMissing
from agent_orchestra.runtime.executor import Call, Emit, Instance
from agent_orchestra.runtime.models import ProviderStatus
from agent_orchestra.runtime.registry import Kind

__all__ = ["PromptKind", "VendorModels"]


class PromptKind:
    """Conforms to :class:`Kind`.

    ``offline`` is the kind that answers without a vendor; ``allowed``: the modules whose functions a caller may name as
    tools who is not the operator.
    """

    def __init__(self, providers: Providers, *, offline: Kind, allowed: Sequence[str]) -> None:
        self._providers = providers
        self._offline = offline
        self._allowed = frozenset(allowed)

    @property
    def schema(self) -> JsonObject:
        return schema(self._offline.schema)

    async def connect(self, agent: Agent, *, trusted: bool) -> Sequence[Instance]:
        settings = checked(agent)
        if not trusted:
            check_callers(settings.tools, self._allowed)
        faults: list[Fault] = []
        functions = await functions_of(settings.tools, faults, trusted=trusted)
        standing_in: Sequence[Instance] = ()
        if settings.offline is not None:
            try:
                notes = dataclasses.replace(agent, settings=settings.offline)
                standing_in = await self._offline.connect(notes, trusted=trusted)
            except InvalidAgent as error:
                faults.extend(
                    Fault(path=fault.path.replace("settings", "settings.offline", 1), message=fault.message)
                    for fault in error.faults
                )
        if any(isinstance(tool, McpServer) for tool in settings.tools) and not _has_mcp():
            faults.append(Fault(path="settings.tools", message="MCP needs: pip install 'agent-orchestra[mcp]'"))
        faults.extend(missing_variables(settings.tools))
        named = [(name, self._providers[name.vendor.name]) for name in settings.models]
        usable = [(name, provider) for name, provider in named if provider.has_key]
        faults.extend(
            Fault(
                path="settings.models",
                message=f"models of {name.vendor.name} need: pip install 'agent-orchestra[{name.vendor.extra}]'",
            )
            for name, _ in usable
            if not name.vendor.installed()
        )
        if not faults and usable and (settings.tools or settings.output_schema is not None):
            faults.extend(await asyncio.to_thread(_faults_of_use, settings, functions))
        if faults:
            raise InvalidAgent(agent.id, tuple(faults))
        if usable:
            instances = [
                self._instance(agent, settings, functions, name, provider, rank)
                for rank, (name, provider) in enumerate(usable)
            ]
            if not any(provider.vendor.needs_key for _, provider in usable):
                # A server of one's own may be up or not; without any key the notes stand by.
                instances.extend(dataclasses.replace(notes, rank=len(usable)) for notes in standing_in)
            return instances
        if standing_in:
            return standing_in
        missing = partial(_missing, [provider.missing_key(name.model) for name, provider in named])
        return [Instance(id=str(settings.models[0]), backend=_Keyless(missing))]

    @staticmethod
    def _instance(
        agent: Agent,
        settings: PromptSettings,
        functions: Sequence[Callable[..., object] | None],
        name: ModelName,
        provider: Provider,
        rank: int,
    ) -> Instance:
        return Instance(
            id=str(name),
            backend=PromptBackend(agent.id, provider, name, settings, functions),
            rank=rank,
            repeatable=not settings.tools,
            paused=partial(provider.limiter.paused, name.model),
        )


def _faults_of_use(settings: PromptSettings, functions: Sequence[Callable[..., object] | None]) -> list[Fault]:
    """What only shows when tools and schema are made into what pydantic-ai takes."""
    from pydantic import TypeAdapter
    from pydantic_ai import StructuredDict

    faults = list(faults_in_signatures(settings.tools, functions))
    if settings.output_schema is not None:
        try:
            # pydantic-ai finds some faults when it makes the class, and others when it uses it.
            TypeAdapter(StructuredDict(dict(settings.output_schema), name="output")).json_schema()
        except Exception as error:  # noqa: BLE001  whatever a schema does to whoever reads it
            message = f"cannot be asked of a model ({type(error).__name__}), as when it refers to itself"
            faults.append(Fault(path="settings.output_schema", message=message))
    return faults


class _Keyless:
    """Conforms to :class:`Backend`. Says what is missing, to whoever asks."""

    def __init__(self, missing: Callable[[], ProviderKeyMissing]) -> None:
        self._missing = missing

    async def run(self, call: Call, emit: Emit) -> Reply:  # noqa: ARG002  the port's own
        raise self._missing()


def _missing(errors: Sequence[ProviderKeyMissing]) -> ProviderKeyMissing:
    """One error that names every key that would do."""
    return ProviderKeyMissing("; or ".join(dict.fromkeys(error.detail for error in errors)), **errors[0].data)


def _has_mcp() -> bool:
    import importlib.util

    return importlib.util.find_spec("fastmcp") is not None


class VendorModels:
    """Conforms to :class:`Models` and :class:`Vendors`."""

    def __init__(self, providers: Providers) -> None:
        self._providers = providers

    async def ask(self, model: str, prompt: Prompt, emit: Emit | None = None) -> Reply:
        name = parse(model)
        made = await vendor_model(self._providers[name.vendor.name], name)
        from agent_orchestra.adapters.models.asking import ask
        from agent_orchestra.adapters.models.model import ListenerFailed

        try:
            return await ask(made, prompt, emit)
        except ListenerFailed as error:
            raise error.__cause__ or error from None

    async def prepare(self, model: str) -> None:
        name = parse(model)
        await vendor_model(self._providers[name.vendor.name], name)
        await asyncio.to_thread(import_module, "agent_orchestra.adapters.models.asking")

    async def check(self, *, fresh: bool = False) -> Sequence[ProviderStatus]:
        return await self._providers.check(fresh=fresh)

    def known(self) -> Sequence[ProviderStatus]:
        """As :meth:`Vendors.known`."""
        return self._providers.known()
