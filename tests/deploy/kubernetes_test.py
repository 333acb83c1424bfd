"""Renders both overlays with kubectl and checks what a reader of the manifests relies on."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
import unittest
from pathlib import Path
from typing import Any

import yaml

import bst_process
from bst_process import ServerProcess, run_cli
from deploy_files import DEPLOY, load, read_flags, skip

KINDS = {"ConfigMap", "Deployment", "HorizontalPodAutoscaler", "NetworkPolicy", "PodDisruptionBudget", "Service",
         "ServiceAccount", "ServiceMonitor"}
NAME = {"app.kubernetes.io/name": "bst-server"}


def rewrite_for_kustomize_2(folder: Path) -> None:
    """Says the same in the words of Kustomize 2.0, which Debian 12's kubectl 1.20 has inside."""
    for path in folder.glob("overlays/*/kustomization.yaml"):
        document = yaml.safe_load(path.read_text())
        document["bases"] = document.pop("resources")
        document["patchesStrategicMerge"] = [patch["path"] for patch in document.pop("patches")]
        path.write_text(yaml.safe_dump(document))


def render(overlay: str) -> dict[str, dict[str, Any]]:
    """The objects of an overlay, by kind."""
    version = subprocess.run(["kubectl", "version", "--client"], capture_output=True, text=True, check=True).stdout
    # "v1.32.4", "v1.20.2" as either writes it; Kustomize became 4 in kubectl 1.21.
    minor = int(re.search(r"v1\.(\d+)", version).group(1))
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(shutil.copytree(DEPLOY / "kubernetes", Path(folder, "kubernetes")))
        if minor < 21:
            rewrite_for_kustomize_2(copy)
        result = subprocess.run(["kubectl", "kustomize", str(copy / "overlays" / overlay)], capture_output=True,
                                text=True)
    if result.returncode != 0:
        raise AssertionError(result.stderr)
    documents = list(yaml.safe_load_all(result.stdout))
    objects = {document["kind"]: document for document in documents}
    assert len(objects) == len(documents), "one object of each kind"
    return objects


