"""A real Prometheus scrapes a real server: the metrics, the rules and the dashboard fit together."""

from __future__ import annotations

import re
import signal
import subprocess
import tempfile
import unittest
from pathlib import Path
from typing import Any

import bst_process
from bst_process import ServerProcess, cli_json, run_cli, start_cli
from deploy_files import DEPLOY, load
from local_stack import Prometheus, wait_for

# Metrics that rules or dashboard name and a CPU server does not have; deploy/README.md says when they come.
NOT_ON_CPU = {"bst_gpu_memory_bytes"}

# Panels that are empty unless something is running.
EMPTY_WHEN_IDLE = {"GPU memory", "Time since the last step while requests run"}

METRIC = re.compile(r"\b(?:(?:instance|job):)?(?:bst|process)_\w+(?::\w+)*")


def metric_names(expression: str) -> set[str]:
    """The metrics that a PromQL expression names; label matchers and strings are no metrics."""
    return set(METRIC.findall(re.sub(r"\{[^}]*\}", "", expression)))


def rules() -> list[dict[str, Any]]:
    return [rule for name in ("recording", "alerts") for group in load(f"prometheus/rules/{name}.yml")["groups"]
            for rule in group["rules"]]


def dashboard_queries() -> list[tuple[str, str]]:
    """(panel title, PromQL) of every query of the dashboard."""
    dashboard = load("grafana/dashboards/bst-server.json")
    return [(panel["title"], target["expr"]) for panel in dashboard["panels"] for target in panel.get("targets", [])]


class ObservabilityTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls) -> None:
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.server = ServerProcess("--threads=1")
        cls.enterClassContext(cls.server)
        cls.prometheus = Prometheus(Path(folder.name), cls.server.addresses["metrics"])
        cls.addClassCleanup(cls.prometheus.close)
        cls.generate()

    @classmethod
    def generate(cls) -> None:
        cli_json(cls.server, "generate", "--prompt", "It was", "--ignore-eos", "--max-new-tokens", "40", "--seed", "1")

    @classmethod
    def generate_two(cls) -> None:
        """A prompt that is read while another stream decodes: a mixed step."""
        running = start_cli(cls.server, "generate", "--prompt", "It was", "--ignore-eos", "--max-new-tokens", "10000")
        running.stdout.read(1)
        cls.generate()
        running.send_signal(signal.SIGINT)
        running.communicate(timeout=30)

    def test_1_metrics_are_scraped_and_rules_evaluated(self) -> None:
        prometheus = self.prometheus
        wait_for("Prometheus is ready", prometheus.is_ready)
        wait_for("up == 1", lambda: prometheus.query('up{job="bst"} == 1'))
        [generated] = prometheus.query("bst_generation_tokens_total")
        self.assertEqual(float(generated["value"][1]), 40)
        run_cli(self.server, "generate", "--prompt", "")  # one refusal

        recorded = [rule["record"] for rule in rules() if "record" in rule]

        def silent() -> list[str]:
            return [name for name in recorded if not prometheus.query(name)]

        wait_for("requests that a rule can count", lambda: self.generate_two() or not silent())
        self.assertTrue(prometheus.query("instance:bst_generation_tokens:rate5m > 0"))
        for group in prometheus.get("api/v1/rules")["groups"]:
            for rule in group["rules"]:
                self.assertEqual((rule["health"], rule.get("lastError", "")), ("ok", ""), rule["name"])

    def test_2_every_query_of_the_dashboard_has_an_answer(self) -> None:
        empty = set()
        for title, expression in dashboard_queries():
            expression = expression.replace("$__rate_interval", "1m").replace("$instance", ".*")
            if not self.prometheus.query(expression):
                empty.add(title)
        self.assertEqual(empty - EMPTY_WHEN_IDLE, set())

    def test_3_promtool_has_nothing_to_say_about_the_metrics(self) -> None:
        result = subprocess.run(["promtool", "check", "metrics"], input=self.server.metrics_text(), capture_output=True,
                                text=True)
        self.assertEqual((result.returncode, result.stdout + result.stderr), (0, ""))

    def test_4_every_metric_that_is_named_exists(self) -> None:
        samples = set(re.findall(r"^(\w+)", self.server.metrics_text(), re.M))
        recorded = {rule["record"] for rule in rules() if "record" in rule}
        expressions = [rule["expr"] for rule in rules()] + [expression for _, expression in dashboard_queries()]
        expressions += [rule["seriesQuery"] for rule in load("kubernetes/prometheus-adapter.yaml")["rules"]["custom"]]
        named = set().union(*map(metric_names, expressions))
        self.assertGreater(len(named), 40)  # the expression that finds them works
        self.assertEqual(named - samples - recorded, NOT_ON_CPU)
        readme = (DEPLOY / "README.md").read_text()
        for name in NOT_ON_CPU:
            self.assertIn(name, readme)

    def test_5_a_dead_server_raises_the_alert(self) -> None:
        self.server.process.kill()
        wait_for("up == 0", lambda: self.prometheus.query('up{job="bst"} == 0'))
        wait_for("BstServerDown is pending",
                 lambda: self.prometheus.query('ALERTS{alertname="BstServerDown", alertstate="pending"}'))


class RunbookTest(unittest.TestCase):
    def test_every_alert_has_its_section(self) -> None:
        headings = re.findall(r"^## (Bst\w+)$", (DEPLOY / "runbook.md").read_text(), re.M)
        alerts = [rule for rule in rules() if "alert" in rule]
        self.assertEqual(headings, [rule["alert"] for rule in alerts])
        for rule in alerts:
            self.assertEqual(rule["annotations"]["runbook"], f"deploy/runbook.md#{rule['alert'].lower()}")
            self.assertIn(rule["labels"]["severity"], ("critical", "warning"))


class DashboardTest(unittest.TestCase):
    def test_panels_do_not_overlap(self) -> None:
        cells: dict[tuple[int, int], str] = {}
        for panel in load("grafana/dashboards/bst-server.json")["panels"]:
            place = panel["gridPos"]
            self.assertLessEqual(place["x"] + place["w"], 24, panel["title"])
            for x in range(place["x"], place["x"] + place["w"]):
                for y in range(place["y"], place["y"] + place["h"]):
                    self.assertNotIn((x, y), cells, f"{panel['title']} lies on {cells.get((x, y))}")
                    cells[x, y] = panel["title"]

    def test_ids_are_unique(self) -> None:
        ids = [panel["id"] for panel in load("grafana/dashboards/bst-server.json")["panels"]]
        self.assertEqual(len(ids), len(set(ids)))

    def test_data_source_is_a_variable(self) -> None:
        for panel in load("grafana/dashboards/bst-server.json")["panels"]:
            if panel["type"] != "row":
                self.assertEqual(panel["datasource"], {"type": "prometheus", "uid": "${datasource}"}, panel["title"])


if __name__ == "__main__":
    bst_process.main()
