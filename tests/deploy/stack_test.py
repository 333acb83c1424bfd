"""scripts/stack in short: a server, Prometheus and bst-stress together, and what is left of them."""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
import unittest
import urllib.request
from pathlib import Path

import bst_process
from bst_process import arguments
from deploy_files import ROOT

STACK = ROOT / "scripts/stack"


def command(out: Path, *flags: str) -> list[str]:
    return [str(STACK), "--bin", str(Path(arguments.server).parent), "--model", str(arguments.model), "--out", str(out),
            *flags]


class StackTest(unittest.TestCase):
    def setUp(self) -> None:
        self.out = Path(self.enterContext(tempfile.TemporaryDirectory())) / "report"

    def test_the_whole_of_it(self) -> None:
        process = subprocess.Popen(command(self.out, "--seconds", "4", "--overload-seconds", "3"),
                                   stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        lines, names = [], []
        for line in process.stdout:
            lines.append(line)
            # While it runs, Prometheus answers and has the server's metrics.
            if scraped := re.match(r"prometheus (http://\S+) has scraped", line):
                with urllib.request.urlopen(f"{scraped[1]}/api/v1/label/__name__/values", timeout=30) as answer:
                    names = json.load(answer)["data"]
                address = scraped[1]
        text = "".join(lines)
        process.stdout.close()
        self.assertEqual(process.wait(60), 0, text)
        self.assertGreater(sum(name.startswith("bst_") for name in names), 20)
        self.assertNotIn("FAILED", text)
        with self.assertRaises(OSError):
            urllib.request.urlopen(address, timeout=5)  # all is shut down

        normal = json.loads((self.out / "normal.json").read_text())
        self.assertEqual((set(normal["status_codes"]), normal["ok"]), ({"OK"}, True))
        overload = json.loads((self.out / "overload.json").read_text())
        self.assertEqual(set(overload["status_codes"]), {"OK", "RESOURCE_EXHAUSTED"})
        refused = overload["status_codes"]["RESOURCE_EXHAUSTED"]
        self.assertEqual((overload["refusals"]["with_retry_info"], overload["refusals"]["with_pushback"]),
                         (refused, refused))
        # The server's counters, Prometheus' samples and the client agree.
        counted = {sample["metric"]["code"]: int(sample["value"][1])
                   for sample in json.loads((self.out / "prometheus.txt").read_text())["requests by status"]}
        self.assertEqual(counted["RESOURCE_EXHAUSTED"], refused)
        for name in ("normal", "overload"):
            self.assertIn("<!DOCTYPE html>", (self.out / f"{name}.html").read_text())
            self.assertGreater(len((self.out / f"{name}.requests.jsonl").read_text().splitlines()), 10)

    def test_a_server_that_does_not_start(self) -> None:
        result = subprocess.run(command(self.out, "--model", "/nonexistent"), capture_output=True, text=True, timeout=60)
        self.assertEqual(result.returncode, 1)
        self.assertIn("the server ended", result.stderr)
        self.assertIn("/nonexistent", result.stderr)

    def test_programs_that_are_not_built(self) -> None:
        result = subprocess.run(command(self.out, "--bin", "/nonexistent"), capture_output=True, text=True, timeout=60)
        self.assertEqual(result.returncode, 1)
        self.assertIn("make build", result.stderr)


if __name__ == "__main__":
    bst_process.main()
