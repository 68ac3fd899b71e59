"""The tools of an agent: Python functions, and the servers that speak MCP (Model Context Protocol)."""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeAlias, cast

from agent_orchestra.adapters.code import (
    TARGET_SCHEMA,
    NotThereError,
    check_allowed,
    check_own,
    found,
    in_thread,
    is_target,
)
from agent_orchestra.adapters.models.schemas import OBJECT_SCHEMA, compiled, faults_in_schema, mismatch
from agent_orchestra.core.values import Json, JsonObject, cleaned
from agent_orchestra.errors import AgentFailed, Fault, Forbidden, MissingExtra, RunFailed

if TYPE_CHECKING:
    from pydantic_ai.tools import Tool
    from pydantic_ai.toolsets import AbstractToolset

__all__ = [
    "TOOLS_SCHEMA",
    "FunctionTool",
    "McpServer",
    "ToolDefinition",
    "check_callers",
    "faults_in_signatures",
    "functions_of",
    "made",
    "missing_variables",
    "read",
]

#: What all vendors take for the name of a function.
_TOOL_NAME: Final = "^[a-zA-Z_][a-zA-Z0-9_-]{0,63}$"
_TOOL_FORM: Final = re.compile(_TOOL_NAME[1:-1])
_HEADER: Final = "^[A-Za-z0-9_-]{1,100}$"
_VARIABLE: Final = "^[A-Za-z_][A-Za-z0-9_]{0,200}$"
_REFERENCE: Final = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
TOOLS_SCHEMA: Final[JsonObject] = {
    "description": "Functions as 'module:function', and MCP servers.",
    "type": "array",
    "maxItems": 64,
    "items": {
        "anyOf": [
            TARGET_SCHEMA,
            {
                "type": "object",
                "properties": {
                    "function": TARGET_SCHEMA,
                    "name": {"type": "string", "pattern": _TOOL_NAME},
                    "description": {"type": "string", "maxLength": 4_000, "pattern": "^[^\\u0000]*$"},
                    "parameters": {
                        **OBJECT_SCHEMA,
                        "description": "A JSON Schema of its arguments; else it is made from the function's signature.",
                    },
                },
                "required": ["function"],
                "additionalProperties": False,
            },
            {
                "type": "object",
                "properties": {
                    "mcp": {
                        "description": "The URL of a server (streamable HTTP), or the command that starts one (stdio).",
                        "anyOf": [
                            {"type": "string", "pattern": "^https?://[!-~]+$", "maxLength": 2_000},
                            {
                                "type": "array",
                                "items": {
                                    "type": "string",
                                    "minLength": 1,
                                    "maxLength": 2_000,
                                    "pattern": "^[^\\u0000]*$",
                                },
                                "minItems": 1,
                                "maxItems": 64,
                            },
                        ],
                    },
                    "prefix": {"type": "string", "pattern": "^[a-zA-Z_][a-zA-Z0-9_-]{0,30}$"},
                    "headers": {
                        "description": "Sent to a URL. ${NAME} is the variable of the environment.",
                        "type": "object",
                        "propertyNames": {"pattern": _HEADER},
                        "additionalProperties": {"type": "string", "pattern": "^[ -~]*$", "maxLength": 4_000},
                    },
                    "env": {
                        "description": "Variables of the environment that a command is given.",
                        "type": "array",
                        "items": {"type": "string", "pattern": _VARIABLE},
                        "maxItems": 64,
                    },
                },
                "required": ["mcp"],
                "additionalProperties": False,
            },
        ]
    },
}


