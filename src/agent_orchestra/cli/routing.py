"""The commands about routing: where a request would go and why, reports, evaluation, encoders."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from agent_orchestra.cli.common import (
    AsJson,
    Config,
    Database,
    Tenant,
    choice,
    clock_time,
    fields,
    print_json,
    print_table,
    settings_of,
    standard_input,
    with_orchestra,
)
from agent_orchestra.errors import ConfigurationError

if TYPE_CHECKING:
    from agent_orchestra.runtime.decisions import Decision
    from agent_orchestra.runtime.orchestra import Orchestra

__all__ = ["add_to"]

routing_app = typer.Typer(help="Look at what stands in the way of good decisions, and go back.", no_args_is_help=True)
eval_app = typer.Typer(help="Measure, on requests whose right answers are known.", no_args_is_help=True)
encoder_app = typer.Typer(help="Fetch and try what turns texts into vectors.", no_args_is_help=True)


def add_to(app: typer.Typer) -> None:
    """Adds the commands to the program's."""
    app.command("route")(route)
    app.command("feedback")(feedback)
    app.add_typer(routing_app, name="routing")
    app.add_typer(eval_app, name="eval")
    app.add_typer(encoder_app, name="encoder")


def route(
    content: Annotated[str, typer.Argument(help="The request; - reads it from standard input.")],
    config: Config = None,
    database: Database = None,
    capability: Annotated[str | None, typer.Option(help="Only agents that have it.")] = None,
    conversation: Annotated[str | None, typer.Option(help="As the next message of this conversation.")] = None,
    user: Annotated[str | None, typer.Option(help="Who asks.")] = None,
    tenant: Tenant = "default",
    as_json: AsJson = False,
) -> None:
    """Tell where a request would go and why, and ask nobody."""
    from agent_orchestra.core.routing import route_json

    async def do(orchestra: Orchestra) -> None:
        decision = await orchestra.routing.decide(
            standard_input() if content == "-" else content,
            capability=capability,
            conversation_id=conversation,
            user_id=user,
            tenant=tenant,
        )
        if as_json:
            print_json({"id": decision.id, **route_json(decision.route)})
        else:
            _show(decision)

    with_orchestra(config, database, do, agents=True)


def _show(decision: Decision) -> None:
    found = decision.route
    rows = [
        (
            c.agent_id,
            f"{c.confidence:.2f}",
            f"{c.matched.kind}: {c.matched.text}" if c.matched is not None else "",
        )
        for c in found.candidates
    ]
    print_table(("agent", "confidence", "nearest"), rows)
    typer.echo(f"{found.stage}: {found.reason}")
    typer.secho(
        f"-- margin {found.margin:.2f}, in scope {found.in_scope:.2f}, policy {found.policy}, {found.ms:.1f} ms"
        + (f", without: {', '.join(found.degraded)}" if found.degraded else "")
        + f"\n-- decision {decision.id}",
        dim=True,
        err=True,
    )


def feedback(
    decision_id: Annotated[str, typer.Argument(help="The decision; that of a request has the request's id.")],
    opinion: Annotated[str | None, typer.Option(help="right, wrong or nobody.")] = None,
    agent: Annotated[str | None, typer.Option(help="The right agent.")] = None,
    user: Annotated[str, typer.Option(help="Whose word it is.")] = "operator",
    config: Config = None,
    database: Database = None,
    tenant: Tenant = "default",
) -> None:
    """Say what was right, to be learned from."""
    from agent_orchestra.runtime.routing import Opinion

    async def do(orchestra: Orchestra) -> None:
        kept = await orchestra.routing.give_feedback(
            decision_id, opinion=choice(Opinion, opinion, "--opinion"), agent_id=agent, author=user, tenant=tenant
        )
        typer.echo(f"kept as {kept.sequence}")

    with_orchestra(config, database, do)


@routing_app.command("report")
def report(
    config: Config = None, database: Database = None, tenant: Tenant = "default", as_json: AsJson = False
) -> None:
    """Show which agents collide and by which lines, which are hard to reach, and what was learned."""

    async def do(orchestra: Orchestra) -> None:
        found = await orchestra.routing.report(tenant=tenant)
        status = orchestra.routing.status(tenant=tenant)
        if as_json:
            print_json({"status": fields(status), **fields(found)})
            return
        typer.echo(f"strategy {status.strategy}, encoder {status.encoder or 'none: words alone are compared'}")
        if status.fault:
            typer.echo(f"the encoder: {status.fault}")
        typer.echo("\nAgents whose lines are nearest to each other")
        rows = [(o.agent_id, o.other_id, f"{o.similarity:.2f}", o.line, o.other_line) for o in found.overlaps]
        print_table(("agent", "other", "similarity", "line", "other's line"), rows)
        typer.echo("\nLines that lead to another agent than their own")
        print_table(("agent", "goes to", "line"), [(c.agent_id, c.other_id, c.line) for c in found.confusions])
        if found.unreachable:
            typer.echo(f"\nNothing leads to: {', '.join(found.unreachable)}")
        typer.echo(f"\nLearned ({found.feedback} entries of feedback)")
        print_table(
            ("version", "state", "examples", "log-loss", "before", "made"),
            [
                (
                    str(v.number),
                    v.state,
                    str(v.examples),
                    f"{v.loss:.3f}" if v.loss is not None else "",
                    f"{v.champion_loss:.3f}" if v.champion_loss is not None else "",
                    clock_time(v.created_ms),
                )
                for v in found.versions
            ],
        )

    with_orchestra(config, database, do, agents=True)