class OverlayTest:
    """What holds for every overlay; a subclass per overlay names it."""

    overlay: str

    @classmethod
    def setUpClass(cls) -> None:
        cls.objects = render(cls.overlay)
        cls.pod = cls.objects["Deployment"]["spec"]["template"]["spec"]
        [cls.container] = cls.pod["containers"]
        data = cls.objects["ConfigMap"]["data"]
        cls.flags = read_flags(data["server.flags"]) | read_flags(data["backend.flags"])

    def test_every_object_is_there(self) -> None:
        self.assertEqual(set(self.objects), KINDS)

    def test_selectors_meet_the_pods(self) -> None:
        deployment = self.objects["Deployment"]
        self.assertEqual(deployment["spec"]["template"]["metadata"]["labels"], NAME)
        self.assertEqual(deployment["spec"]["selector"]["matchLabels"], NAME)
        self.assertEqual(self.objects["Service"]["spec"]["selector"], NAME)
        self.assertEqual(self.objects["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"], NAME)
        self.assertEqual(self.objects["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"], NAME)
        self.assertEqual(self.objects["ServiceMonitor"]["spec"]["selector"]["matchLabels"],
                         {key: self.objects["Service"]["metadata"]["labels"][key] for key in NAME})
        self.assertEqual(self.objects["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]["name"],
                         deployment["metadata"]["name"])
        self.assertNotIn("replicas", deployment["spec"])  # kubectl apply would undo the autoscaler

    def test_ports_agree(self) -> None:
        ports = {port["name"]: port["containerPort"] for port in self.container["ports"]}
        self.assertEqual(self.flags["listen"], f"0.0.0.0:{ports['grpc']}")
        self.assertEqual(self.flags["metrics_listen"], f"0.0.0.0:{ports['metrics']}")
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            self.assertEqual(self.container[probe]["grpc"]["port"], ports["grpc"])
        service = self.objects["Service"]["spec"]
        self.assertEqual(service["clusterIP"], "None")
        self.assertEqual({port["name"]: port["targetPort"] for port in service["ports"]},
                         {name: name for name in ports})
        [endpoint] = self.objects["ServiceMonitor"]["spec"]["endpoints"]
        self.assertIn(endpoint["port"], ports)
        policy = self.objects["NetworkPolicy"]["spec"]
        self.assertEqual({port["port"] for rule in policy["ingress"] for port in rule["ports"]}, set(ports))
        for rule in policy["ingress"]:
            self.assertTrue(rule["from"])  # an empty list would let everybody in
        self.assertEqual((policy["policyTypes"], policy["egress"]), (["Ingress", "Egress"], []))

    def test_flags_are_mounted_where_they_are_read(self) -> None:
        [volume] = self.pod["volumes"]
        [mount] = self.container["volumeMounts"]
        name = self.objects["ConfigMap"]["metadata"]["name"]
        self.assertRegex(name, r"^bst-server-flags-[a-z0-9]{10}$")
        self.assertEqual(volume["configMap"]["name"], name)
        files = self.container["args"][0].removeprefix("--flagfile=").split(",")
        self.assertEqual(files, [f"{mount['mountPath']}/{key}" for key in ("server.flags", "backend.flags")])

    def test_a_pod_has_time_to_drain(self) -> None:
        command = self.container["lifecycle"]["preStop"]["exec"]["command"]
        self.assertEqual(command[0], "sleep")
        self.assertEqual(self.pod["terminationGracePeriodSeconds"],
                         int(command[1]) + int(self.flags["grace_seconds"]) + 10)

    def test_least_privilege(self) -> None:
        self.assertEqual(self.pod["securityContext"], {"runAsNonRoot": True, "runAsUser": 10001, "runAsGroup": 10001,
                                                       "seccompProfile": {"type": "RuntimeDefault"}})
        self.assertEqual(self.container["securityContext"],
                         {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True,
                          "capabilities": {"drop": ["ALL"]}})
        self.assertIs(self.pod["automountServiceAccountToken"], False)
        self.assertIs(self.objects["ServiceAccount"]["automountServiceAccountToken"], False)
        self.assertEqual(self.pod["serviceAccountName"], self.objects["ServiceAccount"]["metadata"]["name"])

    def test_cores_are_whole_and_all_used(self) -> None:
        resources = self.container["resources"]
        for name in ("cpu", "memory"):
            self.assertEqual(resources["requests"][name], resources["limits"][name])
        self.assertEqual(resources["limits"]["cpu"], self.flags["threads"])

    def test_the_autoscaler_reads_metrics_that_the_adapter_has(self) -> None:
        spec = self.objects["HorizontalPodAutoscaler"]["spec"]
        self.assertGreaterEqual(spec["minReplicas"], 2)
        asked = {metric["pods"]["metric"]["name"] for metric in spec["metrics"]}
        offered = {rule["name"]["as"] for rule in load("kubernetes/prometheus-adapter.yaml")["rules"]["custom"]}
        self.assertEqual(asked, offered)

    def test_alerts_find_the_job(self) -> None:
        label = self.objects["ServiceMonitor"]["spec"]["jobLabel"]
        [job] = [config["job_name"] for config in load("prometheus/prometheus.yml")["scrape_configs"]]
        self.assertEqual(self.objects["Service"]["metadata"]["labels"][label], job)


class CpuTest(OverlayTest, unittest.TestCase):
    overlay = "cpu"

    def test_image(self) -> None:
        self.assertEqual(self.container["image"], "bst:0.1.0")

    def test_the_server_takes_the_flags(self) -> None:
        """The rendered files, with the model and the ports of this machine after them."""
        with tempfile.TemporaryDirectory() as folder:
            paths = []
            for name, text in sorted(self.objects["ConfigMap"]["data"].items(), reverse=True):
                paths.append(Path(folder, name))
                paths[-1].write_text(text.replace("--model=/models/", f"--model={DEPLOY.parent}/models/"))
            self.assertEqual([path.name for path in paths], ["server.flags", "backend.flags"])
            with ServerProcess("--flagfile=" + ",".join(map(str, paths)), "--listen=127.0.0.1:0",
                               "--metrics_listen=127.0.0.1:0") as server:
                self.assertEqual(run_cli(server, "health").stdout, "SERVING\n")
                text = "\n".join(server.lines)
                self.assertIn('"threads":4', text.replace('"4"', "4"))
                self.assertIn("bst-books-4m", server.ready_line)


class GpuTest(OverlayTest, unittest.TestCase):
    overlay = "gpu"

    def test_one_gpu(self) -> None:
        self.assertEqual(self.container["image"], "bst:0.1.0-cuda")
        self.assertEqual(self.flags["backend"], "cuda")
        self.assertEqual(self.container["resources"]["limits"]["nvidia.com/gpu"], "1")
        [toleration] = self.pod["tolerations"]
        self.assertEqual(toleration["key"], "nvidia.com/gpu")
        self.assertEqual(self.objects["Deployment"]["spec"]["strategy"]["rollingUpdate"],
                         {"maxUnavailable": 1, "maxSurge": 0})


if __name__ == "__main__":
    if shutil.which("kubectl") is None:
        skip("no kubectl; Debian has it in the package kubernetes-client")
    bst_process.main()
