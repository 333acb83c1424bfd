"""The real server has every metric of metrics_table, and no other."""

from __future__ import annotations

import re
import unittest
from collections import defaultdict

import bst_process
from bst_process import ServerProcess, cli_json, run_cli
from metrics_table import ANY, EXPOSER, METRICS, check_sample

class MetricsTableTest(unittest.TestCase):
    def test_every_metric_of_the_table_and_no_other(self) -> None:
        with ServerProcess("--backend=reference") as server:
            cli_json(server, "generate", "--prompt", "x", "--max-new-tokens", "3", "--ignore-eos")
            run_cli(server, "generate", "--prompt", "x", "--top-p", "7")
            text = server.metrics_text()
        types = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.M))
        helps = dict(re.findall(r"^# HELP (\S+) (.+)$", text, re.M))
        labels: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
        sets_of_labels: dict[str, set[frozenset[str]]] = defaultdict(set)
        for name, inside in re.findall(r"^([a-z0-9_]+)(?:\{(.*)\})? \S+$", text, re.M):
            family = re.sub(r"_(bucket|sum|count)$", "", name) if name not in types else name
            found = dict(re.findall(r'(\w+)="([^"]*)"', inside))
            sets_of_labels[family].add(frozenset(found) - {"le"})
            for label, value in found.items():
                labels[family][label].add(value)
        self.assertEqual(set(types) - EXPOSER, set(METRICS))
        self.assertEqual(set(helps) - EXPOSER, set(METRICS))
        for name, (kind, expected, buckets) in METRICS.items():
            with self.subTest(metric=name):
                self.assertEqual(types[name], kind)
                self.assertEqual(sets_of_labels[name], {frozenset(expected)})
                for label, values in expected.items():
                    if values is not ANY:
                        self.assertEqual(labels[name][label], values)
                bounds = sorted(float(bound) for bound in labels[name]["le"] if bound != "+Inf")
                self.assertEqual(bounds, [float(bound) for bound in buckets.split()])
                self.assertEqual("+Inf" in labels[name]["le"], kind == "histogram")

    def test_samples_that_do_not_exist_are_refused(self) -> None:
        for sample in ("bst_requests_running", 'bst_requests_rejected_total{reason="draining"}',
                       "bst_time_to_first_token_seconds_count", 'bst_time_to_first_token_seconds_bucket{le="+Inf"}',
                       'bst_step_seconds_sum{phase="decode"}', 'bst_step_seconds_bucket{phase="decode",le="10"}'):
            check_sample(sample)
        for sample in ("bst_requests_runing", "bst_requests_rejected_total", 'bst_requests_running{phase="decode"}',
                       'bst_requests_rejected_total{reason="drained"}', 'bst_state_slots{tier="device",state="used"}',
                       "bst_time_to_first_token_seconds_bucket", 'bst_step_seconds_bucket{le="10",phase="decode"}'):
            with self.subTest(sample=sample), self.assertRaises(AssertionError):
                check_sample(sample)


if __name__ == "__main__":
    bst_process.main()
