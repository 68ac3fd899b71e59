"""Fits in a process of its own: at low priority, on one core, its memory gone with it."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import pickle
import subprocess
import sys
import threading
import time
from typing import Final, cast

from agent_orchestra.errors import FitFailed
from agent_orchestra.runtime.fitting import Fitted, Job, fitted

__all__ = ["ProcessFitter"]

_ONE_THREAD: Final = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
#: What the process needs of the environment; a vendor's key is not among it.
_NEEDED: Final = ("PATH", "PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH", "SYSTEMROOT", "TMPDIR", "VIRTUAL_ENV")
_NICENESS: Final = 10


class ProcessFitter:
    """Conforms to :class:`Fitter`. A fit that takes longer than ``timeout`` seconds is given up."""

    def __init__(self, *, timeout: float = 600.0) -> None:
        self._timeout = timeout

    async def fit(self, job: Job) -> Fitted:
        # The settings of an agent may hold what is nobody's business, and nothing is learned from them.
        job = dataclasses.replace(job, agents=[dataclasses.replace(agent, settings={}) for agent in job.agents])
        given = await asyncio.to_thread(pickle.dumps, job)
        try:
            async with asyncio.timeout(self._timeout):
                status, written = await _communicated(given)
        except TimeoutError:
            raise FitFailed(f"learning took longer than {self._timeout:.0f} seconds, and was given up") from None
        except (OSError, RuntimeError) as error:
            # No process could be started, or it went while it was still told what to do.
            raise FitFailed(f"the process that learns could not be used: {type(error).__name__}") from None
        if status != 0 or not written:
            raise FitFailed(f"the process that learns ended with status {status}")
        told = cast("Fitted | str", pickle.loads(written))  # noqa: S301  from our own process
        if isinstance(told, str):
            raise FitFailed(f"learning raised {told}")
        return told


def _started() -> subprocess.Popen[bytes]:
    return subprocess.Popen(  # noqa: S603  our own module
        # Not what lies in the working folder: a file there may have a name of the library's.
        [sys.executable, "-P", "-m", __name__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={name: os.environ[name] for name in _NEEDED if name in os.environ} | _ONE_THREAD,
    )


async def _communicated(given: bytes) -> tuple[int | None, bytes]:
    """What a process that is given a job says, and the status it ends with. It does not outlive the call.

    Not by asyncio: uvloop forks, and the threads of numpy's BLAS and a fork can wait for each other for ever. The
    standard library's own way does not (vfork), whatever loop there is.
    """
    process = _started()
    said = asyncio.get_running_loop().run_in_executor(None, process.communicate, given)
    try:
        written, _ = await asyncio.shield(said)
    finally:
        if not said.done():
            # Its pipes end with it, and so does the thread that waits for them.
            process.kill()
            await asyncio.wait((said,))
            said.exception()
    return process.returncode, written


def _main() -> None:
    """Reads a job from standard input; writes what came of it, or the name of what went wrong, to standard output."""
    # Whatever a library prints must not get between.
    answer = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    if hasattr(os, "nice"):
        os.nice(_NICENESS)
    try:
        told: Fitted | str = fitted(cast("Job", pickle.load(sys.stdin.buffer)))  # noqa: S301  from our own process
    except Exception as error:  # noqa: BLE001  the process that started this one is told
        told = type(error).__name__
    with answer:
        pickle.dump(told, answer)


def _end_with(parent: int) -> None:
    """Ends this process once the one that started it is gone: nobody would read what it writes."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


if __name__ == "__main__":
    _main()
