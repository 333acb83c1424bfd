"""Starts the real bst-server and bst binaries and reads what they say, for the end-to-end tests."""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import threading
import time
import unittest
import urllib.request
from pathlib import Path
from typing import Any, Sequence

from metrics_table import check_sample

READY_SECONDS = 120  # a build with sanitizers on a busy machine


class Arguments:
    """What every test program is told on its command line."""

    server: str
    cli: str
    model: Path
    server_flags: list[str]
    promtool: str
    seconds: float
    stress: str
    sanitized: bool


arguments = Arguments()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--server", required=True, help="the bst-server binary")
    parser.add_argument("--cli", required=True, help="the bst binary")
    parser.add_argument("--model", required=True, type=Path, help="a golden checkpoint directory")
    parser.add_argument("--promtool", default="", help="Prometheus' promtool")
    parser.add_argument("--server-flag", action="append", default=[], dest="server_flags",
                        help="a flag for every server that is started; may be repeated")
    parser.add_argument("--seconds", type=float, default=10, help="how long each test of a load goes on")
    parser.add_argument("--stress", default="", help="the bst-stress binary")
    parser.add_argument("--sanitized", action="store_true", help="the binaries are built with sanitizers")
    _, rest = parser.parse_known_args(namespace=arguments)
    unittest.main(module="__main__", argv=[sys.argv[0], *rest])


class ServerProcess:
    """A bst-server on free ports; a context manager that waits for the ready line."""

    def __init__(self, *flags: str, model: Path | None = None, prefix: Sequence[str] = ()) -> None:
        command = [*prefix, arguments.server, f"--model={model or arguments.model}", "--listen=127.0.0.1:0",
                   "--metrics_listen=127.0.0.1:0", *arguments.server_flags, *flags]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                        errors="backslashreplace")
        self.lines: list[str] = []
        self.ready_line = ""
        self._ready = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self.process.stderr:
            self.lines.append(line.rstrip("\n"))
            if line.startswith("ready "):
                self.ready_line = line.rstrip("\n")
                self._ready.set()
        self._ready.set()

    def __enter__(self) -> ServerProcess:
        self._ready.wait(READY_SECONDS)
        if not self.ready_line:
            self.process.kill()
            raise AssertionError("no ready line:\n" + "\n".join(self.lines))
        self.addresses = dict(part.split("=", 1) for part in self.ready_line.split(" ")[1:])
        return self

    def __exit__(self, *_: object) -> None:
        if arguments.sanitized and self.process.poll() is None:
            self._end_for_its_leaks()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._reader.join()
        self.process.stderr.close()
        self.process.stdout.close()
        for number, line in enumerate(self.lines):
            if "Sanitizer:" in line or "runtime error:" in line:  # a build with sanitizers has found something
                raise AssertionError("\n".join(self.lines[number:]))

    def _end_for_its_leaks(self) -> None:
        """LeakSanitizer looks at the exit: that of a server whose requests are over, others are killed."""
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(2)
        except subprocess.TimeoutExpired:
            pass

    @property
    def grpc(self) -> str:
        return self.addresses["grpc"]

    def metrics_text(self) -> str:
        with urllib.request.urlopen(f"http://{self.addresses['metrics']}/metrics", timeout=30) as answer:
            return answer.read().decode()

    def metric(self, line_start: str) -> float:
        """The value of the sample that is written `line_start`, labels included; 0 if there is none yet."""
        check_sample(line_start)
        for line in self.metrics_text().splitlines():
            if line.startswith(line_start + " "):
                return float(line.split(" ")[-1])
        return 0.0

    def wait_for(self, line_start: str, value: float, timeout: float = 60) -> None:
        """Until the metric has that value."""
        deadline = time.monotonic() + timeout
        while (seen := self.metric(line_start)) != value:
            if time.monotonic() > deadline:
                raise AssertionError(f"{line_start} is {seen}, not {value}")
            time.sleep(0.02)

    @property
    def resident_bytes(self) -> float:
        return self.metric("process_resident_memory_bytes")

    @property
    def open_files(self) -> float:
        return self.metric("process_open_fds")

    def terminate(self, timeout: float = 60) -> int:
        """SIGTERM; returns the exit code."""
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(timeout)
        self._reader.join()
        return code


def run_cli(server: ServerProcess | None, *flags: str, stdin: str = "", timeout: float = 120
            ) -> subprocess.CompletedProcess[str]:
    command = [arguments.cli, *flags]
    if server is not None:
        command += ["--server", server.grpc]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=timeout)


def cli_json(server: ServerProcess, *flags: str, stdin: str = "") -> dict[str, Any]:
    """Runs a command that must succeed and print one JSON object."""
    result = run_cli(server, *flags, "--json", stdin=stdin)
    if result.returncode != 0:
        raise AssertionError(f"bst {flags} returned {result.returncode}: {result.stderr}")
    return json.loads(result.stdout)


def start_cli(server: ServerProcess, *flags: str) -> subprocess.Popen[str]:
    return subprocess.Popen([arguments.cli, *flags, "--server", server.grpc], stdin=subprocess.DEVNULL,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def write_ids(path: Path, ids: Sequence[int]) -> str:
    path.write_text(json.dumps(list(ids)))
    return str(path)
