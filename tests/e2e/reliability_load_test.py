"""Twice as much as the server can do, and a long time of everything at once. The load comes from bst-stress.

    --seconds N   how long each load goes on: 20 in CI; the long forms are
                  overload: --seconds 300 OverloadTest        soak: --seconds 1800 SoakTest

What a queue limit promises: a request that was accepted gets its first token within

    (max_queue + max_sequences) / (0.9 x capacity)  +  its own prefill beside full slots

where capacity is the rate of completed requests with all slots full, measured right before (1x), and 0.9 is what
the rate may lose to the work of refusing. max_sequences is there because requests of one length that start together
end together: who comes when all slots have just been filled waits for these before the queue moves. Set --max_queue
to the wait you accept times the rate you measured, less the slots.
"""

from __future__ import annotations

import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import unittest
from pathlib import Path
from typing import Any

import grpc

import bst_process
from bst_process import ServerProcess, arguments
from raw_calls import Api, Http2, finish, message

SLOTS, QUEUE = 8, 24
# On a small machine the load generator gets a core of its own, or it would be measured instead.
THREADS = max(1, (os.cpu_count() or 2) - 1)
REQUESTS = ("--prompt-tokens", "32-128", "--max-new-tokens", "32", "--ignore-eos", "--connections", "4")


def machine() -> str:
    model = next((line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
                  if line.startswith("model name")), platform.machine())
    return f"{model}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"


def summary(title: str, rows: list[tuple[str, str]]) -> None:
    """One block that can be pasted."""
    print(f"\n--- {title} ---\ncommand  {' '.join(sys.argv)}\nmachine  {machine()}")
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:<{width}}  {value}")
    print(f"--- {title} ---", flush=True)


class LoadTest(unittest.TestCase):
    def start(self, *flags: str) -> None:
        self.server = self.enterContext(ServerProcess(
            f"--max_sequences={SLOTS}", f"--max_queue={QUEUE}", f"--threads={THREADS}", "--control_listen=127.0.0.1:0",
            *flags))
        self.api = self.enterContext(Api(self.server.grpc))
        self.control = self.enterContext(Api(self.server.addresses["control"]))
        self.folder = Path(self.enterContext(tempfile.TemporaryDirectory()))

    def stress(self, *flags: str) -> dict[str, Any]:
        """The report of a run that held what it was told to hold."""
        report = self.folder / "report.json"
        result = subprocess.run(
            [arguments.stress, "--server", self.server.grpc, "--metrics", self.server.addresses["metrics"],
             "--json", str(report), *REQUESTS, *flags], capture_output=True, text=True)
        self.assertEqual(result.returncode, 0, result.stdout + result.stderr)
        return json.loads(report.read_text())

    def wait_until_idle(self) -> None:
        deadline = time.monotonic() + 60
        while (load := self.control.load()).running + load.waiting + load.slots_used > 0:
            self.assertLess(time.monotonic(), deadline, load)
            time.sleep(0.05)
        self.assertEqual(self.server.metric('bst_state_slots{state="used",tier="device"}'), 0)
        self.assertEqual(self.server.metric('bst_state_slots{state="free",tier="device"}'), SLOTS)


class OverloadTest(LoadTest):
    """The long form holds rates of the wall clock against each other. In the short one, on a machine that may be doing
    something else at any moment, goodput counts per processor second of the server, the load is three times what was
    measured, a machine that halves its speed keeps the promise, and there are three attempts."""

    def test_twice_the_capacity(self) -> None:
        self.start()
        self.short = arguments.seconds < 120
        attempts = 3 if self.short else 1
        for attempt in range(attempts):
            complaints = self.overload(arguments.seconds)
            if not complaints:
                return
            print("\n".join(complaints), flush=True)
        self.fail(f"{attempts} attempts failed; the last: " + "; ".join(complaints))

    def rate_of(self, report: dict[str, Any]) -> float:
        """Completed requests per second, or per processor second of the server."""
        if not self.short:
            return report["request_throughput"]
        return report["completed"] / report["server_metrics"]["counters"]["process_cpu_seconds_total"]

    def overload(self, seconds: float) -> list[str]:
        """What did not hold."""
        def full_slots(streams: int) -> dict[str, Any]:
            return self.stress("--concurrency", str(streams), "--duration", f"{max(2.5, seconds / 5)}s")

        before = full_slots(2 * SLOTS)
        prefill = full_slots(SLOTS)["p99_ttft_ms"] / 1000  # of a request that need not wait for a slot
        twice = self.stress("--rate", str((3 if self.short else 2) * before["request_throughput"]), "--duration", f"{seconds}s",
                            "--expect", "OK,RESOURCE_EXHAUSTED")
        self.wait_until_idle()
        after = full_slots(2 * SLOTS)

        throughputs = [report["request_throughput"] for report in (before, after, twice)]
        slowest = 0.5 * min(throughputs) if self.short else 0.9 * min(throughputs[:2])
        promise = (QUEUE + SLOTS) / slowest + prefill
        first_token = twice["p99_ttft_ms"] / 1000
        kept = self.rate_of(twice) / min(self.rate_of(before), self.rate_of(after))
        codes, refusals = twice["status_codes"], twice["refusals"]
        summary("overload", [
            ("load", f"prompts of 32-128 tokens, 32 new ones; {SLOTS} slots, queue of {QUEUE}, {seconds:g} s"),
            ("capacity at 1x", f"{throughputs[0]:.1f} requests/s before, {throughputs[1]:.1f} after"),
            ("goodput beyond it", f"{throughputs[2]:.1f} requests/s, {100 * kept:.1f} % of the capacity"
                              f"{' per processor second' if self.short else ''} (at least 90)"),
            ("p99 time to first token", f"{first_token * 1000:.0f} ms of those accepted"
                                        f" (promise: {promise * 1000:.0f} ms)"),
            ("status codes", ", ".join(f"{name} {count}" for name, count in codes.items())),
            ("longest lag of the load generator", f"{twice['client']['send_lag_max_ms']:.0f} ms")])
        # Of these nothing depends on what else the machine does.
        self.assertEqual(refusals["with_retry_info"], refusals["count"])
        self.assertEqual(refusals["with_pushback"], refusals["count"])
        self.assertEqual(refusals["count"], codes.get("RESOURCE_EXHAUSTED", 0))
        complaints = []
        if kept < 0.9:
            complaints.append(f"goodput is {100 * kept:.1f} % of the capacity")
        if first_token > promise:
            complaints.append(f"p99 time to first token {first_token:.3f} s is more than {promise:.3f} s")
        if refusals["count"] < 0.3 * sum(codes.values()):
            complaints.append(f"{refusals['count']} refusals of {sum(codes.values())}: no overload")
        return complaints


