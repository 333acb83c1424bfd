"""The Python client against bst-server: calls, concurrency, cancellation, refusals, credentials."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
import time
import unittest
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import bst_client
from bst_client import (Accepted, AsyncClient, Client, Finished, FinishReason, HealthStatus, PrefillProgress,
                        RetryPolicy, Tls, Tokens)

import bst_process
from bst_process import ServerProcess, arguments, cli_json

GREEDY: bst_client.GenerateOptions = {"temperature": 0, "ignore_eos": True}
# Writes A for ever, and so stays until it is cancelled.
ENDLESS: bst_client.GenerateOptions = {**GREEDY, "logit_bias": {65: 100}, "max_new_tokens": 1_000_000}


def first_token(events: Any) -> Tokens:
    return next(event for event in events if isinstance(event, Tokens))


def wait_for(server: ServerProcess, metric: str, value: float) -> None:
    deadline = time.monotonic() + 60
    while server.metric(metric) != value:
        if time.monotonic() > deadline:
            raise AssertionError(f"{metric} is {server.metric(metric)}, not {value}")
        time.sleep(0.02)


class CallsTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls) -> None:
        cls.server = cls.enterClassContext(ServerProcess())
        cls.client = cls.enterClassContext(Client(cls.server.grpc, timeout=120))
        cls.prompt = json.loads((arguments.model / "tokens.json").read_text())
        cls.greedy = json.loads((arguments.model / "expected_greedy.json").read_text())["tokens"]

    def test_generate_is_the_golden_continuation(self) -> None:
        result = self.client.generate(self.prompt, **GREEDY, max_new_tokens=len(self.greedy))
        self.assertEqual(list(result.token_ids), self.greedy)
        self.assertEqual(result.finish_reason, FinishReason.MAX_TOKENS)
        self.assertEqual((result.usage.prompt_tokens, result.usage.generated_tokens),
                         (len(self.prompt), len(self.greedy)))
        self.assertGreater(result.timings.time_to_first_token_seconds, 0)
        self.assertEqual(result.logprobs, ())

    def test_stream(self) -> None:
        ids = [i % 256 for i in range(5000)]
        with self.client.stream(ids, **GREEDY, max_new_tokens=20, request_id="streamed", seed=3) as stream:
            events = list(stream)
        self.assertEqual(events[0], Accepted("streamed", 3, 5000, 0, 0))
        self.assertIsInstance(events[-1], Finished)
        progress = [event for event in events if isinstance(event, PrefillProgress)]
        tokens = [event for event in events if isinstance(event, Tokens)]
        self.assertEqual(len(events), 2 + len(progress) + len(tokens))
        self.assertEqual(progress[-1], PrefillProgress(5000, 5000))
        whole = self.client.generate(ids, **GREEDY, max_new_tokens=20)
        self.assertEqual([i for event in tokens for i in event.token_ids], list(whole.token_ids))
        self.assertEqual("".join(event.text for event in tokens), whole.text)
        silent = self.client.stream(ids, **GREEDY, max_new_tokens=1, prompt_progress=False)
        self.assertFalse(any(isinstance(event, PrefillProgress) for event in silent))

    def test_options_reach_the_server(self) -> None:
        def generate(**options: Any) -> bst_client.GenerateResult:
            return self.client.generate("seed", **{"ignore_eos": True, "max_new_tokens": 24, **options})

        self.assertEqual(generate(seed=2**64 - 1).token_ids, generate(seed=2**64 - 1).token_ids)
        self.assertNotEqual(generate(seed=1).token_ids, generate(seed=2).token_ids)
        drawn = generate()
        self.assertEqual(generate(seed=drawn.seed).token_ids, drawn.token_ids)
        forced = generate(temperature=0, logit_bias={65: 100}, max_new_tokens=9, stop_strings=["AAA"])
        self.assertEqual((forced.text, forced.finish_reason, forced.stop_string), ("", FinishReason.STOP_STRING, "AAA"))
        token = generate(temperature=0, logit_bias={65: 100}, stop_token_ids=[65])
        self.assertEqual((token.finish_reason, token.stop_token_id), (FinishReason.STOP_TOKEN, 65))
        detailed = generate(temperature=0, top_logprobs=3, echo=True)
        self.assertEqual(detailed.prompt_text, "seed")
        for token_id, entry in zip(detailed.token_ids, detailed.logprobs, strict=True):
            self.assertEqual((len(entry.top), entry.top[0].token_id, entry.top[0].logprob),
                             (3, token_id, entry.logprob))
        limited = self.client.generate("x", **{**ENDLESS, "time_limit_ms": 200})
        self.assertEqual(limited.finish_reason, FinishReason.TIME_LIMIT)

    def test_score_is_the_command_lines(self) -> None:
        result = self.client.score("hello world", top_logprobs=2)
        expected = cli_json(self.server, "score", "--prompt", "hello world")
        self.assertEqual(list(result.token_ids), expected["token_ids"])
        self.assertIsNone(result.logprobs[0])
        for mine, other in zip(result.logprobs[1:], expected["logprobs"][1:], strict=True):
            self.assertAlmostEqual(mine, other, delta=1e-6)
        self.assertAlmostEqual(result.perplexity, expected["perplexity"], delta=1e-6 * expected["perplexity"])
        self.assertEqual([len(top) for top in result.top], [0] + [2] * 11)
        one = self.client.score([97])
        self.assertEqual((one.token_ids, one.logprobs, one.mean_nll, one.top), ((97,), (None,), None, ()))

    def test_small_calls(self) -> None:
        self.assertEqual(self.client.tokenize("aé"), (97, 0xC3, 0xA9))
        self.assertEqual(self.client.tokenize("a", add_bos=True), (256, 97))
        self.assertEqual(self.client.detokenize([256, 97, 0xC3, 0xA9]), "aé")
        info, expected = self.client.model_info(), cli_json(self.server, "info")
        self.assertEqual(info.name, expected["model"])
        for name in ("vocab_size", "window", "state_bytes_per_sequence"):
            self.assertEqual(getattr(info, name), expected[name], name)
        self.assertEqual(info.limits.max_prompt_tokens, expected["limits"]["max_prompt_tokens"])
        self.assertEqual(len(info.layers), len(expected["layers"]))
        self.assertEqual((info.bos_token_id, json.loads(info.config_json)["window"]), (256, info.window))
        self.assertEqual(self.client.generate("x", max_new_tokens=1, **info.default_sampling).usage.generated_tokens, 1)
        self.assertEqual(self.client.health(), HealthStatus.SERVING)
        self.assertEqual(self.client.health("bst.v1.Generation"), HealthStatus.SERVING)
        with self.assertRaises(bst_client.NotFoundError):
            self.client.health("nobody")

    def test_async_client(self) -> None:
        async def run() -> None:
            async with AsyncClient(self.server.grpc, timeout=120) as client:
                result = await client.generate(self.prompt, **GREEDY, max_new_tokens=30)
                self.assertEqual(list(result.token_ids), self.greedy[:30])
                events = [event async for event in client.stream("hi", **GREEDY, max_new_tokens=5)]
                self.assertEqual((type(events[0]), type(events[-1])), (Accepted, Finished))
                self.assertEqual((await client.score("hello")).logprobs, self.client.score("hello").logprobs)
                self.assertEqual(await client.detokenize(await client.tokenize("aé")), "aé")
                self.assertEqual(await client.model_info(), self.client.model_info())
                self.assertEqual(await client.health(), HealthStatus.SERVING)
                with self.assertRaises(bst_client.InvalidArgumentError) as caught:
                    await client.generate("x", temperature=-1)
                self.assertEqual(caught.exception.violations[0].field, "sampling.temperature")

        asyncio.run(run())

    def test_concurrent_streams_are_as_alone(self) -> None:
        requests = [{"prompt": [i % 256 for i in range(1, 40 * k + 2)], "seed": k, "max_new_tokens": 10 + k}
                    for k in range(16)]
        alone = [self.client.generate(**request).token_ids for request in requests]
        with ThreadPoolExecutor(16) as pool:
            threads = list(pool.map(lambda request: self.client.generate(**request).token_ids, requests))

        async def run() -> list[tuple[int, ...]]:
            async with AsyncClient(self.server.grpc) as client:
                results = await asyncio.gather(*(client.generate(**request) for request in requests))
                return [result.token_ids for result in results]

        self.assertEqual(threads, alone)
        self.assertEqual(asyncio.run(run()), alone)

    def test_invalid_arguments_name_every_field(self) -> None:
        with self.assertRaises(bst_client.InvalidArgumentError) as caught:
            self.client.generate("x", top_p=7, max_new_tokens=0)
        violations = {violation.field: violation.description for violation in caught.exception.violations}
        self.assertEqual(violations.keys(), {"sampling.top_p", "stopping.max_new_tokens"})
        self.assertIn("is 7, must be in (0, 1]", violations["sampling.top_p"])
        for prompt, field in (("", "text"), ([], "token_ids"), ([1, 100_000], "token_ids.ids[1]")):
            with self.assertRaises(bst_client.InvalidArgumentError) as caught:
                self.client.score(prompt)
            self.assertIn(field, caught.exception.violations[0].field + " " + caught.exception.message)

    def test_deadline(self) -> None:
        with self.assertRaises(bst_client.DeadlineExceededError):
            self.client.generate("x", **ENDLESS, timeout=0.3)

    def test_example_program(self) -> None:
        def run(*flags: str) -> subprocess.CompletedProcess[str]:
            done = subprocess.run([sys.executable, "-m", "bst_client", *flags], capture_output=True)
            return subprocess.CompletedProcess(flags, done.returncode, done.stdout.decode(), done.stderr.decode())

        program = run("x", "--server", self.server.grpc, "--max-new-tokens", "30", "--seed", "5", "--temperature", "1.5")
        expected = self.client.generate("x", max_new_tokens=30, seed=5, temperature=1.5)
        self.assertEqual((program.returncode, program.stdout), (0, expected.text), program.stderr)
        self.assertRegex(program.stderr, r"\[\d+ tokens \(prompt 2\), first after .* s, .* tokens/s, [A-Z_]+\]\n$")
        wrong = run("x", "--server", self.server.grpc, "--top-p", "7")
        self.assertEqual((wrong.returncode, wrong.stdout), (1, ""))
        self.assertIn("INVALID_ARGUMENT: sampling.top_p is 7", wrong.stderr)
        self.assertEqual(run("x", "--token-file", "/nonexistent").returncode, 2)
        self.assertIn("--max-new-tokens", run("--help").stdout)


class CancellationTest(unittest.TestCase):
    """With one slot: what comes after starts only if it is free again."""

    def setUp(self) -> None:
        self.server = self.enterContext(ServerProcess("--max_sequences=1"))
        self.client = self.enterContext(Client(self.server.grpc, timeout=60))

    def assert_slot_is_free(self, cancelled: int) -> None:
        self.assertEqual(self.client.generate("y", **GREEDY, max_new_tokens=3).usage.generated_tokens, 3)
        wait_for(self.server, 'bst_requests_cancelled_total{cause="client",stage="decode"}', cancelled)

    def test_closed_and_dropped_iterators(self) -> None:
        with self.client.stream("x", **ENDLESS) as events:
            self.assertEqual(first_token(events).text[:1], "A")
        self.assert_slot_is_free(1)
        for event in self.client.stream("x", **ENDLESS):
            if isinstance(event, Tokens):
                break
        self.assert_slot_is_free(2)

    def test_cancelled_task(self) -> None:
        async def run() -> None:
            async with AsyncClient(self.server.grpc) as client:
                task = asyncio.ensure_future(client.generate("x", **ENDLESS))
                await asyncio.to_thread(wait_for, self.server, "bst_time_to_first_token_seconds_count", 1)
                task.cancel()
                with self.assertRaises(asyncio.CancelledError):
                    await task
                async with client.stream("x", **ENDLESS) as events:
                    async for event in events:
                        if isinstance(event, Tokens):
                            break

        asyncio.run(run())
        self.assert_slot_is_free(2)


class RefusalsTest(unittest.TestCase):
    def test_full_queue_duplicate_and_retry(self) -> None:
        with ServerProcess("--max_sequences=1", "--max_queue=1") as server, Client(server.grpc, timeout=120) as client, \
                ThreadPoolExecutor(2) as pool:
            running = client.stream("x", **ENDLESS, request_id="running")
            first_token(running)
            with self.assertRaises(bst_client.AlreadyExistsError):
                client.generate("z", request_id="running")
            with self.assertRaises(bst_client.DeadlineExceededError):
                client.generate("z", queue_timeout_ms=100)
            waiting = pool.submit(client.generate, "y", **GREEDY, max_new_tokens=2)
            wait_for(server, "bst_requests_waiting", 1)
            with self.assertRaises(bst_client.ResourceExhaustedError) as caught:
                client.generate("z")
            self.assertNotIsInstance(caught.exception, bst_client.MessageTooLargeError)
            self.assertEqual((caught.exception.retry_delay, caught.exception.pushback_ms), (1.0, 1000))
            with Client(server.grpc, timeout=60, retry=RetryPolicy()) as patient:
                retried = pool.submit(patient.generate, "z", **GREEDY, max_new_tokens=2)
                wait_for(server, 'bst_requests_rejected_total{reason="queue_requests"}', 2)
                running.close()
                self.assertEqual(retried.result(60).usage.generated_tokens, 2)
            self.assertEqual(waiting.result(60).usage.generated_tokens, 2)

    def test_message_limits(self) -> None:
        with ServerProcess("--max_message_bytes=2000") as server, Client(server.grpc, retry=RetryPolicy()) as client:
            self.assertEqual(client.model_info().limits.max_message_bytes, 2000)
            with self.assertRaises(bst_client.MessageTooLargeError):
                client.score([200] * 3000)
            # generate() sends it in parts.
            self.assertEqual(client.generate([200] * 3000, max_new_tokens=1).usage.prompt_tokens, 3000)
            with Client(server.grpc, max_send_message_bytes=100) as small:
                with self.assertRaises(bst_client.MessageTooLargeError):
                    small.generate([200] * 200)
            with Client(server.grpc, max_receive_message_bytes=100) as small:
                with self.assertRaises(bst_client.MessageTooLargeError):
                    small.model_info()

    def test_no_server(self) -> None:
        async def run() -> None:
            async with AsyncClient("127.0.0.1:1") as client:
                await client.generate("x")

        with Client("127.0.0.1:1") as client, self.assertRaises(bst_client.UnavailableError):
            client.model_info()
        with self.assertRaises(bst_client.UnavailableError):
            asyncio.run(run())

    def test_a_server_that_ends(self) -> None:
        with ServerProcess("--grace_seconds=0.2") as server, Client(server.grpc, retry=RetryPolicy()) as client:
            events = client.stream("x", **ENDLESS)
            first_token(events)
            server.terminate()
            with self.assertRaises(bst_client.UnavailableError):  # and no retry: tokens have been seen
                list(events)


class CredentialsTest(unittest.TestCase):
    def setUp(self) -> None:
        self.folder = Path(self.enterContext(tempfile.TemporaryDirectory()))

    def path(self, name: str) -> str:
        return str(self.folder / name)

    def make_certificate(self, name: str, authority: str | None) -> None:
        """NAME.key and NAME.pem, signed by AUTHORITY or by itself."""
        command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days",
                   "1", "-keyout", self.path(f"{name}.key"), "-out", self.path(f"{name}.pem"), "-subj", f"/CN={name}"]
        if authority is not None:
            command[2:3] = ["-x509", "-CA", self.path(f"{authority}.pem"), "-CAkey", self.path(f"{authority}.key"),
                            "-addext", "subjectAltName=DNS:localhost", "-addext", "basicConstraints=critical,CA:FALSE"]
        subprocess.run(command, check=True, capture_output=True)

    def test_tokens(self) -> None:
        Path(self.path("keys")).write_text("alpha\nbeta\n")
        Path(self.path("mine")).write_text("beta\n")
        with ServerProcess(f"--auth_token_file={self.path('keys')}") as server:
            for arguments, error in (({}, bst_client.UnauthenticatedError),
                                     ({"token": "gamma"}, bst_client.PermissionDeniedError)):
                with Client(server.grpc, **arguments) as client:
                    with self.assertRaises(error):
                        client.generate("x")
                    with self.assertRaises(error):
                        client.tokenize("x")
                    self.assertEqual(client.health(), HealthStatus.SERVING)
            for arguments in ({"token": "alpha"}, {"token_file": self.path("mine")}):
                with Client(server.grpc, **arguments) as client:
                    self.assertEqual(client.generate("x", **GREEDY, max_new_tokens=1).usage.generated_tokens, 1)

    def test_tls_and_mutual_tls(self) -> None:
        async def health(target: str, tls: Tls) -> HealthStatus:
            async with AsyncClient(target, tls=tls, timeout=60) as client:
                return await client.health()

        for name, authority in (("ca", None), ("other", None), ("server", "ca"), ("client", "ca"), ("thief", "other")):
            self.make_certificate(name, authority)
        cert = [f"--tls_cert={self.path('server.pem')}", f"--tls_key={self.path('server.key')}"]
        ca = self.path("ca.pem")
        own = {"cert_file": self.path("client.pem"), "key_file": self.path("client.key")}
        stolen = {"cert_file": self.path("thief.pem"), "key_file": self.path("thief.key")}
        right, named = Tls(ca, server_name="localhost"), Tls(ca, **own, server_name="localhost")
        for flags, good, bad in (
                (cert, [right, named], [None, Tls(), Tls(self.path("other.pem"), server_name="localhost"),
                                        Tls(ca, server_name="elsewhere")]),
                ([*cert, f"--tls_client_ca={ca}"], [named], [right, Tls(ca, **stolen, server_name="localhost")])):
            with ServerProcess(*flags) as server:
                for tls in good:
                    with self.subTest(flags=flags, tls=tls), Client(server.grpc, tls=tls, timeout=60) as client:
                        self.assertEqual(client.health(), HealthStatus.SERVING)
                        self.assertEqual(client.generate("x", **GREEDY, max_new_tokens=2).usage.generated_tokens, 2)
                        self.assertEqual(asyncio.run(health(server.grpc, tls)), HealthStatus.SERVING)
                for tls in bad:
                    with self.subTest(flags=flags, tls=tls), Client(server.grpc, tls=tls, timeout=60) as client:
                        with self.assertRaises(bst_client.UnavailableError):
                            client.health()


if __name__ == "__main__":
    bst_process.main()
