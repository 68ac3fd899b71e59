"""Four weather stations, each a process of its own that can be killed, and the functions by which an agent asks them.

python examples/resilience.py                 starts all four, and says how to kill one
python examples/resilience.py north           starts one of them, as after it was killed
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from agent_orchestra.errors import AgentUnavailable

STATIONS = {"north": 9101, "east": 9102, "south": 9103, "west": 9104}


def station(name: str) -> Callable[[str], str]:
    """The function of an instance: what it is asked goes to its process."""

    def ask(content: str) -> str:
        return fetch(name, content)

    return ask


def watch(name: str) -> Callable[[], None]:
    """The check of an instance: healthy unless it raises."""

    def check() -> None:
        fetch(name, "")

    return check


def fetch(name: str, content: str) -> str:
    request = urllib.request.Request(f"http://127.0.0.1:{STATIONS[name]}/", data=content.encode())
    try:
        with urllib.request.urlopen(request, timeout=5) as response:
            return response.read().decode()
    except OSError as error:
        # Nothing was done there, so that another station may be asked: this error says so.
        raise AgentUnavailable(f"the station '{name}' does not answer") from error


north, east, south, west = map(station, STATIONS)
north_check, east_check, south_check, west_check = map(watch, STATIONS)


class Station(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        time.sleep(0.05)
        body = f"It is a fine day, says the station '{self.headers['Host']}' (process {os.getpid()}).".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Keeps the terminal for what a reader does."""


def main() -> None:
    if len(sys.argv) > 1:
        ThreadingHTTPServer(("127.0.0.1", STATIONS[sys.argv[1]]), Station).serve_forever()
    processes = {name: subprocess.Popen([sys.executable, __file__, name]) for name in STATIONS}
    for name, process in processes.items():
        print(f"{name}: kill {process.pid}; then again: python examples/resilience.py {name} &", flush=True)
    try:
        for process in processes.values():
            process.wait()
    except KeyboardInterrupt:
        for process in processes.values():
            process.terminate()


if __name__ == "__main__":
    main()
