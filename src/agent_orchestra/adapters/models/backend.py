"""Runs an agent that is a prompt: one turn of its model, or as many as its tools and its output schema ask for."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import AsyncIterable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from agent_orchestra.adapters.models.definition import PromptSettings
from agent_orchestra.adapters.models.failures import refusal_of
from agent_orchestra.adapters.models.providers import Provider
from agent_orchestra.adapters.models.schemas import compiled, invalid, mismatch, parsed
from agent_orchestra.adapters.models.tools import made
from agent_orchestra.adapters.models.vendors import ModelName
from agent_orchestra.core.prompt import Prompt, Wrote, turns_of
from agent_orchestra.core.request import Reply
from agent_orchestra.core.values import Json, faults_in
from agent_orchestra.errors import AgentFailed, MissingExtra, ModelFailed, ModelServerError, RunFailed, TurnsExhausted
from agent_orchestra.runtime.executor import Call, Emit

if TYPE_CHECKING:
    from pydantic_ai import Agent
    from pydantic_ai.messages import ModelMessage, ModelResponse

    from agent_orchestra.adapters.models.model import VendorModel

__all__ = ["PromptBackend", "vendor_model"]

#: Between what a model says before it uses a tool, and what it says after.
_GAP: Final = "\n\n"


async def vendor_model(provider: Provider, name: ModelName) -> VendorModel:
    """A model behind our promises. Raises :class:`ProviderKeyMissing` and :class:`MissingExtra`."""
    model = await provider.model(name)
    from agent_orchestra.adapters.models.model import VendorModel

    return VendorModel(model, provider, name.model)


@dataclass(slots=True)
class _Run:
    """One run of an agent with tools: what it has told, and whether it did what must not be done twice."""

    emit: Emit | None
    began: float
    used_tools: bool = False
    told: bool = False
    first_token_ms: float | None = None


_run: ContextVar[_Run | None] = ContextVar("run", default=None)


def _used() -> None:
    if run := _run.get():
        run.used_tools = True


class PromptBackend:
    """Conforms to :class:`Backend`. One of it for each model of an agent; they share the functions of its tools."""

    def __init__(
        self,
        agent_id: str,
        provider: Provider,
        name: ModelName,
        settings: PromptSettings,
        functions: Sequence[Any],
    ) -> None:
        self._agent_id = agent_id
        self._provider = provider
        self._name = name
        self._settings = settings
        self._functions = functions
        self._model: VendorModel | None = None
        self._agent: Agent[object, Any] | None = None

    async def run(self, call: Call, emit: Emit) -> Reply:
        model = self._model
        if model is None:
            try:
                model = self._model = await vendor_model(self._provider, self._name)
            except MissingExtra as error:
                raise ModelFailed(error.detail, provider=self._provider.name, model=self._name.model) from error
        prompt = self._prompt(call)
        listening = emit if call.streamed else None
        if self._settings.tools or self._settings.output_schema is not None:
            return await self._converse(model, prompt, listening)
        from agent_orchestra.adapters.models.asking import ask

        reply = await ask(model, prompt, listening)
        if reply.tool_calls:
            raise refusal_of(
                ModelServerError,
                provider=self._provider.name,
                model=self._name.model,
                vendor_code="tool_not_offered",
            )
        return reply

    def _prompt(self, call: Call) -> Prompt:
        settings = self._settings
        instructions = settings.instructions
        if call.context:
            context = json.dumps(call.context, ensure_ascii=False, sort_keys=True)
            instructions = f"{instructions}\n\nThe context of this request, as JSON: {context}".lstrip()
        return Prompt(
            turns=[*turns_of(call.history), Wrote(content=call.content, attachments=call.attachments)],
            instructions=instructions,
            output_schema=settings.output_schema,
            temperature=settings.temperature,
            max_tokens=settings.max_tokens,
        )

    async def _converse(self, model: VendorModel, prompt: Prompt, emit: Emit | None) -> Reply:
        """Turns of the model until it answers without a tool, and as its schema says."""
        from pydantic_ai import capture_run_messages
        from pydantic_ai.exceptions import UnexpectedModelBehavior, UsageLimitExceeded
        from pydantic_ai.usage import UsageLimits

        from agent_orchestra.adapters.models import asking

        asking.check(model, prompt)
        asked = prompt.turns[-1]
        assert isinstance(asked, Wrote)
        earlier = dataclasses.replace(prompt, turns=prompt.turns[:-1], instructions="")
        agent = self._agent
        if agent is None:
            agent = self._agent = self._made(model)
        # A schema is for the whole output: what was told before it is checked could not be taken back.
        run = _Run(emit if self._settings.output_schema is None else None, time.perf_counter())
        token = _run.set(run)
        with capture_run_messages() as messages:
            try:
                result = await agent.run(
                    asking.user_content(asked.content, asked.attachments),
                    message_history=asking.messages_of(earlier),
                    instructions=prompt.instructions or None,
                    model_settings=asking.settings_of(prompt, model.profile),
                    usage_limits=UsageLimits(request_limit=self._most_requests),
                    event_stream_handler=_listen if run.emit is not None else None,
                )
            except RunFailed as error:
                if run.used_tools:
                    # Another model would begin anew, and use the tools a second time.
                    error.elsewhere = False
                raise
            except UsageLimitExceeded as error:
                what = f"used tools for {self._settings.max_turns} turns"
                raise self._exhausted(what, model, messages) from error
            except UnexpectedModelBehavior as error:
                raise self._unanswered(model, messages) from error
            except Exception as error:
                # A server of tools that is gone, most of all; its message may hold what nobody else should see.
                raise AgentFailed(
                    f"a tool of agent '{self._agent_id}' failed with {type(error).__name__}", cause=type(error).__name__
                ) from error
            finally:
                _run.reset(token)
        return self._reply(model, result.new_messages(), result.output, run)

    def _made(self, model: VendorModel) -> Agent[object, Any]:
        from pydantic_ai import Agent, ModelRetry, NativeOutput, StructuredDict

        settings = self._settings
        tools, toolsets = made(settings.tools, self._functions, used=_used)
        common: dict[str, Any] = {
            "name": self._agent_id,
            "tools": tools,
            "toolsets": toolsets,
            "retries": {"tools": settings.output_retries, "output": settings.output_retries},
        }
        schema = settings.output_schema
        if schema is None:
            return Agent(model, **common)
        output: Any = StructuredDict(dict(schema), name="output")
        if model.profile.get("supports_json_schema_output"):
            output = NativeOutput(output, name="output")
        agent: Agent[object, Any] = Agent(model, output_type=output, **common)

        expected = compiled(schema)

        def validate(value: Json) -> Json:
            # The class that stands for the schema takes any object.
            if reason := mismatch(value, expected) or next(map(str, faults_in("", value)), None):
                raise ModelRetry(f"The output does not match its schema: {reason}")
            return value

        agent.output_validator(validate)
        return agent

    def _reply(self, model: VendorModel, messages: Sequence[ModelMessage], output: Json, run: _Run) -> Reply:
        from agent_orchestra.adapters.models.model import generation_of, usage_of

        responses = [message for message in messages if message.kind == "response"]
        structured = self._settings.output_schema is not None
        texts = filter(None, map(_text, responses))
        return Reply(
            output=json.dumps(output, ensure_ascii=False) if structured else _GAP.join(texts),
            value=output if structured else None,
            usage=usage_of(responses, model),
            generation=generation_of(responses[-1], model, run.first_token_ms),
        )

    @property
    def _most_requests(self) -> int:
        """Turns, and those in which the model is asked again for what it gave wrongly."""
        settings = self._settings
        turns = settings.max_turns if settings.tools else 1
        return turns + (settings.output_retries if settings.output_schema is not None else 0)

    def _exhausted(self, what: str, model: VendorModel, messages: Sequence[ModelMessage]) -> TurnsExhausted:
        paid = {name: value for name, value in self._paid(model, messages).items() if value is not None}
        return TurnsExhausted(
            f"'{self._name.model}' {what} and came to no answer; look at what the tools of agent '{self._agent_id}' "
            "take and give back, or raise settings.max_turns",
            provider=self._provider.name,
            model=self._name.model,
            **paid,
        )

    def _unanswered(self, model: VendorModel, messages: Sequence[ModelMessage]) -> ModelFailed:
        """The model was asked again as often as it may be, and still did not answer as it should."""
        schema = self._settings.output_schema
        if schema is None:
            what = f"was asked {self._settings.output_retries} times to use its tools as they are"
            return self._exhausted(what, model, messages)
        last = next((m for m in reversed(messages) if m.kind == "response"), None)
        output = _text(last) if last else ""
        if last and not output:
            calls = [part for part in last.parts if part.part_kind == "tool-call"]
            output = calls[-1].args_as_json_str() if calls else ""
        try:
            reason = mismatch(parsed(output), compiled(schema))
        except ValueError:
            reason = "it is no JSON"
        return invalid(
            output,
            reason or "it was not given as asked",
            provider=self._provider.name,
            model=self._name.model,
            **self._paid(model, messages),
        )

    @staticmethod
    def _paid(model: VendorModel, messages: Sequence[ModelMessage]) -> dict[str, float | None]:
        """What turns that came to nothing have used: they are paid for as others are."""
        from agent_orchestra.adapters.models.model import usage_of

        usage = usage_of([message for message in messages if message.kind == "response"], model)
        return {
            "input_tokens": usage.input_tokens,
            "output_tokens": usage.output_tokens,
            "cost_usd": usage.cost_usd,
        }


def _text(response: ModelResponse) -> str:
    return "".join(part.content for part in response.parts if part.part_kind == "text")


async def _listen(_: object, events: AsyncIterable[object]) -> None:
    """Tells what a turn says, as it comes. Called once for each turn of the model and each use of tools."""
    from agent_orchestra.adapters.models.asking import text_of

    run = _run.get()
    assert run is not None
    fresh = run.told
    async for event in events:
        if run.first_token_ms is None:
            run.first_token_ms = round((time.perf_counter() - run.began) * 1_000, 3)
        if (text := text_of(event)) and run.emit is not None:
            if fresh:
                run.emit(_GAP)
                fresh = False
            run.told = True
            run.emit(text)
