"""What the commands share: their common options, the settings, and how they print."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from agent_orchestra.errors import ConfigurationError

if TYPE_CHECKING:
    from agent_orchestra.runtime.orchestra import Orchestra
    from agent_orchestra.settings import Settings

__all__ = [
    "AsJson",
    "Config",
    "Database",
    "Tenant",
    "choice",
    "clock_time",
    "fields",
    "file_of",
    "print_json",
    "print_table",
    "settings_of",
    "standard_input",
    "with_orchestra",
]

T = TypeVar("T")

Config = Annotated[
    Path | None,
    typer.Option("--config", "-c", help="The settings file; else ORCHESTRA_CONFIG, else ./orchestra.yaml."),
]
Database = Annotated[
    str | None, typer.Option("--database", "-d", help="A file for SQLite, or postgresql://…; else as settings say.")
]
Tenant = Annotated[str, typer.Option("--tenant", help="Whose data it is about.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def standard_input() -> str:
    if sys.stdin is None:
        raise ConfigurationError("there is no standard input to read")
    return sys.stdin.read()


def settings_of(config: Path | None, database: str | None, **overrides: dict[str, object]) -> Settings:
    from agent_orchestra.settings import database_url, load_settings

    if database is not None:
        overrides["database"] = {"url": database_url(database)}
    return load_settings(config, **overrides)


def file_of(config: Path | None) -> Path | None:
    from agent_orchestra.settings import config_file

    return config_file(config)


def with_orchestra(
    config: Path | None, database: str | None, do: Callable[[Orchestra], Awaitable[T]], *, agents: bool = False
) -> T:
    """Does something with an open orchestra.

    ``agents``: whether the agents of the configuration are taken up in the database, and those in code besides. They
    are only where both belong together: who looks into another database with ``--database`` must not change what is
    there.
    """
    from agent_orchestra.bootstrap import open_from_settings

    settings = settings_of(config, database)
    if not agents or (database is not None and config is None):
        no_code = settings.registry.model_copy(update={"modules": (), "entry_points": False})
        settings = settings.model_copy(update={"agents": None, "registry": no_code})

    async def run() -> T:
        async with open_from_settings(settings, config=file_of(config)) as orchestra:
            return await do(orchestra)

    return asyncio.run(run())


def choice(kind: Any, text: str | None, option: str) -> Any:
    if text is None:
        return None
    try:
        return kind(text)
    except ValueError:
        raise typer.BadParameter(f"'{text}' is none of {', '.join(kind)}", param_hint=option) from None


def fields(value: Any) -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(value)


def clock_time(milliseconds: int) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(milliseconds / 1_000, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def print_table(columns: Iterable[str], rows: Iterable[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, no_wrap=True, overflow="ignore")
    for row in rows:
        table.add_row(*row)
    # Wider than any terminal: an id that is cut off is of no use.
    Console(width=1_000, highlight=False, markup=False).print(table)
