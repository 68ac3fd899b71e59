"""The command line. Nothing heavy is imported before a command needs it: ``--help`` answers at once."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from agent_orchestra.cli import escalations, routing
from agent_orchestra.cli.common import (
    AsJson,
    Config,
    Database,
    Tenant,
    choice,
    clock_time,
    fields,
    file_of,
    print_json,
    print_table,
    settings_of,
    standard_input,
    with_orchestra,
)
from agent_orchestra.errors import ConfigurationError, InvalidInput, OrchestraError

if TYPE_CHECKING:
    from agent_orchestra.core.message import Attachment
    from agent_orchestra.core.request import Answer
    from agent_orchestra.core.stream import StreamEvent
    from agent_orchestra.runtime.models import ProviderStatus
    from agent_orchestra.runtime.monitoring import InstanceHealth
    from agent_orchestra.runtime.orchestra import Orchestra
    from agent_orchestra.settings import Settings

__all__ = ["app", "main"]

app = typer.Typer(
    name="orchestra",
    help="Makes one reliable service of many AI agents.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    # Help in plain text: in colour it imports a Markdown renderer, which takes longer than all the rest.
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
agents_app = typer.Typer(help="Look at agents, register and remove them.", no_args_is_help=True)
conversations_app = typer.Typer(help="Look at conversations.", no_args_is_help=True)
providers_app = typer.Typer(help="Look at the vendors of models.", no_args_is_help=True)
keys_app = typer.Typer(help="Make and revoke the keys that callers need.", no_args_is_help=True)
app.add_typer(agents_app, name="agents")
app.add_typer(conversations_app, name="conversations")
app.add_typer(escalations.app, name="escalations")
app.add_typer(providers_app, name="providers")
app.add_typer(keys_app, name="keys")
routing.add_to(app)


def main() -> None:
    """The entry point: every error of ours is one line, and an exit status of 1 (2 for a mistake in what was given)."""
    _fill_standard_streams()
    try:
        app()
    except OrchestraError as error:
        _fail(f"{error.detail} [{error.code}]", 2 if isinstance(error, ConfigurationError | InvalidInput) else 1)
    except UnicodeError:
        _fail("what was given, or read, is not text in UTF-8", 2)
    except OSError as error:
        # A pipe that is closed, a disk that is full: there may be nobody left to tell.
        _fail(error.strerror or type(error).__name__, 1)


def _fill_standard_streams() -> None:
    """Opens what the caller has closed, lest a socket or the database be taken for standard error."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115  a descriptor has no path


def _fail(sentence: str, status: int) -> NoReturn:
    with suppress(OSError, UnicodeError):
        typer.echo(f"error: {sentence}", err=True)
    try:
        sys.stdout.flush()
    except OSError:
        # Else the interpreter would try to write it once more at its end, and complain in many lines.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    raise SystemExit(status)


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True)] = False,
) -> None:
    if version:
        from importlib.metadata import version as installed

        typer.echo(f"orchestra {installed('agent-orchestra')}")
        raise typer.Exit


