"""The real service in a process of its own, started as an operator starts it."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import yaml

__all__ = ["PROJECT", "Service", "environment", "orchestra", "running_service"]

PROJECT: Final = Path(__file__).resolve().parents[2]

#: The service ends when nobody holds the other end of its standard input: a test run that is killed leaves none behind.
_COMMAND: Final = """
import os, threading
def end_with_parent():
    while os.read(0, 1):
        pass
    os._exit(70)
threading.Thread(target=end_with_parent, daemon=True).start()
from agent_orchestra.cli import main
main()
"""
_START_SECONDS: Final = 30.0


def environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of this process without settings of ours, and with the functions of the tests in reach."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("ORCHESTRA_")}
    return {**plain, "PYTHONPATH": str(PROJECT), "PYTHONUNBUFFERED": "1", "NO_COLOR": "1", **(more or {})}


def orchestra(
    *arguments: str | Path,
    cwd: Path,
    more_environment: Mapping[str, str] | None = None,
    given: str | None = None,
    seconds: float = 30,
) -> subprocess.CompletedProcess[str]:
    """One command of the command line, run to its end. ``given`` is what it reads from standard input."""
    return subprocess.run(
        [sys.executable, "-m", "agent_orchestra", *map(str, arguments)],
        cwd=cwd,
        env=environment(more_environment),
        input=given if given is not None else "",
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )


class Service:
    """A service on an SQLite file in a folder. It keeps its port over restarts, so that clients find it again."""

    def __init__(
        self,
        folder: Path,
        settings: Mapping[str, object],
        *,
        arguments: Sequence[str] = (),
        more_environment: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = folder
        self.database = folder / "orchestra.db"
        self.log = folder / "service.log"
        self.config = folder / "orchestra.yaml"
        self.config.write_text(yaml.safe_dump(dict(settings)), encoding="utf-8")
        self._arguments = tuple(arguments)
        self._environment = environment(more_environment)
        self._process: subprocess.Popen[str] | None = None
        self._port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def pid(self) -> int:
        assert self._process is not None, "the service does not run"
        return self._process.pid

    def start(self) -> None:
        """Returns once the service answers."""
        assert self._process is None, "the service runs already"
        command = [sys.executable, "-c", _COMMAND, "serve", "--port", str(self._port)]
        command += ["--config", str(self.config), "--database", str(self.database), *self._arguments]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                cwd=self.folder,
                env=self._environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        line = self._first_line()
        if "listening on " not in line:
            self._end(signal.SIGKILL)
            raise AssertionError(f"the service did not start: {line!r}\n{self.read_log()}")
        self._port = int(line.rpartition(":")[2])

    def kill(self) -> None:
        """Ends the service at once, with no chance to clean up."""
        self._end(signal.SIGKILL)

    def terminate(self) -> None:
        """Tells the service to stop, and does not wait for it."""
        os.kill(self.pid, signal.SIGTERM)

    def wait(self, seconds: float = 30) -> int:
        """The exit status of a service that ends by itself, or that was told to."""
        assert self._process is not None, "the service does not run"
        status = self._process.wait(seconds)
        self._end(signal.SIGKILL)
        return status

    def stop(self) -> int:
        """Tells the service to stop; its exit status."""
        self.terminate()
        return self.wait()

    def restart(self) -> None:
        assert self.stop() == 0, self.read_log()
        self.start()

    def runs(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def read_log(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""

    def close(self) -> None:
        """Ends the service in any case."""
        if self._process is not None:
            self._end(signal.SIGKILL)

    def _first_line(self) -> str:
        assert self._process is not None
        assert self._process.stdout is not None
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline:
            if select.select([self._process.stdout], [], [], 0.5)[0]:
                return self._process.stdout.readline()
        return f"nothing on standard output within {_START_SECONDS:g} s"

    def _end(self, number: signal.Signals) -> None:
        process, self._process = self._process, None
        assert process is not None, "the service does not run"
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(number)
        process.wait(10)
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


@contextmanager
def running_service(
    folder: Path,
    settings: Mapping[str, object],
    *,
    arguments: Sequence[str] = (),
    more_environment: Mapping[str, str] | None = None,
) -> Generator[Service]:
    """A service that runs, and that is gone after the block."""
    service = Service(folder, settings, arguments=arguments, more_environment=more_environment)
    try:
        service.start()
        yield service
    finally:
        service.close()
