"""bst-stress against a real server: loads, misbehaving clients, overload, verdicts, reports, exit codes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import time
import unittest
from pathlib import Path
from typing import Any

import bst_process
from bst_process import ServerProcess, arguments, start_cli

SHORT = ("--prompt-tokens", "4-40", "--max-new-tokens", "8-24", "--ignore-eos")


def command(server: ServerProcess, *flags: str) -> list[str]:
    return [str(Path(arguments.cli).with_name("bst-stress")), "--server", server.grpc, *flags]


def stress(server: ServerProcess, *flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(server, *flags), capture_output=True, text=True, timeout=120)


def open_connections(pid: int, address: str) -> int:
    """How many established TCP connections to `address` the process holds.

    The server's count of open files does not tell: connections of earlier clients close while one looks.
    """
    def target(file: Path) -> str:
        try:
            return os.readlink(file)
        except FileNotFoundError:  # closed since it was listed
            return ""

    own = {target(file) for file in Path(f"/proc/{pid}/fd").iterdir()}
    port = f":{int(address.rsplit(':', 1)[1]):04X}"
    tables = [path for path in (Path(f"/proc/{pid}/net/tcp"), Path(f"/proc/{pid}/net/tcp6")) if path.exists()]
    rows = [line.split() for table in tables for line in table.read_text().splitlines()]
    return sum(remote.endswith(port) and state == "01" and f"socket:[{row[5]}]" in own
               for _, _, remote, state, *row in rows)


class StressTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls) -> None:
        cls.server = cls.enterClassContext(ServerProcess("--max_sequences=4"))
        cls.folder = Path(cls.enterClassContext(tempfile.TemporaryDirectory()))

    def report(self, *flags: str, server: ServerProcess | None = None, code: int = 0) -> dict[str, Any]:
        """The JSON of a run that must end with `code`."""
        result = stress(server or self.server, *flags, "--json", "-")
        self.assertEqual(result.returncode, code, result.stderr)
        return json.loads(result.stdout)

    def assert_idle(self, server: ServerProcess) -> None:
        deadline = time.monotonic() + 20
        while server.metric("bst_requests_running") + server.metric("bst_requests_waiting") > 0:
            self.assertLess(time.monotonic(), deadline, "requests are left on the server")
            time.sleep(0.05)

    def wait_until_running(self, server: ServerProcess, requests: int) -> None:
        deadline = time.monotonic() + 20
        while server.metric("bst_requests_running") < requests:
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.05)

    def test_closed_loop(self) -> None:
        lines_file = self.folder / "requests.jsonl"
        before = self.server.metric("bst_generation_tokens_total")
        report = self.report("--concurrency", "6", "--requests", "40", *SHORT, "--requests-out", str(lines_file),
                             "--metrics", self.server.addresses["metrics"], "--connections", "2")
        self.assertEqual((report["completed"], report["failed"], report["status_codes"]), (40, 0, {"OK": 40}))
        self.assertEqual(report["max_concurrent_requests"], 6)
        self.assertGreater(report["output_throughput"], 0)
        self.assertLessEqual(report["p50_ttft_ms"], report["p99_ttft_ms"])
        self.assertLessEqual(report["max_ttft_ms"], report["max_e2el_ms"])
        lines = [json.loads(line) for line in lines_file.read_text().splitlines()]
        self.assertEqual(sorted(line["index"] for line in lines), list(range(40)))
        self.assertEqual(sum(line["output_tokens"] for line in lines), report["total_output_tokens"])
        for line in lines:
            self.assertEqual((line["status"], line["finish_reason"]), ("OK", "MAX_TOKENS"))
            self.assertTrue(4 <= line["prompt_tokens"] <= 40 and 8 <= line["output_tokens"] <= 24, line)
            self.assertLessEqual(line["ttft_ms"], line["e2el_ms"])
        # The server counted the same tokens.
        generated = self.server.metric("bst_generation_tokens_total") - before
        self.assertEqual(generated, report["total_output_tokens"])
        self.assertEqual(report["server_metrics"]["counters"]["bst_generation_tokens_total"], generated)
        self.assertEqual(report["server_metrics"]["histograms"]["bst_e2e_request_latency_seconds"]["count"], 40)

    def test_open_loop_counts_from_the_intended_send(self) -> None:
        lines_file = self.folder / "open.jsonl"
        # Far more than one at a time can do: each waits longer than the one before.
        report = self.report("--rate", "20000", "--arrivals", "constant", "--duration", "25ms", "--concurrency", "1",
                             "--prompt-tokens", "8", "--max-new-tokens", "8", "--ignore-eos",
                             "--requests-out", str(lines_file))
        lines = [json.loads(line) for line in lines_file.read_text().splitlines()]
        # Gaps of 50 microseconds, the first after the first gap.
        self.assertIn(report["completed"], (499, 500))
        for line in lines:
            self.assertAlmostEqual(line["intended_seconds"], 0.00005 * (line["index"] + 1), places=6)
            waited = (line["sent_seconds"] - line["intended_seconds"]) * 1e3
            self.assertGreaterEqual(line["ttft_ms"] + 1e-3 * line["ttft_ms"], waited)
        self.assertGreater(lines[-1]["ttft_ms"], 10 * (lines[-1]["e2el_ms"] - lines[-1]["ttft_ms"]))
        self.assertEqual(report["max_concurrent_requests"], 1)

    def test_warmup_probes_and_slo(self) -> None:
        flags = ("--rate", "40", "--warmup", "400ms", "--duration", "800ms", "--probe-rate", "10", *SHORT)
        html = self.folder / "run.html"
        report = self.report(*flags, "--slo", "ttft:60s,itl:60s,e2e:60s", "--html", str(html))
        self.assertTrue(all(clause["held"] for clause in report["slo"]))
        self.assertEqual(report["request_goodput"], report["request_throughput"])
        self.assertGreater(report["probes"]["count"], 5)
        self.assertGreater(report["probes"]["p50_e2el_ms"], 0)
        self.assertGreater(sum(report["timeline"]["sent"]), report["num_prompts"])  # those of the warm-up
        self.assertIn("<!DOCTYPE html>", html.read_text())
        broken = self.report(*flags, "--slo", "ttft:1us", code=1)
        self.assertEqual((broken["ok"], broken["slo"][0]["held"], broken["request_goodput"]), (False, False, 0))
        self.assertIn("SLO ttft p99 <= 0.001 ms does not hold", broken["complaints"][0])

    def test_probes_go_on_after_the_last_request(self) -> None:
        # One request, due after a second, and the next beyond the duration; probes are due until its end.
        report = self.report("--rate", "1", "--arrivals", "constant", "--duration", "1500ms", "--probe-rate", "10", *SHORT)
        self.assertEqual(report["completed"], 1)
        self.assertGreaterEqual(report["probes"]["count"], 14)
        # All requests are sent at once; probes are due until they end.
        report = self.report("--concurrency", "1", "--requests", "1", "--probe-rate", "10", "--deadline", "2s",
                             "--max-new-tokens", "1000000", "--ignore-eos")
        self.assertEqual(report["status_codes"], {"DEADLINE_EXCEEDED": 1})
        self.assertGreater(report["probes"]["count"], 0)

    def test_an_interrupt_ends_far_too_many_probes(self) -> None:
        running = subprocess.Popen(command(self.server, "--rate", "1", "--duration", "600s", "--probe-rate", "1e6",
                                           *SHORT), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.addCleanup(running.kill)
        self.wait_until_running(self.server, 1)
        running.send_signal(signal.SIGINT)
        self.assertEqual(running.wait(60), 1)
        self.assert_idle(self.server)

    def test_sources_of_prompts(self) -> None:
        text = self.folder / "text.txt"
        text.write_text("It was a dark evening. " * 40)
        report = self.report("--concurrency", "3", "--requests", "10", "--text-file", str(text), *SHORT)
        self.assertEqual(report["completed"], 10)
        lines = self.folder / "prompts.jsonl"
        lines.write_text('{"prompt": "abc", "max_new_tokens": 3}\n{"token_ids": [5, 6, 7, 8, 9], "max_new_tokens": 5}\n')
        report = self.report("--concurrency", "3", "--requests", "10", "--jsonl", str(lines), "--ignore-eos")
        self.assertEqual(report["total_output_tokens"], 5 * 3 + 5 * 5)
        report = self.report("--concurrency", "3", "--requests", "10", "--mix", "90:4-8:4,10:600:2",
                             "--shared-prefix", "20", "--prefixes", "2")
        self.assertEqual(report["completed"], 10)
        too_long = stress(self.server, "--concurrency", "1", "--prompt-tokens", "4000000000")
        self.assertEqual(too_long.returncode, 2)
        self.assertIn("above the server's limit", too_long.stderr)

    def test_a_text_that_cannot_be_read_is_named(self) -> None:
        result = stress(self.server, "--concurrency", "1", "--text-file", str(self.folder))
        self.assertEqual((result.returncode, result.stderr),
                         (2, f"bst-stress: cannot read {self.folder}: Is a directory\n"))

    def test_sweep(self) -> None:
        result = stress(self.server, "--sweep", "concurrency", "--sweep-steps", "1,4", "--requests", "12", *SHORT,
                        "--slo", "ttft:60s", "--json", str(self.folder / "sweep.json"))
        self.assertEqual(result.returncode, 0, result.stdout + result.stderr)
        self.assertIn("the highest load that holds: 4 streams", result.stdout)
        sweep = json.loads((self.folder / "sweep.json").read_text())["sweep"]
        self.assertEqual((sweep["highest"], [point["load"] for point in sweep["points"]]), (4, [1, 4]))
        report = self.report("--sweep", "rate", "--sweep-steps", "20", "--requests", "5", *SHORT, "--slo", "ttft:1us",
                             code=1)
        self.assertIsNone(report["sweep"]["highest"])

    def test_verify(self) -> None:
        result = stress(self.server, "--verify", "--requests", "24", "--concurrency", "12", *SHORT)
        self.assertEqual(result.returncode, 0, result.stdout + result.stderr)
        self.assertRegex(result.stdout, r"the same: 24 requests, \d+ tokens and log-probabilities at concurrency 1 and 12")

    def test_clients_that_misbehave(self) -> None:
        report = self.report("--concurrency", "8", "--requests", "60", "--cancel-rate", "0.4", "--slow-reader", "0.2",
                             "--slow-reader-delay", "5ms", "--deadline", "100ms", "--deadline-rate", "0.2",
                             "--prompt-tokens", "200", "--max-new-tokens", "100-200", "--ignore-eos")
        codes = report["status_codes"]
        self.assertGreater(codes["CANCELLED"], 0)
        self.assertGreater(codes["OK"], 0)
        self.assertLessEqual(set(codes), {"OK", "CANCELLED", "DEADLINE_EXCEEDED"})
        self.assertEqual(sum(codes.values()), 60)
        self.assert_idle(self.server)
        self.assertGreater(sum(float(line.split()[-1]) for line in self.server.metrics_text().splitlines()
                               if line.startswith("bst_requests_cancelled_total{")), 0)

    def test_a_deadline_that_cannot_be_met_is_expected(self) -> None:
        report = self.report("--concurrency", "2", "--requests", "4", "--deadline", "50ms", "--prompt-tokens", "8",
                             "--max-new-tokens", "100000", "--ignore-eos")
        self.assertEqual(report["status_codes"], {"DEADLINE_EXCEEDED": 4})
        self.assertEqual((report["unexpected"], report["failed"]), (0, 4))

    def test_streams_that_outlast_the_run_are_cut(self) -> None:
        report = self.report("--concurrency", "2", "--duration", "200ms", "--drain", "100ms", "--prompt-tokens", "8",
                             "--max-new-tokens", "1000000", "--ignore-eos")
        self.assertEqual(report["status_codes"], {"CANCELLED": 2})
        self.assertGreater(report["total_output_tokens"], 0)
        self.assert_idle(self.server)

    def test_a_server_that_answers_nothing_is_no_success(self) -> None:
        """Two requests that wait behind another for all of the run are cut, and nobody is to blame."""
        with ServerProcess("--max_sequences=1") as server:
            holder = start_cli(server, "generate", "--prompt", "x", "--max-new-tokens", "1000000", "--ignore-eos")
            try:
                self.wait_until_running(server, 1)
                report = self.report("--concurrency", "2", "--duration", "200ms", "--drain", "100ms", *SHORT,
                                     server=server, code=1)
            finally:
                holder.kill()
                holder.communicate()
        self.assertEqual(report["status_codes"], {"CANCELLED": 2})
        self.assertEqual(report["complaints"], ["no request completed, and none had a token"])

    def test_a_run_that_is_over_waits_for_no_timer(self) -> None:
        """Readers that would take ten minutes for a message; the time of the call is limited to two."""
        flags = ("--concurrency", "2", "--prompt-tokens", "8", "--max-new-tokens", "1000000", "--ignore-eos",
                 "--slow-reader", "1", "--slow-reader-delay", "600s")
        report = self.report(*flags, "--duration", "200ms", "--drain", "100ms", code=1)
        self.assertEqual(report["status_codes"], {"CANCELLED": 2})
        running = subprocess.Popen(command(self.server, *flags, "--duration", "600s"), stdout=subprocess.DEVNULL,
                                   stderr=subprocess.DEVNULL)
        self.addCleanup(running.kill)
        self.wait_until_running(self.server, 2)
        running.send_signal(signal.SIGINT)
        self.assertEqual(running.wait(60), 1)

    def test_a_stream_that_is_silent_for_all_of_the_drain_is_no_success(self) -> None:
        """One of two gives tokens until it is cut; of the other, which waits behind it, nothing comes."""
        with ServerProcess("--max_sequences=1") as server:
            report = self.report("--concurrency", "2", "--duration", "3s", "--drain", "1s", "--prompt-tokens", "8",
                                 "--max-new-tokens", "1000000", "--ignore-eos", server=server, code=1)
        self.assertEqual(report["status_codes"], {"CANCELLED": 2})
        self.assertGreater(report["total_output_tokens"], 0)
        self.assertRegex(report["complaints"][0], r"CANCELLED: no message in the [0-9.]+ s before it was cut")
        self.assertGreaterEqual(report["longest_stall_ms"], 1000)

    def test_overload_is_refused_with_advice(self) -> None:
        flags = ("--concurrency", "12", "--requests", "36", "--prompt-tokens", "8", "--max-new-tokens", "40",
                 "--ignore-eos")
        with ServerProcess("--max_sequences=1", "--max_queue=1") as server:
            report = self.report(*flags, "--expect", "OK,RESOURCE_EXHAUSTED", server=server)
            refused = report["status_codes"]["RESOURCE_EXHAUSTED"]
            self.assertGreater(refused, 0)
            self.assertGreater(report["status_codes"]["OK"], 0)
            self.assertEqual(report["refusals"], {"count": refused, "with_retry_info": refused,
                                                  "with_pushback": refused, "retries": 0})
            self.assertIn("queue is full", report["first_messages"]["RESOURCE_EXHAUSTED"])

            failed = self.report(*flags, server=server, code=1)
            self.assertIn("RESOURCE_EXHAUSTED", failed["complaints"][0])

            retried = self.report("--concurrency", "3", "--requests", "6", "--retry", "20", "--prompt-tokens", "8",
                                  "--max-new-tokens", "4", "--ignore-eos", server=server)
            self.assertEqual(retried["status_codes"], {"OK": 6})
            self.assertEqual(retried["refusals"]["retries"], retried["refusals"]["count"])

    def test_keys(self) -> None:
        key, wrong = self.folder / "key", self.folder / "wrong"
        key.write_text("secret-key-of-the-test\n")
        wrong.write_text("another\n")
        with ServerProcess(f"--auth_token_file={key}") as server:
            report = self.report("--concurrency", "1", "--requests", "2", *SHORT, "--token-file", str(key), server=server)
            self.assertEqual(report["completed"], 2)
            for flags in ((), ("--token-file", str(wrong))):
                refused = stress(server, "--concurrency", "1", *flags)
                self.assertEqual(refused.returncode, 1)
                self.assertRegex(refused.stderr, "UNAUTHENTICATED|PERMISSION_DENIED")

    def test_connections_are_separate(self) -> None:
        running = subprocess.Popen(command(self.server, "--concurrency", "1", "--duration", "20s", "--connections", "7",
                                           *SHORT), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + 15
            while (seen := open_connections(running.pid, self.server.grpc)) != 7:
                self.assertLess(time.monotonic(), deadline, f"{seen} connections, not 7")
                time.sleep(0.05)
        finally:
            running.send_signal(signal.SIGINT)
            self.assertEqual(running.wait(20), 1)

    def test_an_interrupt_still_gives_the_report(self) -> None:
        running = subprocess.Popen(command(self.server, "--concurrency", "3", "--duration", "60s", "--max-new-tokens",
                                           "1000000", "--ignore-eos", "--json", "-"), stdout=subprocess.PIPE,
                                   stderr=subprocess.PIPE, text=True)
        self.wait_until_running(self.server, 3)
        running.send_signal(signal.SIGINT)
        stdout, stderr = running.communicate(timeout=30)
        self.assertEqual(running.returncode, 1, stderr)
        report = json.loads(stdout)
        self.assertEqual((report["complaints"], report["status_codes"]), (["interrupted"], {"CANCELLED": 3}))
        self.assert_idle(self.server)

    def test_a_server_that_dies_is_reported(self) -> None:
        with ServerProcess("--max_sequences=2") as server:
            running = subprocess.Popen(command(server, "--concurrency", "2", "--duration", "3s", "--metrics",
                                               server.addresses["metrics"], "--max-new-tokens", "1000000", "--ignore-eos",
                                               "--json", "-"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            self.wait_until_running(server, 2)
            server.process.kill()
            stdout, stderr = running.communicate(timeout=30)
        self.assertEqual(running.returncode, 1, stderr)
        report = json.loads(stdout)
        self.assertIn("UNAVAILABLE", report["status_codes"])
        self.assertIn("--metrics", report["complaints"][0])
        self.assertIn("UNAVAILABLE", report["complaints"][1])

    def test_a_server_of_small_messages(self) -> None:
        with ServerProcess("--max_message_bytes=1024", "--max_prompt_tokens=2000") as server, \
                tempfile.NamedTemporaryFile("w") as text:
            text.write("It was a dark evening. " * 1000)
            text.flush()
            flags = ("--concurrency", "1", "--requests", "2", "--max-new-tokens", "1", "--text-file", text.name)
            result = stress(server, *flags, "--prompt-tokens", "100")
            self.assertEqual(result.returncode, 0, result.stderr)
            result = stress(server, *flags, "--prompt-tokens", "1000")
            self.assertEqual(result.returncode, 2)
            self.assertIn("above the server's message limit of 1024", result.stderr)

    def test_a_report_that_is_lost_is_a_failure(self) -> None:
        for flags in ((), ("--json", "-")):
            with open("/dev/full", "w") as full:
                result = subprocess.run(command(self.server, "--concurrency", "1", "--requests", "1", *SHORT, *flags),
                                        stdout=full, stderr=subprocess.PIPE, text=True, timeout=120)
            self.assertEqual(result.returncode, 1, flags)
            self.assertIn("could not be written", result.stderr)
        for flag in ("--json", "--html"):
            result = stress(self.server, "--concurrency", "1", "--requests", "1", *SHORT, flag, "/dev/full")
            self.assertEqual(result.returncode, 1, flag)
            self.assertIn("FAILED: cannot write /dev/full", result.stderr)

    def test_wrong_usage_and_nobody_there(self) -> None:
        for flags, words in (((), "no load"), (("--rate", "0"), "--rate must be above 0"),
                             (("--concurrency", "1", "--json", "/nonexistent/x"), "cannot write"),
                             (("--concurrency", "1", "--html", "/nonexistent/x"), "cannot write"),
                             (("--concurrency", "1", "--requests-out", "/nonexistent/x"), "cannot write"),
                             (("--concurrency", "1", "--metrics", "http://127.0.0.1:1/metrics"), "not HOST:PORT"),
                             (("--concurrency", "1", "--metrics", "127.0.0.1:1/metrics"), "not HOST:PORT"),
                             (("--nonsense",), "--nonsense")):
            result = stress(self.server, *flags)
            self.assertEqual(result.returncode, 2, result.stderr)
            self.assertIn(words, result.stderr)
        nobody = subprocess.run([command(self.server)[0], "--server", "127.0.0.1:1", "--rate", "1", "--wait", "0s"],
                                capture_output=True, text=True, timeout=60)
        self.assertEqual(nobody.returncode, 1)
        self.assertIn("UNAVAILABLE", nobody.stderr)
        no_metrics = stress(self.server, "--concurrency", "1", "--metrics", "127.0.0.1:1")
        self.assertEqual(no_metrics.returncode, 1)
        self.assertIn("--metrics", no_metrics.stderr)
        help_text = subprocess.run([command(self.server)[0], "--help"], capture_output=True, text=True, timeout=60)
        self.assertEqual(help_text.returncode, 0)
        self.assertIn("Examples:", help_text.stdout)


if __name__ == "__main__":
    bst_process.main()
