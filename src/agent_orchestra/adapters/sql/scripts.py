"""Transactions written once, for every driver.

A script is a generator that yields one statement at a time and is sent its rows; what it returns is the result, and
what it raises rolls everything back. So the order of the statements and the decisions between them stand in one place,
and a driver only performs them: in one visit to a thread for SQLite, over one connection for Postgres.

Statements are built with SQLAlchemy and compiled once: its execution layer costs more than the database does
(0.68 ms an append, against 0.18 ms on the driver).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

from sqlalchemy.dialects.postgresql import psycopg
from sqlalchemy.dialects.sqlite import pysqlite
from sqlalchemy.engine.interfaces import Dialect
from sqlalchemy.sql import ClauseElement

__all__ = ["Params", "Prepare", "Rows", "Script", "Statement", "decode", "encode", "postgres", "sqlite"]

T = TypeVar("T")

Value: TypeAlias = "str | int | float | None"
Params: TypeAlias = "Mapping[str, Value]"
Rows: TypeAlias = "Sequence[tuple[Value, ...]]"


@dataclass(frozen=True, slots=True)
class Statement:
    """SQL in a driver's own form, whose parameters are given by name; ``constants`` are those that never change."""

    sql: str
    returns: bool
    constants: Mapping[str, Value]

    def bound(self, params: Params) -> Params:
        return {**self.constants, **params} if self.constants else params

    def with_suffix(self, sql: str) -> Statement:
        """With words at its end that both databases know and SQLAlchemy builds for one only."""
        return Statement(f"{self.sql} {sql}", returns="RETURNING" in sql or self.returns, constants=self.constants)


Script: TypeAlias = Generator["tuple[Statement, Params]", "Rows", T]
Prepare: TypeAlias = Callable[[ClauseElement], Statement]


def sqlite(clause: ClauseElement) -> Statement:
    """Compiles for the ``sqlite3`` driver."""
    return _compiled(clause, pysqlite.dialect(paramstyle="named"))


def postgres(clause: ClauseElement) -> Statement:
    """Compiles for the ``psycopg`` driver."""
    return _compiled(clause, psycopg.dialect())


def _compiled(clause: ClauseElement, dialect: Dialect) -> Statement:
    compiled = clause.compile(dialect=dialect)
    sql = str(compiled)
    constants = {name: value for name, value in (compiled.params or {}).items() if value is not None}
    return Statement(sql, returns="RETURNING" in sql or sql.startswith(("SELECT", "WITH")), constants=constants)


def encode(value: object) -> str:
    """JSON as both drivers take it."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def decode(value: object) -> object:
    """JSON as either driver gives it: SQLite as text, psycopg as values."""
    return json.loads(value) if isinstance(value, str) else value