@dataclass(frozen=True, slots=True, kw_only=True)
class FunctionTool:
    """``parameters`` is none where the function's signature says what it takes."""

    target: str
    name: str | None
    description: str | None
    parameters: JsonObject | None

    @property
    def tool_name(self) -> str:
        """What the model calls it: its name, or the function's own."""
        return self.name or self.target.rpartition(":")[2].rpartition(".")[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class McpServer:
    """``where``: a URL, or a command with its arguments. ``prefix`` stands before the names of its tools.

    Secrets are named and not held: ``${NAME}`` in a header, and each of ``env``, is a variable of the environment.
    """

    where: str | Sequence[str]
    prefix: str | None
    headers: Mapping[str, str]
    env: Sequence[str]

    @property
    def variables(self) -> Sequence[str]:
        """The variables that it needs."""
        return [*self.env, *(name for text in self.headers.values() for name in _REFERENCE.findall(text))]


ToolDefinition: TypeAlias = FunctionTool | McpServer


def read(given: Json, faults: list[Fault]) -> list[ToolDefinition]:
    """The tools of a definition; what is wrong with them joins the faults."""
    if not isinstance(given, Sequence) or isinstance(given, str):
        faults.append(Fault(path="settings.tools", message="must be a list"))
        return []
    if len(given) > 64:
        faults.append(Fault(path="settings.tools", message=f"has {len(given)} entries; at most 64"))
    tools: list[ToolDefinition] = []
    names: set[str] = set()
    for number, one in enumerate(given):
        path = f"settings.tools.{number}"
        wrong = list(_faults(one, path))
        if not wrong:
            tool = _tool(one)
            if isinstance(tool, FunctionTool) and not _TOOL_FORM.fullmatch(tool.tool_name):
                wrong.append(Fault(path=path, message=f"'{tool.tool_name}' is too long for a tool; give it a name"))
            elif isinstance(tool, FunctionTool) and tool.tool_name in names:
                wrong.append(Fault(path=path, message=f"there is already a tool '{tool.tool_name}'; give it a name"))
            elif isinstance(tool, FunctionTool):
                names.add(tool.tool_name)
            tools.append(tool)
        faults.extend(wrong)
    return tools


def _tool(given: Json) -> ToolDefinition:
    if isinstance(given, str):
        return FunctionTool(target=given, name=None, description=None, parameters=None)
    fields = cast("Mapping[str, Any]", given)
    if "mcp" in fields:
        return McpServer(
            where=fields["mcp"],
            prefix=fields.get("prefix"),
            headers=fields.get("headers", {}),
            env=fields.get("env", ()),
        )
    return FunctionTool(
        target=fields["function"],
        name=fields.get("name"),
        description=fields.get("description"),
        parameters=fields.get("parameters"),
    )


def _faults(given: Json, path: str) -> Iterator[Fault]:
    if isinstance(given, str):
        yield from _faults_in_target(given, path)
        return
    if not isinstance(given, Mapping):
        yield Fault(path=path, message="must be 'module:function', or an object with 'function' or with 'mcp'")
        return
    known = ("mcp", "prefix", "headers", "env") if "mcp" in given else ("function", "name", "description", "parameters")
    for name in given:
        if name not in known:
            yield Fault(path=f"{path}.{name}", message=f"is not known here; known: {', '.join(known)}")
    if "mcp" in given:
        yield from _faults_in_server(given["mcp"], f"{path}.mcp")
        yield from _faults_in_secrets(given, path)
        prefix = given.get("prefix")
        if prefix is not None and not (isinstance(prefix, str) and _TOOL_FORM.fullmatch(prefix) and len(prefix) <= 31):
            yield Fault(path=f"{path}.prefix", message="must be 1 to 31 letters, digits, '_' or '-', a letter first")
        return
    yield from _faults_in_target(given.get("function"), f"{path}.function")
    if "name" in given and not (isinstance(given["name"], str) and _TOOL_FORM.fullmatch(given["name"])):
        yield Fault(path=f"{path}.name", message="must be 1 to 64 letters, digits, '_' or '-', a letter first")
    description = given.get("description", "")
    if not isinstance(description, str) or len(description) > 4_000:
        yield Fault(path=f"{path}.description", message="must be a text of at most 4000 characters")
    if "parameters" in given:
        yield from faults_in_schema(given["parameters"], f"{path}.parameters")


def _faults_in_target(given: Json, path: str) -> Iterator[Fault]:
    if not is_target(given):
        yield Fault(path=path, message=f"'{given}' is not of the form 'module:function'")


def _faults_in_server(given: Json, path: str) -> Iterator[Fault]:
    if isinstance(given, str):
        if not re.fullmatch("https?://[!-~]+", given) or len(given) > 2_000:
            yield Fault(path=path, message="must be a URL that begins with http:// or https://, or a list of words")
    elif not isinstance(given, Sequence) or not 1 <= len(given) <= 64:
        yield Fault(path=path, message="must be a URL, or a command as a list of 1 to 64 words")
    elif not all(isinstance(word, str) and 1 <= len(word) <= 2_000 for word in given):
        yield Fault(path=path, message="must be a command as a list of words")


def _faults_in_secrets(given: Mapping[str, Json], path: str) -> Iterator[Fault]:
    headers, env = given.get("headers", {}), given.get("env", ())
    if not isinstance(headers, Mapping) or not all(
        re.fullmatch(_HEADER[1:-1], name) and isinstance(text, str) and re.fullmatch("[ -~]{0,4000}", text)
        for name, text in headers.items()
    ):
        yield Fault(path=f"{path}.headers", message="must be an object of names of headers and texts")
    if isinstance(env, str) or not isinstance(env, Sequence) or len(env) > 64:
        yield Fault(path=f"{path}.env", message="must be a list of at most 64 names of variables")
    elif not all(isinstance(name, str) and re.fullmatch(_VARIABLE[1:-1], name) for name in env):
        yield Fault(path=f"{path}.env", message="must be a list of names of variables")


def missing_variables(tools: Sequence[ToolDefinition]) -> Iterator[Fault]:
    """The variables that servers need and that the environment does not have."""
    for number, tool in enumerate(tools):
        if isinstance(tool, McpServer):
            for name in tool.variables:
                if name not in os.environ:
                    yield Fault(path=f"settings.tools.{number}", message=f"the variable {name} is not set")


def check_callers(tools: Sequence[ToolDefinition], modules: frozenset[str]) -> None:
    """Raises :class:`Forbidden` for what only an operator may name: a tool is code that runs here, or an address."""
    for tool in tools:
        if isinstance(tool, McpServer):
            raise Forbidden(
                "MCP servers may not be named by callers; the operator can define the agent in the configuration"
            )
        check_allowed(tool.target, modules)


async def functions_of(
    tools: Sequence[ToolDefinition], faults: list[Fault], *, trusted: bool
) -> list[Callable[..., Any] | None]:
    """The function of each tool that is one, imported; what cannot be imported joins the faults.

    Raises :class:`Forbidden` for what is not a module's own, unless the operator names it.
    """
    functions: list[Callable[..., Any] | None] = []
    for number, tool in enumerate(tools):
        function: Callable[..., Any] | None = None
        if isinstance(tool, FunctionTool):
            try:
                function = await asyncio.to_thread(found, tool.target)
            except NotThereError as error:
                faults.append(Fault(path=f"settings.tools.{number}", message=str(error)))
            else:
                if not trusted:
                    check_own(tool.target, function)
        functions.append(function)
    return functions


def faults_in_signatures(
    tools: Sequence[ToolDefinition], functions: Sequence[Callable[..., Any] | None]
) -> Iterator[Fault]:
    """The tools whose arguments cannot be told from the function. Imports pydantic-ai."""
    for number, (tool, function) in enumerate(zip(tools, functions, strict=True)):
        if isinstance(tool, FunctionTool) and function is not None:
            try:
                _function_tool(tool, function, _nothing)
            except Exception as error:  # noqa: BLE001  whatever a signature does to whoever reads it
                message = f"its arguments cannot be told from its signature ({type(error).__name__}); give 'parameters'"
                yield Fault(path=f"settings.tools.{number}", message=message)


def _nothing() -> None:
    return None


def made(
    tools: Sequence[ToolDefinition], functions: Sequence[Callable[..., Any] | None], *, used: Callable[[], None]
) -> tuple[list[Tool[object]], list[AbstractToolset[object]]]:
    """The tools as pydantic-ai has them. ``used`` is called before each use of one. Raises :class:`MissingExtra`."""
    singles: list[Tool[object]] = []
    sets: list[AbstractToolset[object]] = []
    for tool, function in zip(tools, functions, strict=True):
        if isinstance(tool, McpServer):
            sets.append(_server(tool, used))
        else:
            assert function is not None
            singles.append(_function_tool(tool, function, used))
    return singles, sets


def _function_tool(definition: FunctionTool, function: Callable[..., Any], used: Callable[[], None]) -> Tool[object]:
    from functools import wraps

    from pydantic_ai import ModelRetry
    from pydantic_ai.tools import Tool

    name, schema = definition.tool_name, definition.parameters
    description = definition.description or inspect.getdoc(function)
    called = function if inspect.isroutine(function) else type(function).__call__
    expected = compiled(schema) if schema is not None else None

    @wraps(function)
    async def call(*positional: Any, **arguments: Any) -> Json:
        if expected is not None and (reason := mismatch(arguments, expected)):
            raise ModelRetry(f"the arguments do not match the schema of '{name}': {reason}")
        used()
        try:
            if inspect.iscoroutinefunction(called):
                given = await function(*positional, **arguments)
            else:
                given = await in_thread(partial(function, *positional, **arguments))
                given = await given if inspect.isawaitable(given) else given
        except (ModelRetry, RunFailed):
            # A tool that knows pydantic-ai may ask the model to call it otherwise.
            raise
        except (Exception, SystemExit, KeyboardInterrupt, GeneratorExit) as error:
            # Even one that wants to end the program ends its own call, and no more. The message of a foreign error may
            # hold what nobody else should see.
            raise AgentFailed(f"tool '{name}' raised {type(error).__name__}", cause=type(error).__name__) from error
        return _storable(name, given)

    if schema is None:
        return Tool(call, takes_ctx=False, name=name, description=description)
    return Tool.from_schema(call, name=name, description=description, json_schema=dict(schema))


def _storable(name: str, given: object) -> Json:
    """What a tool gave back, as the model can be told it. Raises :class:`AgentFailed` for what is no JSON."""
    from pydantic_core import to_jsonable_python

    try:
        plain = json.dumps(to_jsonable_python(given), ensure_ascii=False, allow_nan=False)
        return cast("Json", json.loads(cleaned(plain)))
    except (ValueError, TypeError, RecursionError) as error:
        kind = type(given).__name__
        raise AgentFailed(f"tool '{name}' gave back {kind}, which is no JSON", cause="tool_result_not_json") from error


def _server(definition: McpServer, used: Callable[[], None]) -> AbstractToolset[object]:
    try:
        from fastmcp.client.transports import StdioTransport
        from pydantic_ai.mcp import MCPToolset
    except ImportError:
        raise MissingExtra("tools of MCP servers need the extra 'mcp': pip install 'agent-orchestra[mcp]'") from None

    async def call(_: object, call_tool: Callable[..., Any], name: str, arguments: dict[str, Any]) -> Any:
        used()
        return await call_tool(name, arguments)

    where = definition.where
    if isinstance(where, str):
        headers = {k: _REFERENCE.sub(lambda m: os.environ[m[1]], text) for k, text in definition.headers.items()}
        toolset: AbstractToolset[object] = MCPToolset(where, headers=headers, process_tool_call=call)
    else:
        given = {name: os.environ[name] for name in definition.env}
        # The process lives as long as an answer needs it, so that none is left behind.
        transport = StdioTransport(command=where[0], args=list(where[1:]), env=given or None, keep_alive=False)
        toolset = MCPToolset(transport, process_tool_call=call)
    return toolset.prefixed(definition.prefix) if definition.prefix else toolset
