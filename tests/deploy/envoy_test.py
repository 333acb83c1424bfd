"""The real Envoy in front of three real servers, two of which it loses under load."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import urllib.request
from pathlib import Path

import yaml
from bst_client import Client

import bst_process
from bst_process import ServerProcess
from deploy_files import ROOT, load, skip
from fleet import AnyStream, ClientStream, FleetTest, wait_for


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


if __name__ == "__main__":
    if not find_envoy():
        skip("no Envoy: scripts/install_dependencies test, or set BST_ENVOY to the binary")
    bst_process.main()
