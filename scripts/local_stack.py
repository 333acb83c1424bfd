"""A server and Prometheus as processes on loopback, without containers: for scripts/stack and the tests of deploy/."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any, Callable, Sequence

import yaml

ROOT = Path(__file__).resolve().parent.parent
STOP_SECONDS = 30


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def wait_for(what: str, condition: Callable[[], Any], seconds: float = 90) -> Any:
    """Returns the first true answer of `condition`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if answer := condition():
            return answer
        time.sleep(0.2)
    raise AssertionError(f"not within {seconds} s: {what}")


def stop(process: subprocess.Popen[Any]) -> int:
    """SIGTERM, and SIGKILL if that does not end it; returns the exit code."""
    process.terminate()
    try:
        return process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


class Server:
    """A bst-server started with `command`, its stderr in `log`; a context manager that waits for the ready line."""

    def __init__(self, command: Sequence[str], log: Path) -> None:
        self.log = log.open("w")
        self.lines: list[str] = []
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self.process.stderr:
            self.lines.append(line.rstrip("\n"))
            self.log.write(line)

    def _ready_line(self) -> str | None:
        if ready := next((line for line in list(self.lines) if line.startswith("ready ")), None):
            return ready
        if self.process.poll() is not None:
            self._reader.join()
            raise RuntimeError("the server ended:\n" + "\n".join(self.lines))
        return None

    def __enter__(self) -> Server:
        try:
            self.ready_line = wait_for("the server is ready", self._ready_line, 120)
        except BaseException:
            self.close()
            raise
        self.addresses = dict(part.split("=", 1) for part in self.ready_line.split(" ")[1:])
        return self

    def close(self) -> int:
        code = stop(self.process)
        self._reader.join()
        self.process.stderr.close()
        self.log.close()
        return code

    def __exit__(self, *_: object) -> None:
        if not self.log.closed:
            self.close()


class Prometheus:
    """Debian's Prometheus with deploy/prometheus as its configuration, every interval one second."""

    def __init__(self, folder: Path, target: str, port: int = 0) -> None:
        shutil.copytree(ROOT / "deploy/prometheus", folder / "etc")
        config = yaml.safe_load((folder / "etc/prometheus.yml").read_text())
        config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        (folder / "etc/prometheus.yml").write_text(yaml.safe_dump(config))
        (folder / "etc/targets/bst.yml").write_text(yaml.safe_dump([{"targets": [target]}]))
        self.address = f"127.0.0.1:{port or free_port()}"
        self.log = (folder / "log").open("w")
        self.process = subprocess.Popen(
            ["prometheus", f"--config.file={folder}/etc/prometheus.yml", f"--storage.tsdb.path={folder}/data",
             f"--web.listen-address={self.address}"], stderr=self.log)

    def close(self) -> None:
        stop(self.process)
        self.log.close()

    def get(self, path: str, **parameters: str) -> Any:
        url = f"http://{self.address}/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            text = answer.read().decode()
        return json.loads(text)["data"] if path.startswith("api/") else text

    def query(self, expression: str) -> list[dict[str, Any]]:
        return self.get("api/v1/query", query=expression)["result"]

    def is_ready(self) -> bool:
        if self.process.poll() is not None:
            raise RuntimeError(f"Prometheus ended; its log is {self.log.name}")
        try:
            return bool(self.get("-/ready"))
        except OSError:
            return False
