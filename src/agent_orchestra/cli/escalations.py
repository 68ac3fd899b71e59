"""The commands for people who answer in the place of agents."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from agent_orchestra.cli.common import (
    AsJson,
    Config,
    Database,
    Tenant,
    clock_time,
    fields,
    print_json,
    print_table,
    standard_input,
    with_orchestra,
)

if TYPE_CHECKING:
    from agent_orchestra.runtime.orchestra import Orchestra

__all__ = ["app"]

app = typer.Typer(help="Look at requests that no agent could answer, and answer them.", no_args_is_help=True)

_RequestId = Annotated[str, typer.Argument(help="The request that waits for a person.")]
_Author = Annotated[str, typer.Option(help="Whose word it is.")]


@app.command("list")
def list_escalations(
    config: Config = None,
    database: Database = None,
    limit: Annotated[int, typer.Option(min=1, max=500)] = 50,
    tenant: Tenant = "default",
    as_json: AsJson = False,
) -> None:
    """List what waits for a person, oldest first."""

    async def do(orchestra: Orchestra) -> None:
        found = await orchestra.escalations.find(limit=limit, tenant=tenant)
        if as_json:
            print_json(
                [
                    {**fields(escalation), "agent": escalation.agent_id, "cause": escalation.cause}
                    for escalation in found
                ]
            )
            return
        rows = [(e.request_id, e.agent_id, e.cause, clock_time(e.escalated_ms), _line(e.content)) for e in found]
        print_table(("request", "agent", "cause", "since", "content"), rows)

    with_orchestra(config, database, do)


@app.command("answer")
def answer(
    request_id: _RequestId,
    output: Annotated[str, typer.Argument(help="The answer; - reads it from standard input.")],
    author: _Author = "operator",
    config: Config = None,
    database: Database = None,
    tenant: Tenant = "default",
) -> None:
    """Answer in the agent's place."""

    async def do(orchestra: Orchestra) -> None:
        text = standard_input() if output == "-" else output
        given = await orchestra.escalations.answer(request_id, text, author=author, tenant=tenant)
        typer.echo(f"answered {given.request_id} for {given.agent}")

    with_orchestra(config, database, do)


@app.command("reject")
def reject(
    request_id: _RequestId,
    reason: Annotated[str, typer.Argument(help="Why; it is told to who asked.")],
    author: _Author = "operator",
    config: Config = None,
    database: Database = None,
    tenant: Tenant = "default",
) -> None:
    """Decide that a request is not to be answered."""

    async def do(orchestra: Orchestra) -> None:
        await orchestra.escalations.reject(request_id, reason, author=author, tenant=tenant)
        typer.echo(f"rejected {request_id}")

    with_orchestra(config, database, do)


def _line(content: str) -> str:
    """What is asked, on one line of a table."""
    line = " ".join(content.split())
    return line if len(line) <= 80 else f"{line[:79]}…"
