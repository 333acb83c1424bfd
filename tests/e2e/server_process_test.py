"""bst-server as a process: flags, ports, metrics, limits, credentials, signals."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import tempfile
import threading
import time
import unittest
from collections.abc import Iterator
from pathlib import Path

import bst_process
import grpc
from bst_process import ServerProcess, arguments, cli_json, run_cli, start_cli, write_ids

EXAMPLE_FLAGS = Path(__file__).resolve().parents[2] / "deploy/server.flags.example"
GREEDY = ("--temperature", "0", "--ignore-eos")
LONG = ("generate", "--prompt", "x", *GREEDY, "--max-new-tokens", "1000000", "--logit-bias", "65=100")


def run_server(*flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([arguments.server, *flags], capture_output=True, text=True, timeout=60)


class LimitsOfTheProcessTest(unittest.TestCase):
    def test_as_many_file_descriptors_as_it_may_have(self) -> None:
        with ServerProcess(prefix=("prlimit", "--nofile=100:4096")) as server:
            self.assertEqual(server.metric("process_max_fds"), 4096)

    def test_reflection_takes_few_threads(self) -> None:
        def threads() -> int:
            return len(os.listdir(f"/proc/{server.process.pid}/task"))

        with ServerProcess() as server, grpc.insecure_channel(server.grpc) as channel:
            before = threads()
            reflect = channel.stream_stream("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
                                            request_serializer=lambda x: x, response_deserializer=lambda x: x)
            done = threading.Event()

            def nothing() -> Iterator[bytes]:
                done.wait()
                yield from ()

            calls = [reflect(nothing()) for _ in range(200)]
            refused = 0
            deadline = time.monotonic() + 30
            while refused < 150 and time.monotonic() < deadline:
                time.sleep(0.05)
                refused = sum(call.done() and call.code() == grpc.StatusCode.RESOURCE_EXHAUSTED for call in calls)
            self.assertGreaterEqual(refused, 150)
            self.assertLess(threads() - before, 50)
            done.set()
            for call in calls:
                call.cancel()
            self.assertEqual(run_cli(server, "generate", "--prompt", "x", *GREEDY, "--max-new-tokens", "2").returncode, 0)
            server.process.send_signal(signal.SIGTERM)
            self.assertEqual(server.process.wait(30), 0)


class FlagsTest(unittest.TestCase):
    def test_version_and_help(self) -> None:
        version = run_server("--version")
        self.assertEqual(version.returncode, 0)
        self.assertRegex(version.stdout, r"^bst-server \d+\.\d+\.\d+\n$")
        help_result = run_server("--help")
        self.assertEqual(help_result.returncode, 0)
        help_text = help_result.stdout
        self.assertNotEqual(run_server("--nonsense", "--help").returncode, 0)
        self.assertIn("Flags from server/server_flags.cc", help_text)
        for flag in ("reserved_sequences", "long_prompt_tokens", "target_step_ms", "priority_ageing_seconds",
                     "upload_timeout_seconds", "write_timeout_seconds", "model", "listen", "metrics_listen", "control_listen", "backend", "weights", "kv", "threads",
                     "max_sequences", "max_step_tokens", "chunk_tokens", "max_queue", "max_queue_tokens",
                     "max_prompt_tokens", "max_message_bytes", "grace_seconds", "tls_cert", "tls_key", "tls_client_ca",
                     "auth_token_file", "log_format"):
            self.assertIn(f"--{flag} (", help_text)

    def test_all_mistakes_together(self) -> None:
        result = run_server("--backend=tpu", "--weights=int3", "--kv=f64", "--listen=x", "--log_format=xml")
        self.assertEqual(result.returncode, 2)
        for part in ("--model is required", "--backend is 'tpu', must be one of auto, cpu, cuda, reference",
                     "--weights is 'int3'", "--kv is 'f64'", "--listen: 'x'", "--log_format is 'xml'"):
            self.assertIn(part, result.stderr)
        self.assertNotEqual(run_server("--nonsense=1").returncode, 0)
        self.assertEqual(run_server(f"--model={arguments.model}", "stray").returncode, 2)

    def test_numbers_that_are_none(self) -> None:
        result = run_server("--model=x", "--target_step_ms=nan", "--priority_ageing_seconds=inf",
                            "--upload_timeout_seconds=nan", "--grace_seconds=nan", "--write_timeout_seconds=nan")
        self.assertEqual(result.returncode, 2)
        for flag in ("target_step_ms is nan", "priority_ageing_seconds is inf", "upload_timeout_seconds is nan",
                     "grace_seconds is", "write_timeout_seconds is"):
            self.assertIn(f"--{flag}", result.stderr)

    def test_a_checkpoint_that_is_not_there(self) -> None:
        result = run_server("--model=/nonexistent", "--listen=127.0.0.1:0", "--metrics_listen=127.0.0.1:0")
        self.assertEqual(result.returncode, 1)
        self.assertIn("/nonexistent", result.stderr)

    def test_folders_instead_of_tls_files(self) -> None:
        result = run_server(f"--model={arguments.model}", "--listen=127.0.0.1:0", "--metrics_listen=", "--tls_cert=/",
                            "--tls_key=/")
        self.assertEqual(result.returncode, 1)
        self.assertIn("cannot read /: not a regular file", result.stderr)

    def test_flagfile_and_json_log(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            flagfile = Path(folder, "flags")
            flagfile.write_text("--log_format=json\n--max_prompt_tokens=11\n")
            with ServerProcess(f"--flagfile={flagfile}") as server:
                self.assertEqual(cli_json(server, "info")["limits"]["max_prompt_tokens"], 11)
                cli_json(server, "generate", "--prompt", "x", *GREEDY, "--max-new-tokens", "3", "--request-id", "logged")
                self.assertEqual(server.terminate(), 0)
            events = [json.loads(line) for line in server.lines if line.startswith("{")]
            request = next(event for event in events if event.get("id") == "logged")
            self.assertEqual((request["id"], request["prompt_tokens"], request["generated_tokens"], request["outcome"]),
                             ("logged", 2, 3, "MAX_TOKENS"))
            self.assertIn("config", [event["event"] for event in events])

    def test_the_example_flag_file_has_every_flag(self) -> None:
        lines = EXAMPLE_FLAGS.read_text().splitlines()
        example = {match[1] for line in lines if (match := re.match(r"#?--(\w+)=", line))}
        flags = set(re.findall(r"^ +--(\w+) \(", run_server("--help").stdout, re.MULTILINE))
        self.assertEqual(example, flags)
        entries = re.findall(r"^ +--(\w+) \((.*?)\);\s+default:\s+(.*?);$", run_server("--help").stdout,
                             re.MULTILINE | re.DOTALL)
        texts = {name: " ".join(text.split()) for name, text, _ in entries}
        defaults = {name: default for name, _, default in entries}
        for name, value in re.findall(r"^#--(\w+)=(.*)$", EXAMPLE_FLAGS.read_text(), re.MULTILINE):
            if not re.match("tls|auth", name):
                self.assertEqual(value, defaults[name].strip('"'), name)
        # What can be chosen is said in the same words.
        comments = {match[2]: " ".join(match[1].replace("#", " ").split()) for match in
                    re.finditer(r"((?:^# .*\n)+)#?--(\w+)=", EXAMPLE_FLAGS.read_text(), re.MULTILINE)}
        mistakes = run_server("--backend=x", "--weights=x", "--kv=x", "--log_format=x").stderr
        choices = dict(re.findall(r"--(\w+) is 'x', must be one of ([\w, ]+)", mistakes))
        self.assertEqual(len(choices), 4, mistakes)
        for name, words in choices.items():
            self.assertEqual(comments[name], texts[name])
            for word in words.split(", "):
                self.assertRegex(texts[name], rf"\b{word}\b", name)
        # All flags at the values it shows; only files and fixed ports are left out.
        shown = [line.lstrip("#") for line in lines if re.match(r"#?--(?!tls|auth|model|listen|metrics|control)", line)]
        with tempfile.TemporaryDirectory() as folder:
            flagfile = Path(folder, "flags")
            flagfile.write_text("\n".join(shown))
            with ServerProcess(f"--flagfile={flagfile}") as server:
                self.assertEqual(run_cli(server, "health").returncode, 0)

    def test_no_prompt_and_no_output_in_the_log(self) -> None:
        with ServerProcess() as server:
            cli_json(server, "generate", "--prompt", "confidential", "--max-new-tokens", "8", "--logit-bias", "65=100",
                     "--temperature", "0")
            run_cli(server, "generate", "--prompt", "confidential", "--stop", "confidential", "--top-p", "7")
            server.terminate()
            text = "\n".join(server.lines)
            self.assertNotIn("confidential", text)
            self.assertNotIn("AAAA", text)
            self.assertEqual(sum(" request " in line for line in server.lines), 2)

    def test_ready_line(self) -> None:
        with ServerProcess("--control_listen=127.0.0.1:0") as server:
            self.assertRegex(server.ready_line,
                             r"^ready grpc=127\.0\.0\.1:\d+ metrics=127\.0\.0\.1:\d+ control=127\.0\.0\.1:\d+ "
                             r"model=\S+ backend=(cpu|reference)$")
            self.assertEqual(run_cli(None, "health", "--server", server.addresses["control"]).stdout, "SERVING\n")
            taken = run_server(f"--model={arguments.model}", f"--listen={server.grpc}", "--metrics_listen=127.0.0.1:0")
            self.assertEqual(taken.returncode, 1)
            self.assertIn(server.grpc, taken.stderr)


class LimitsTest(unittest.TestCase):
    def test_prompt_limit(self) -> None:
        with ServerProcess("--max_prompt_tokens=10") as server:
            self.assertEqual(cli_json(server, "generate", "--prompt", "123456789", *GREEDY,
                                      "--max-new-tokens", "2")["usage"]["prompt_tokens"], 10)
            result = run_cli(server, "generate", "--prompt", "1234567890")
            self.assertEqual(result.returncode, 1)
            self.assertIn("INVALID_ARGUMENT: text has 11 tokens, limit 10", result.stderr)
            self.assertEqual(server.metric('bst_requests_rejected_total{reason="too_long"}'), 1)

    def test_message_limit(self) -> None:
        with ServerProcess("--max_message_bytes=2000") as server, tempfile.TemporaryDirectory() as folder:
            ids = write_ids(Path(folder, "ids"), [200] * 3000)
            scored = run_cli(server, "score", "--ids-file", ids)
            self.assertEqual(scored.returncode, 1)
            self.assertRegex(scored.stderr, r"RESOURCE_EXHAUSTED: the request has 60\d\d bytes, the server's message "
                                            r"limit is 2000\n")
            self.assertIn("larger than the server's message limit", scored.stderr)
            # generate sends it in parts.
            options = ("generate", "--ids-file", ids, *GREEDY, "--max-new-tokens", "4")
            uploaded = cli_json(server, *options)
            self.assertEqual(uploaded["usage"]["prompt_tokens"], 3000)
        with ServerProcess() as server, tempfile.TemporaryDirectory() as folder:
            ids = write_ids(Path(folder, "ids"), [200] * 3000)
            whole = cli_json(server, "generate", "--ids-file", ids, *GREEDY, "--max-new-tokens", "4")
            self.assertEqual(uploaded["token_ids"], whole["token_ids"])

    def test_full_queue(self) -> None:
        with ServerProcess("--max_sequences=1", "--max_queue=1") as server:
            running = start_cli(server, *LONG)
            self.assertEqual(running.stdout.read(1), "A")
            waiting = start_cli(server, "generate", "--prompt", "y", *GREEDY, "--max-new-tokens", "2")
            deadline = time.monotonic() + 60
            while server.metric("bst_requests_waiting") != 1 and time.monotonic() < deadline:
                time.sleep(0.05)
            refused = run_cli(server, "generate", "--prompt", "z")
            self.assertEqual(refused.returncode, 1)
            self.assertIn("RESOURCE_EXHAUSTED", refused.stderr)
            self.assertIn("Try again in 1 s.", refused.stderr)
            self.assertEqual(server.metric('bst_requests_rejected_total{reason="queue_requests"}'), 1)
            late = run_cli(server, "health")  # the port still answers
            self.assertEqual(late.returncode, 0)
            running.send_signal(signal.SIGINT)
            running.communicate(timeout=30)
            waiting.communicate(timeout=60)
            self.assertEqual(waiting.returncode, 0)

    def test_queue_timeout(self) -> None:
        with ServerProcess("--max_sequences=1") as server:
            running = start_cli(server, *LONG)
            self.assertEqual(running.stdout.read(1), "A")
            result = run_cli(server, "generate", "--prompt", "y", "--queue-timeout-ms", "200")
            self.assertEqual(result.returncode, 1)
            self.assertIn("DEADLINE_EXCEEDED", result.stderr)
            running.send_signal(signal.SIGINT)
            running.communicate(timeout=30)
            self.assertEqual(server.metric('bst_requests_cancelled_total{cause="deadline",stage="queued"}'), 1)


class CredentialsTest(unittest.TestCase):
    def test_keys(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            keys, mine, other = Path(folder, "keys"), Path(folder, "mine"), Path(folder, "other")
            keys.write_text("alpha\nbeta\n")
            mine.write_text("beta\n")
            other.write_text("gamma\n")
            with ServerProcess(f"--auth_token_file={keys}") as server:
                self.assertIn("UNAUTHENTICATED", run_cli(server, "info").stderr)
                self.assertIn("PERMISSION_DENIED", run_cli(server, "info", "--token-file", str(other)).stderr)
                self.assertEqual(run_cli(server, "info", "--token-file", str(mine)).returncode, 0)
                self.assertEqual(run_cli(server, "health").returncode, 0)

    def test_tls(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            key, cert = f"{folder}/key.pem", f"{folder}/cert.pem"
            subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
                            "-keyout", key, "-out", cert, "-days", "1", "-subj", "/CN=localhost",
                            "-addext", "subjectAltName=DNS:localhost"], check=True, capture_output=True)
            with ServerProcess(f"--tls_cert={cert}", f"--tls_key={key}") as server:
                trusted = run_cli(server, "health", "--tls-ca", cert, "--tls-server-name", "localhost")
                self.assertEqual(trusted.returncode, 0, trusted.stderr)
                self.assertEqual(run_cli(server, "health").returncode, 1)


class MetricsTest(unittest.TestCase):
    def test_scrape(self) -> None:
        with ServerProcess() as server:
            before = server.metric("bst_prompt_tokens_total")
            cli_json(server, "generate", "--prompt", "hello", *GREEDY, "--max-new-tokens", "7")
            cli_json(server, "score", "--prompt", "hello")
            self.assertEqual(before, 0)  # the warm-up does not count
            self.assertEqual(server.metric("bst_prompt_tokens_total"), 12)
            self.assertEqual(server.metric("bst_generation_tokens_total"), 7)
            self.assertEqual(server.metric("bst_time_to_first_token_seconds_count"), 1)
            self.assertEqual(server.metric("bst_inter_token_latency_seconds_count"), 6)
            self.assertEqual(
                server.metric('bst_requests_total{code="OK",finish_reason="MAX_TOKENS",rpc="Generate"}'), 1)
            self.assertEqual(server.metric('bst_requests_total{code="OK",finish_reason="MAX_TOKENS",rpc="Score"}'), 1)
            self.assertEqual(server.metric('bst_state_slots{state="used",tier="device"}'), 0)
            self.assertGreater(server.metric('bst_state_slots{state="free",tier="device"}'), 0)
            self.assertGreater(server.metric("bst_last_step_timestamp_seconds"), time.time() - 600)
            self.assertGreater(server.metric("process_resident_memory_bytes"), 1e6)
            self.assertGreater(server.metric("process_start_time_seconds"), time.time() - 600)

    def test_promtool_finds_nothing_to_complain_about(self) -> None:
        if not arguments.promtool:
            self.fail("--promtool is missing; Debian has it in the package prometheus")
        with ServerProcess() as server:
            cli_json(server, "generate", "--prompt", "hello", *GREEDY, "--max-new-tokens", "3")
            result = subprocess.run([arguments.promtool, "check", "metrics"], input=server.metrics_text(),
                                    capture_output=True, text=True)
            self.assertEqual((result.returncode, result.stderr + result.stdout), (0, ""))


class SignalTest(unittest.TestCase):
    def test_an_idle_server_ends_at_once(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            with ServerProcess("--grace_seconds=600") as server:
                server.process.send_signal(number)
                self.assertEqual(server.process.wait(30), 0)

    def test_a_signal_while_the_model_loads(self) -> None:
        server = ServerProcess()
        self.addCleanup(server.__exit__)
        deadline = time.monotonic() + 60
        while not any(" config " in line for line in server.lines) and time.monotonic() < deadline:
            time.sleep(0.001)
        self.assertEqual(server.terminate(30), 0)

    def test_running_streams_finish(self) -> None:
        with ServerProcess("--grace_seconds=600") as server:
            running = start_cli(server, "generate", "--prompt", "x", *GREEDY, "--max-new-tokens", "2000",
                                "--logit-bias", "65=100", "--json")
            deadline = time.monotonic() + 60
            while server.metric("bst_requests_running") != 1 and running.poll() is None and time.monotonic() < deadline:
                time.sleep(0.01)
            self.assertEqual(server.terminate(300), 0)
            stdout, stderr = running.communicate(timeout=60)
            self.assertEqual(running.returncode, 0, stderr)
            self.assertEqual(len(json.loads(stdout)["token_ids"]), 2000)

    def test_the_grace_period_ends(self) -> None:
        with ServerProcess("--grace_seconds=0.3") as server:
            running = start_cli(server, *LONG)
            self.assertEqual(running.stdout.read(1), "A")
            self.assertEqual(server.terminate(30), 0)
            _, stderr = running.communicate(timeout=30)
            self.assertEqual(running.returncode, 1)
            self.assertIn("UNAVAILABLE", stderr)

    def end_by_two_signals(self, server: ServerProcess, pid: int, first: int, second: int) -> None:
        running = start_cli(server, *LONG)
        self.assertEqual(running.stdout.read(1), "A")
        os.kill(pid, first)
        deadline = time.monotonic() + 60
        while not any(" drain " in line for line in server.lines) and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(pid, second)
        self.assertEqual(server.process.wait(30), 128 + second)
        running.communicate(timeout=30)
        self.assertEqual(running.returncode, 1)

    def test_a_second_signal_ends_it(self) -> None:
        for first, second in ((signal.SIGTERM, signal.SIGTERM), (signal.SIGTERM, signal.SIGINT)):
            with self.subTest(first=first, second=second), ServerProcess("--grace_seconds=600") as server:
                self.end_by_two_signals(server, server.process.pid, first, second)

    def test_a_second_signal_ends_the_first_process_of_a_container(self) -> None:
        container = ("unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child")
        probe = subprocess.run([*container, "true"], capture_output=True, text=True)
        if probe.returncode != 0:
            self.skipTest(f"no namespaces here: {probe.stderr.strip()}")
        with ServerProcess("--grace_seconds=600", prefix=container) as server:
            unshare = server.process.pid
            pid = int(Path(f"/proc/{unshare}/task/{unshare}/children").read_text())
            self.end_by_two_signals(server, pid, signal.SIGTERM, signal.SIGTERM)


if __name__ == "__main__":
    bst_process.main()
