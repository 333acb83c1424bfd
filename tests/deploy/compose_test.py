"""compose.yaml and what it mounts into Prometheus and Grafana, by parsing: no container is started."""

from __future__ import annotations

import re
import unittest
from pathlib import Path

import yaml

from deploy_files import DEPLOY, ROOT, load


class ComposeTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls) -> None:
        cls.compose = load("compose.yaml")
        cls.services = cls.compose["services"]

    def test_every_service_is_hardened_and_checked(self) -> None:
        self.assertEqual(set(self.services), {"bst-server", "prometheus", "grafana"})
        for name, service in self.services.items():
            with self.subTest(name):
                self.assertTrue(service["read_only"])
                self.assertEqual(service["cap_drop"], ["ALL"])
                self.assertEqual(service["security_opt"], ["no-new-privileges:true"])
                self.assertNotIn(service["user"].split(":")[0], ("0", "root"))
                self.assertEqual(service["healthcheck"]["test"][0], "CMD")
                self.assertRegex(service["image"], r":v?\d+\.\d+\.\d+$")
                for port in service["ports"]:
                    self.assertTrue(port.startswith("127.0.0.1:"), port)

    def test_the_server_is_asked_over_grpc(self) -> None:
        server = self.services["bst-server"]
        self.assertEqual(server["healthcheck"]["test"][1:3], ["bst", "health"])
        uid = re.search(r"^USER (\d+)$", (ROOT / "Dockerfile").read_text(), re.M).group(1)
        self.assertEqual(server["user"].split(":")[0], uid)
        stages = re.findall(r"^FROM .* AS (\S+)$", (ROOT / "Dockerfile").read_text(), re.M)
        self.assertIn(server["build"]["target"], stages)
        self.assertTrue((DEPLOY / server["build"]["context"] / "Dockerfile").exists())

    def test_the_gpu_file_changes_target_and_backend_alone(self) -> None:
        [(name, gpu)] = load("compose.gpu.yaml")["services"].items()
        self.assertEqual(set(gpu), {"image", "build", "command", "deploy"})
        cpu = self.services[name]
        self.assertEqual([flag for flag in gpu["command"] if flag != "--backend=cuda"], cpu["command"])
        self.assertIn("--backend=cuda", gpu["command"])
        self.assertIn(f"\nFROM server AS {gpu['build']['target']}\n", (ROOT / "Dockerfile").read_text())
        self.assertEqual(gpu["image"], cpu["image"] + "-cuda")
        [device] = gpu["deploy"]["resources"]["reservations"]["devices"]
        self.assertEqual(device, {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]})

    def test_streams_end_before_the_server_is_killed(self) -> None:
        server = self.services["bst-server"]
        [grace] = [flag.split("=")[1] for flag in server["command"] if flag.startswith("--grace_seconds=")]
        self.assertGreater(int(server["stop_grace_period"].removesuffix("s")), int(grace))

    def test_what_is_mounted_exists(self) -> None:
        for name, service in self.services.items():
            for volume in service.get("volumes", []):
                source = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", volume).split(":")[0]
                with self.subTest(f"{name}: {volume}"):
                    if source.startswith("."):
                        self.assertTrue((DEPLOY / source).exists())
                        self.assertTrue(volume.endswith(":ro"))
                    else:
                        self.assertIn(source, self.compose["volumes"])

    def test_prometheus_finds_the_server(self) -> None:
        targets = yaml.safe_load(self.compose["configs"]["prometheus-targets"]["content"])
        self.assertEqual(targets, [{"targets": ["bst-server:9090"]}])
        [mounted] = self.services["prometheus"]["configs"]
        self.assertEqual(mounted["source"], "prometheus-targets")
        [scrape] = load("prometheus/prometheus.yml")["scrape_configs"]
        self.assertTrue(Path(mounted["target"]).match("/etc/prometheus/" + scrape["file_sd_configs"][0]["files"][0]))

    def test_grafana_finds_prometheus_and_the_dashboard(self) -> None:
        grafana = self.services["grafana"]
        [source] = load("grafana/provisioning/datasources/prometheus.yml")["datasources"]
        variable = re.fullmatch(r"\$\{(\w+)\}", source["url"]).group(1)
        self.assertEqual(grafana["environment"][variable], "http://prometheus:9090")
        self.assertEqual(source["jsonData"]["timeInterval"],
                         load("prometheus/prometheus.yml")["global"]["scrape_interval"])
        [provider] = load("grafana/provisioning/dashboards/bst.yml")["providers"]
        mounts = dict(volume.split(":")[1::-1] for volume in grafana["volumes"])
        self.assertEqual(mounts[provider["options"]["path"]], "./grafana/dashboards")
        self.assertEqual(mounts["/etc/grafana/provisioning"], "./grafana/provisioning")
        home = Path(grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
        self.assertEqual(str(home.parent), provider["options"]["path"])
        self.assertTrue((DEPLOY / "grafana/dashboards" / home.name).exists())


if __name__ == "__main__":
    unittest.main()