@routing_app.command("learn")
def learn(config: Config = None, database: Database = None, tenant: Tenant = "default") -> None:
    """Learn now from the agents' examples and the feedback."""

    async def do(orchestra: Orchestra) -> None:
        version = await orchestra.routing.refit(tenant=tenant)
        if version is None:
            typer.echo("there is nothing to learn from")
            return
        typer.echo(f"version {version.number} is {version.state}: {version.examples} examples")

    with_orchestra(config, database, do, agents=True)


@routing_app.command("rollback")
def roll_back(config: Config = None, database: Database = None, tenant: Tenant = "default") -> None:
    """Withdraw what was learned last, with the feedback that made it."""

    async def do(orchestra: Orchestra) -> None:
        version = await orchestra.routing.roll_back(tenant=tenant)
        typer.echo(f"version {version.number} decides" if version is not None else "the definitions alone decide")

    with_orchestra(config, database, do)


@eval_app.command("routing")
def evaluate(
    registry: Annotated[Path, typer.Option(help="The agents: a JSON list, or a line each.")],
    test: Annotated[Path, typer.Option(help="Requests with their right agents, a JSON object a line.")],
    train: Annotated[Path | None, typer.Option(help="Examples to learn from, in the same form.")] = None,
    shots: Annotated[int | None, typer.Option(min=0, help="Examples an agent, drawn from --train; else all.")] = None,
    label: Annotated[str, typer.Option(help="The field that has the right agent, such as agent or intent.")] = "agent",
    seed: Annotated[int, typer.Option(help="What the draw depends on.")] = 0,
    encoder: Annotated[str | None, typer.Option(help="Instead of the one of the settings; '' for none.")] = None,
    predictions: Annotated[Path | None, typer.Option(help="Write what was decided, a JSON object a line.")] = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Have labelled requests decided one by one, and print how often that was right, how sure and how fast it was."""
    from agent_orchestra import evaluation
    from agent_orchestra.bootstrap import opened_encoder

    options = evaluation.Options(
        registry=registry, test=test, train=train, shots=shots, label=label, seed=seed, predictions=predictions
    )
    given: dict[str, dict[str, object]] = {} if encoder is None else {"routing": {"encoder": encoder or None}}

    async def run() -> evaluation.Evaluation:
        async with opened_encoder(settings_of(config, None, **given)) as opened:
            return await evaluation.evaluate(options, opened)

    found = asyncio.run(run())
    if as_json:
        typer.echo(json.dumps(evaluation.figures(found)))
    else:
        print_table(("figure", "value"), evaluation.rows(found))


@encoder_app.command("install")
def install_encoder(
    name: Annotated[str, typer.Argument(help="As in sentence-transformers/all-MiniLM-L6-v2, or with @revision.")],
    file: Annotated[str | None, typer.Option(help="Its ONNX file, instead of the one that suits this machine.")] = None,
    config: Config = None,
) -> None:
    """Fetch an encoder from the Hugging Face hub, once; a service needs no network for it."""
    from agent_orchestra import bootstrap

    typer.echo(bootstrap.install_encoder(settings_of(config, None), name, file))
    typer.secho(f"to use it, set routing.encoder: {name}", dim=True, err=True)


@encoder_app.command("check")
def check_encoder(
    texts: Annotated[list[str] | None, typer.Argument(help="Texts to compare with the first of them.")] = None,
    encoder: Annotated[str | None, typer.Option(help="Instead of the one of the settings.")] = None,
    config: Config = None,
) -> None:
    """Try the encoder: that it opens, how long a vector takes, and how near texts are to each other."""
    import time

    from agent_orchestra.bootstrap import opened_encoder

    given: dict[str, dict[str, object]] = {} if encoder is None else {"routing": {"encoder": encoder}}
    compared = texts or ["I was charged twice", "Can I get my money back?", "Do I need a visa?"]

    async def run() -> None:
        began = time.perf_counter()
        async with opened_encoder(settings_of(config, None, **given)) as opened:
            if opened is None:
                raise ConfigurationError("there is no encoder; set routing.encoder, or give --encoder")
            ready = time.perf_counter()
            vectors = await opened.encode(compared)
            took = (time.perf_counter() - ready) * 1_000 / len(compared)
        typer.echo(
            f"{opened.name}: {vectors.shape[1]} numbers, open in {(ready - began) * 1_000:.0f} ms, {took:.1f} ms a text"
        )
        print_table(
            ("similarity", "text"),
            [(f"{float(vector @ vectors[0]):.2f}", text) for vector, text in zip(vectors, compared, strict=True)],
        )

    asyncio.run(run())