@app.command()
def serve(
    config: Config = None,
    database: Database = None,
    host: Annotated[str | None, typer.Option(help="The address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="The port; 0 takes any free one.")] = None,
) -> None:
    """Run the service until it is stopped."""
    # Before numpy is loaded: the threads of its BLAS and a fork, as uvloop makes for an MCP server, can wait for each
    # other for ever.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from agent_orchestra import server

    given: dict[str, object] = {name: value for name, value in (("host", host), ("port", port)) if value is not None}
    settings = settings_of(config, database, server=given)

    def announce(address: str) -> None:
        typer.echo(f"listening on {address}")
        sys.stdout.flush()

    server.run(settings, file_of(config), announce)


@app.command()
def ask(
    content: Annotated[str, typer.Argument(help="What to ask; - reads it from standard input.")],
    config: Config = None,
    database: Database = None,
    model: Annotated[
        str | None, typer.Option(help="Ask this model itself, as in anthropic:claude-sonnet-5; nothing is recorded.")
    ] = None,
    attach: Annotated[list[Path] | None, typer.Option(help="A file to send along, such as an image.")] = None,
    agent: Annotated[str | None, typer.Option(help="Ask this agent.")] = None,
    agents: Annotated[str | None, typer.Option(help="Ask these together, as in search,write.")] = None,
    strategy: Annotated[
        str | None,
        typer.Option(help="How several work: parallel or sequential; without --agents the router names them."),
    ] = None,
    capability: Annotated[str | None, typer.Option(help="Ask only agents that have it.")] = None,
    conversation: Annotated[str | None, typer.Option(help="Go on in this conversation.")] = None,
    user: Annotated[str | None, typer.Option(help="Who asks.")] = None,
    tenant: Tenant = "default",
    as_json: AsJson = False,
) -> None:
    """Ask one question, in this process."""
    from agent_orchestra.core.request import answer_json
    from agent_orchestra.core.stream import StreamEventType

    attachments = [_attachment(path) for path in attach or ()]
    if model is not None:
        if agent or agents or strategy or capability or conversation or user:
            raise InvalidInput(
                "--model asks a model itself: it goes without --agent, --agents, --strategy, --capability, "
                "--conversation, --user"
            )
        _ask_model(model, content, attachments, config, as_json=as_json)
        return

    if (agents or strategy) and (agent or capability):
        raise InvalidInput("--agents and --strategy ask several agents: they go without --agent and --capability")

    def show(event: StreamEvent) -> None:
        if event.type is StreamEventType.DELTA:
            typer.echo(event.data["text"], nl=False)
            sys.stdout.flush()
        elif event.type is StreamEventType.COMPLETED:
            typer.echo("")

    async def answered(orchestra: Orchestra) -> Answer:
        said = standard_input() if content == "-" else content
        emit = None if as_json else show
        if agents or strategy:
            return await orchestra.coordinate(
                [name.strip() for name in agents.split(",")] if agents else None,
                said,
                strategy=strategy or "parallel",
                attachments=attachments,
                conversation_id=conversation,
                user_id=user,
                tenant=tenant,
                emit=emit,
            )
        return await orchestra.process_request(
            said,
            attachments=attachments,
            conversation_id=conversation,
            user_id=user,
            capability=capability,
            agent_id=agent,
            tenant=tenant,
            emit=emit,
        )

    async def do(orchestra: Orchestra) -> None:
        answer = await answered(orchestra)
        if as_json:
            print_json(answer_json(answer))
            return
        typer.secho(
            f"-- {answer.agent} ({answer.stage}, confidence {answer.confidence:.2f}, {answer.timings['total']:.0f} ms)"
            f": {answer.reason}\n{_told_of_each(answer)}-- conversation {answer.conversation_id}",
            dim=True,
            err=True,
        )

    with_orchestra(config, database, do, agents=True)


def _told_of_each(answer: Answer) -> str:
    """A line for each of several agents that worked on a request."""
    together = answer.reply.coordination
    if together is None:
        return ""
    said = {r.id: f"{r.status} {r.error or r.reason or f'{r.duration_ms:.0f} ms'}" for r in together.results}
    return "".join(f"-- {result_id}: {how}\n" for result_id, how in said.items())


def _ask_model(
    model: str, content: str, attachments: Sequence[Attachment], config: Path | None, *, as_json: bool
) -> None:
    from agent_orchestra.bootstrap import open_models
    from agent_orchestra.core.prompt import Prompt, Wrote, check_prompt
    from agent_orchestra.core.request import reply_json

    def show(text: str) -> None:
        typer.echo(text, nl=False)
        sys.stdout.flush()

    async def run() -> None:
        text = standard_input() if content == "-" else content
        prompt = Prompt(turns=[Wrote(content=text, attachments=attachments)])
        check_prompt(prompt)
        async with open_models(settings_of(config, None)) as models:
            reply = await models.ask(model, prompt, None if as_json else show)
        if as_json:
            print_json(reply_json(reply))
            return
        typer.echo("")
        used, wrote = reply.usage, reply.generation
        cost = "cost unknown" if used.cost_usd is None else f"${used.cost_usd:.6f} at the prices of {used.price_date}"
        who = f"{wrote.model}, {wrote.stop_reason}" if wrote else model
        typer.secho(
            f"-- {who}: {used.input_tokens} tokens in, {used.output_tokens} out, {cost}",
            dim=True,
            err=True,
        )

    asyncio.run(run())


def _attachment(path: Path) -> Attachment:
    import mimetypes

    from agent_orchestra.core.message import Attachment

    media_type, _ = mimetypes.guess_type(path.name)
    if media_type is None:
        raise InvalidInput(f"the name of '{path}' does not say what it is; give it an ending such as .png")
    try:
        return Attachment(media_type=media_type, data=path.read_bytes())
    except OSError as error:
        raise InvalidInput(f"'{path}' cannot be read: {error.strerror}") from None


@providers_app.command("check")
def check_providers(config: Config = None, as_json: AsJson = False) -> None:
    """Ask every vendor that has a key whether it takes it; fails when one does not."""
    from agent_orchestra.bootstrap import open_models

    async def run() -> Sequence[ProviderStatus]:
        async with open_models(settings_of(config, None)) as models:
            return await models.check(fresh=True)

    found = asyncio.run(run())
    if as_json:
        print_json([fields(status) for status in found])
    else:
        marks = {True: "yes", False: "no", None: "-"}
        rows = [
            (s.name, marks[s.configured], marks[s.installed], marks[s.reachable], s.last_error or "", s.detail)
            for s in found
        ]
        print_table(("provider", "configured", "installed", "reachable", "last error", "detail"), rows)
    if any(status.reachable is False for status in found):
        raise typer.Exit(1)


@app.command()
def migrate(
    config: Config = None,
    database: Database = None,
    check: Annotated[bool, typer.Option("--check", help="Change nothing; fail unless the schema is current.")] = False,
) -> None:
    """Bring the database's schema up to date."""
    from agent_orchestra import bootstrap

    settings = settings_of(config, database)
    differences = asyncio.run(bootstrap.check_schema(settings.database) if check else _migrated(settings))
    for difference in differences:
        typer.echo(difference, err=True)
    if differences:
        raise typer.Exit(1)
    typer.echo("the schema is current")


async def _migrated(settings: Settings) -> Sequence[str]:
    from agent_orchestra import bootstrap

    async with bootstrap.open_storage(settings.database):
        return ()


@agents_app.command("list")
def list_agents(
    config: Config = None,
    database: Database = None,
    role: Annotated[str | None, typer.Option(help="Only of this role.")] = None,
    capability: Annotated[str | None, typer.Option(help="Only with this capability.")] = None,
    domain: Annotated[str | None, typer.Option(help="Only of this domain.")] = None,
    provider: Annotated[str | None, typer.Option(help="Only of this provider.")] = None,
    status: Annotated[str | None, typer.Option(help="Only with this status.")] = None,
    tenant: Tenant = "default",
    as_json: AsJson = False,
) -> None:
    """List the agents."""
    from agent_orchestra.core.agent import Filter, Role, Status

    async def do(orchestra: Orchestra) -> None:
        wanted = Filter(
            role=choice(Role, role, "--role"),
            capability=capability,
            domain=domain,
            provider=provider,
            status=choice(Status, status.upper() if status else None, "--status"),
        )
        found = orchestra.get_agents(wanted, tenant=tenant)
        if as_json:
            print_json([_agent_json(entry) for entry in found])
            return
        rows = [(e.agent.id, e.agent.kind, e.agent.role, e.status, ", ".join(e.agent.capabilities)) for e in found]
        print_table(("agent", "kind", "role", "status", "capabilities"), rows)

    with_orchestra(config, database, do, agents=database is None)


@agents_app.command("show")
def show_agent(agent_id: str, config: Config = None, database: Database = None, tenant: Tenant = "default") -> None:
    """Show one agent as JSON, with its instances. Those that have a check are asked, in this process."""

    async def do(orchestra: Orchestra) -> None:
        found = await orchestra.monitoring.check(orchestra.get_agent(agent_id, tenant=tenant))
        instances = [_instance_json(instance) for instance in found.instances]
        print_json({**_agent_json(found.entry), "instances": instances})

    with_orchestra(config, database, do, agents=database is None)


@agents_app.command("register")
def register_agent(
    file: Annotated[Path, typer.Argument(help="A definition in YAML or JSON; - reads standard input.")],
    config: Config = None,
    database: Database = None,
    replace: Annotated[bool, typer.Option("--replace", help="Update the agent if there is one of that id.")] = False,
    tenant: Tenant = "default",
) -> None:
    """Register an agent, so that running services take it up within a second."""
    from agent_orchestra.errors import AgentExists
    from agent_orchestra.settings import read_agent

    agent = read_agent(file)

    async def do(orchestra: Orchestra) -> None:
        try:
            await orchestra.register_agent(agent, tenant=tenant, trusted=True)
        except AgentExists:
            if not replace:
                raise
            await orchestra.update_agent(agent, tenant=tenant, trusted=True)
        typer.echo(f"registered {agent.id}")

    with_orchestra(config, database, do)


@agents_app.command("remove")
def remove_agent(agent_id: str, config: Config = None, database: Database = None, tenant: Tenant = "default") -> None:
    """Remove an agent."""

    async def do(orchestra: Orchestra) -> None:
        await orchestra.unregister_agent(agent_id, tenant=tenant)
        typer.echo(f"removed {agent_id}")

    with_orchestra(config, database, do)


@agents_app.command("suggest")
def suggest_examples(
    agent_id: str,
    count: Annotated[int, typer.Option(min=1, max=50, help="How many.")] = 10,
    config: Config = None,
    database: Database = None,
    tenant: Tenant = "default",
    as_json: AsJson = False,
) -> None:
    """Have the model of routing.llm write examples for an agent. Nothing is taken up."""

    async def do(orchestra: Orchestra) -> None:
        found = await orchestra.routing.suggest_examples(agent_id, count=count, tenant=tenant)
        if as_json:
            print_json([fields(suggestion) for suggestion in found])
            return
        rows = [(s.text, s.goes_to or "", f"{s.confidence:.2f}") for s in found]
        print_table(("suggestion", "goes to", "confidence"), rows)

    with_orchestra(config, database, do, agents=database is None)


@conversations_app.command("list")
def list_conversations(
    config: Config = None,
    database: Database = None,
    user: Annotated[str | None, typer.Option(help="Only of this user.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=500)] = 20,
    tenant: Tenant = "default",
    as_json: AsJson = False,
) -> None:
    """List conversations, newest first."""

    async def do(orchestra: Orchestra) -> None:
        found = await orchestra.get_conversations(user_id=user, limit=limit, tenant=tenant)
        if as_json:
            print_json([fields(conversation) for conversation in found])
            return
        rows = [(c.id, c.user_id or "", c.active_agent or "", str(c.last_seq), clock_time(c.created_ms)) for c in found]
        print_table(("conversation", "user", "agent", "messages", "begun"), rows)

    with_orchestra(config, database, do)


@conversations_app.command("show")
def show_conversation(
    conversation_id: str,
    config: Config = None,
    database: Database = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000)] = 100,
    tenant: Tenant = "default",
    as_json: AsJson = False,
) -> None:
    """Show the messages of a conversation in order."""

    async def do(orchestra: Orchestra) -> None:
        found = await orchestra.get_messages(conversation_id, limit=limit, tenant=tenant)
        if as_json:
            print_json([fields(message) for message in found])
            return
        for message in found:
            typer.secho(
                f"{message.seq}. {message.agent_id or message.author}  {clock_time(message.created_ms)}", dim=True
            )
            typer.echo(f"{message.content}\n")

    with_orchestra(config, database, do)


@keys_app.command("create")
def create_key(
    scope: Annotated[list[str], typer.Option(help="read, run or admin; each includes those before it.")],
    config: Config = None,
    database: Database = None,
    tenant: Tenant = "default",
) -> None:
    """Make a key, and print it for the only time."""
    from agent_orchestra.core.access import Scope

    scopes = [choice(Scope, name, "--scope") or Scope.READ for name in scope]

    async def do(orchestra: Orchestra) -> None:
        key, text = await orchestra.keys.create(tenant, scopes)
        typer.echo(text)
        typer.secho(f"key {key.id} of tenant {key.tenant}: keep it now, it is not shown again", dim=True, err=True)

    with_orchestra(config, database, do)


@keys_app.command("list")
def list_keys(
    config: Config = None,
    database: Database = None,
    tenant: Annotated[str | None, typer.Option(help="Only of this tenant.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the keys, without their secrets."""

    async def do(orchestra: Orchestra) -> None:
        found = await orchestra.keys.find(tenant)
        if as_json:
            print_json([{k: v for k, v in fields(key).items() if k != "digest"} for key in found])
            return
        rows = [
            (
                k.id,
                k.tenant,
                ", ".join(k.scopes),
                clock_time(k.created_ms),
                clock_time(k.revoked_ms) if k.revoked_ms else "",
            )
            for k in found
        ]
        print_table(("key", "tenant", "scopes", "made", "revoked"), rows)

    with_orchestra(config, database, do)


@keys_app.command("revoke")
def revoke_key(key_id: str, config: Config = None, database: Database = None) -> None:
    """Revoke a key; services stop believing it within seconds."""

    async def do(orchestra: Orchestra) -> None:
        key = await orchestra.keys.revoke(key_id)
        typer.echo(f"revoked {key.id}")

    with_orchestra(config, database, do)


@app.command("alerts")
def list_alerts(config: Config = None, database: Database = None, as_json: AsJson = False) -> None:
    """List the rules of the settings, each with what is last on record of it; a service says how they are now."""

    async def do(orchestra: Orchestra) -> None:
        found = await orchestra.monitoring.recorded()
        if as_json:
            told = [
                {**fields(rule), "recorded": None if last is None else {"type": last.type, "at_ms": last.at_ms}}
                for rule, last in found
            ]
            print_json(told)
            return
        rows = [
            (
                rule.name,
                rule.metric if rule.agent is None else f"{rule.metric} of {rule.agent}",
                f"above {rule.above:g}" if rule.above is not None else f"below {rule.below:g}",
                f"{rule.seconds:g} s",
                str(rule.severity),
                "" if last is None else f"{last.type.partition('.')[2]} {clock_time(last.at_ms)}",
            )
            for rule, last in found
        ]
        print_table(("alert", "metric", "fires", "after", "severity", "on record"), rows)

    with_orchestra(config, database, do)


def _instance_json(instance: InstanceHealth) -> dict[str, Any]:
    """What this process can say of an instance: it has made no calls."""
    names = ("id", "healthy", "reason", "weight", "checked_ms")
    return {name: value for name, value in fields(instance).items() if name in names}


def _agent_json(entry: Any) -> dict[str, Any]:
    from dataclasses import asdict

    return {**asdict(entry.agent), "status": entry.status, "source": entry.source, "fault": entry.fault}