class SoakTest(LoadTest):
    """Load with cancellations, deadlines and slow readers; beside it every other RPC and broken connections."""

    def others(self, stop: threading.Event) -> None:
        own = random.Random(7)
        broken = Http2.opening() + Http2.generate_bytes(message("GenerateRequest", {"text": "broken"}))
        while not stop.wait(0.05):
            text = "".join(own.choice("abcdefgh ") for _ in range(own.randrange(1, 500)))
            try:
                match own.randrange(6):
                    case 0:
                        finish(self.api.score(text=text, top_logprobs=own.randrange(21)))
                    case 1:
                        self.api.call("Generation/GenerateOnce",
                                      {"text": text, "stopping": {"max_new_tokens": 5, "stop_strings": ["a"]}})
                    case 2:
                        tokens = self.api.call("Generation/Tokenize", {"text": text}).token_ids
                        self.api.call("Generation/Detokenize", {"token_ids": tokens})
                    case 3:
                        with Http2(self.server.grpc) as client:
                            client.send(broken[:own.randrange(len(broken))])
                    case 4:
                        finish(self.api.generate(text=text, sampling={"top_p": 9.0}))
                    case 5:
                        call = self.api.generate(text=text, stopping={"max_new_tokens": 500}, request_id="aborted")
                        next(call)
                        self.control.abort("aborted")
                        finish(call)
            except grpc.RpcError as error:
                if error.code().name not in ("RESOURCE_EXHAUSTED", "NOT_FOUND", "ALREADY_EXISTS"):
                    self.failures.append(str(error))

    def settled(self) -> tuple[float, float]:
        """Resident bytes and open files without load."""
        self.wait_until_idle()
        time.sleep(1)
        return (statistics.median(self.server.resident_bytes for _ in range(9)), self.server.open_files)

    def test_nothing_is_lost(self) -> None:
        self.start()
        self.failures: list[str] = []
        seconds = arguments.seconds
        capacity = self.stress("--concurrency", str(SLOTS), "--duration", "3s")["request_throughput"]
        stop = threading.Event()
        beside = threading.Thread(target=self.others, args=(stop,))
        beside.start()
        self.addCleanup(stop.set)

        def load(duration: float) -> dict[str, Any]:
            return self.stress(
                "--rate", f"{0.7 * capacity:.2f}", "--duration", f"{duration}s", "--cancel-rate", "0.1", "--deadline", "1s",
                "--deadline-rate", "0.1", "--slow-reader", "0.1", "--slow-reader-delay", "20ms", "--probe-rate", "1",
                "--expect", "OK,CANCELLED,DEADLINE_EXCEEDED,RESOURCE_EXHAUSTED")

        # What is allocated once, by each of the threads too: also by those that answer Prometheus.
        load(max(8, min(120, seconds / 4)))
        for _ in range(200):
            self.server.metrics_text()
        warm, warm_files = self.settled()
        report = load(seconds)
        stop.set()
        beside.join()
        end, end_files = self.settled()
        requests = sum(report["status_codes"].values())
        summary("soak", [
            ("load", f"{0.7 * capacity:.1f} requests/s (70 % of the capacity) for {seconds:g} s: 10 % cancelled, 10 % with a"
                     " deadline, 10 % read slowly; beside them Score, GenerateOnce, Tokenize, Abort, broken connections"),
            ("requests", f"{requests}: " + ", ".join(f"{name} {n}" for name, n in report["status_codes"].items())),
            ("resident memory", f"{warm / 1e6:.1f} MB after the warm-up, {end / 1e6:.1f} MB at the end,"
                                f" {100 * (end / warm - 1):+.2f} % (at most 2)"),
            ("open files", f"{warm_files:.0f}, then {end_files:.0f}"),
            ("slots", f"all {SLOTS} free"),
            ("p99 time to first token", f"{report['p99_ttft_ms']:.0f} ms"),
            ("one-token probes", f"p99 {report['probes']['p99_e2el_ms']:.0f} ms")])
        self.assertEqual(self.failures, [])
        self.assertLessEqual(end, 1.02 * warm)
        self.assertLessEqual(end_files, warm_files + 2)
        self.assertEqual(self.control.load().queue_tokens, 0)
        self.assertEqual(self.server.terminate(), 0)


if __name__ == "__main__":
    bst_process.main()
