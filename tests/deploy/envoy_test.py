"""The real Envoy in front of three real servers, two of which it loses under load."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import yaml
from bst_client import Client, HealthStatus, _wire

import bst_process
from bst_process import ServerProcess
from deploy_files import ROOT, load, skip
from fleet import ENDLESS, AnyStream, ClientStream, FleetTest, wait_for


def find_envoy() -> str:
    """$BST_ENVOY, `envoy` in PATH, or what scripts/install_dependencies put into build/; "" if there is none."""
    if found := os.environ.get("BST_ENVOY") or shutil.which("envoy"):
        return found
    binary = ROOT / "build/envoy/envoy/_bin/envoy"
    return str(binary) if binary.exists() else ""


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


class EnvoyTest(FleetTest):
    def setUp(self) -> None:
        super().setUp()
        self.envoy = self.enterContext(Envoy(find_envoy(), self.folder, self.servers))
        self.target = self.envoy.grpc
        self.client = self.enterContext(Client(self.target))

    def start(self, name: str, max_new_tokens: int) -> AnyStream:
        """Every other one with the Python client."""
        if len(self.streams) % 2 == 0:
            return super().start(name, max_new_tokens)
        stream = ClientStream(self.client, max_new_tokens)
        self.addCleanup(stream.close)
        return stream

    def test_one_stops_and_one_is_killed(self) -> None:
        self.start_streams()
        # It ends its streams itself, after --grace_seconds.
        self.assertEqual(self.lose_a_server(signal.SIGTERM), {"UNAVAILABLE"})
        # Nobody is left to write the trailers: Envoy, which has passed headers on, resets the streams.
        self.assertEqual(self.lose_a_server(signal.SIGKILL), {"UNAVAILABLE"})
        self.assertGreater(self.envoy.stat("http.grpc.downstream_rq_tx_reset"), 0)


class DrainTest(FleetTest):
    """A server that takes nothing new and stays for its last stream, which Envoy does not know of."""

    FLAGS = ("--threads=1", "--grace_seconds=120")

    def test_calls_go_elsewhere(self) -> None:
        envoy = self.enterContext(Envoy(find_envoy(), self.folder, self.servers))
        drained = self.servers[0]
        client = self.enterContext(Client(drained.grpc))
        self.addCleanup(ClientStream(client, ENDLESS).close)
        wait_for("a running stream", lambda: self.share(drained) == 1)
        drained.process.send_signal(signal.SIGTERM)
        wait_for("the drain", lambda: client.health() != HealthStatus.SERVING)
        # It is the least busy, so that most calls meet it first.
        with Client(envoy.grpc, timeout=120) as through, ThreadPoolExecutor(24) as pool:
            results = list(pool.map(lambda _: through.generate("x", max_new_tokens=1), range(400)))
        self.assertEqual(len(results), 400)
        self.assertEqual(envoy.stat("cluster.bst.upstream_rq_retry_overflow"), 0)


class OverloadTest(FleetTest):
    """Servers whose only slot is taken: what they refuse for that says nothing against them."""

    FLAGS = ("--threads=1", "--max_sequences=1")

    def setUp(self) -> None:
        super().setUp()
        self.envoy = self.enterContext(Envoy(find_envoy(), self.folder, self.servers))
        for server in self.servers:
            client = self.enterContext(Client(server.grpc))
            self.addCleanup(ClientStream(client, ENDLESS).close)
            wait_for("a running stream", lambda server=server: self.share(server) == 1)

    def test_deadlines_in_the_queue_eject_nobody(self) -> None:
        # Nothing has been sent when queue_timeout_ms ends a GenerateOnce: the status is in the headers, 504 for Envoy.
        request = _wire.GenerateRequest(text="x", queue_timeout_ms=1)
        with grpc.insecure_channel(self.envoy.grpc) as channel:
            call = channel.unary_unary("/bst.v1.Generation/GenerateOnce", _wire.GenerateRequest.SerializeToString,
                                       _wire.GenerateResult.FromString)
            for _ in range(5 * len(self.servers)):  # one has at least five, Envoy's threshold of 5xx in a row
                with self.assertRaises(grpc.RpcError) as caught:
                    call(request, timeout=60)
                self.assertEqual(caught.exception.code(), grpc.StatusCode.DEADLINE_EXCEEDED)
                self.assertIn("queue_timeout", caught.exception.details())
        self.assertEqual(self.envoy.stat("cluster.bst.outlier_detection.ejections_enforced_total"), 0)
        self.assertEqual(self.envoy.stat("cluster.bst.membership_healthy"), len(self.servers))


if __name__ == "__main__":
    if not find_envoy():
        skip("no Envoy: scripts/install_dependencies test, or set BST_ENVOY to the binary")
    bst_process.main()
