"""Runs commands of the command line in this process: what each would print, and its exit status."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from agent_orchestra.cli import main
from tests.services.service import environment

__all__ = ["Done", "run"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    returncode: int
    stdout: str
    stderr: str


def run(
    *arguments: str | Path,
    cwd: Path,
    given: str | None = None,
    more_environment: Mapping[str, str] | None = None,
) -> Done:
    """As a process of its own would run it, but for the second that such a process takes to start."""
    status = 0
    with _standing_in(cwd, ["orchestra", *map(str, arguments)], environment(more_environment)):
        before, sys.stdin = sys.stdin, io.StringIO(given or "")
        out, err = io.StringIO(), io.StringIO()
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                main()
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
        finally:
            sys.stdin = before
    return Done(returncode=status, stdout=out.getvalue(), stderr=err.getvalue())


@contextmanager
def _standing_in(cwd: Path, arguments: list[str], variables: Mapping[str, str]) -> Generator[None]:
    before = list(sys.argv), dict(os.environ), list(sys.path)
    sys.argv[:] = arguments
    os.environ.clear()
    os.environ.update(variables)
    try:
        with contextlib.chdir(cwd):
            yield
    finally:
        sys.argv[:], sys.path[:] = before[0], before[2]
        os.environ.clear()
        os.environ.update(before[1])
