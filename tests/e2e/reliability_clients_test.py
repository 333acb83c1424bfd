"""Clients that die: kill -9 in every phase, and connections that come and go by the thousand.

    --seconds N   how long kills go on in each phase; the storm is 10,000 connections, whatever N
"""

from __future__ import annotations

import json
import random
import subprocess
import tempfile
import time
import unittest
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Callable

import bst_process
from bst_process import ServerProcess, arguments, cli_json, start_cli, write_ids
from raw_calls import Api, Http2, message

GREEDY = ("--temperature", "0", "--ignore-eos")
# Writes A for ever, and so stays until it is cancelled.
ENDLESS = ("generate", "--prompt", "x", *GREEDY, "--max-new-tokens", "1000000", "--logit-bias", "65=100")
# A slot must be free within a step; what is measured here holds a process's death and this test's polls.
FREE_SECONDS = 5
STORM_CONNECTIONS = 10_000


def wait_until(condition: Callable[[], bool], what: str, timeout: float = 60) -> float:
    """How long it took."""
    start = time.monotonic()
    while not condition():
        if time.monotonic() - start > timeout:
            raise AssertionError(f"after {timeout} s still not: {what}")
        time.sleep(0.002)
    return time.monotonic() - start


class KilledClientsTest(unittest.TestCase):
    """One slot, so that a lost one would stop the server."""

    def setUp(self) -> None:
        self.server = self.enterContext(
            ServerProcess("--max_sequences=1", "--control_listen=127.0.0.1:0", "--chunk_tokens=1024"))
        self.control = self.enterContext(Api(self.server.addresses["control"]))
        self.folder = Path(self.enterContext(tempfile.TemporaryDirectory()))
        self.long_ids = write_ids(self.folder / "ids.json", [i % 250 for i in range(2_000_000)])

    def cancelled(self, stage: str) -> float:
        return self.server.metric(f'bst_requests_cancelled_total{{cause="client",stage="{stage}"}}')

    def kill_again_and_again(self, stage: str, start: Callable[[], subprocess.Popen[str]],
                             has_come: Callable[[subprocess.Popen[str]], bool], slots_left: int = 0) -> None:
        rounds, slowest = 0, 0.0
        end = time.monotonic() + arguments.seconds
        while rounds < 2 or time.monotonic() < end:
            client = start()
            wait_until(lambda: has_come(client), f"the client is in {stage}")
            client.kill()
            rounds += 1
            slowest = max(slowest, wait_until(lambda: self.in_flight() == slots_left, "the slot is free",
                                              FREE_SECONDS))
            client.communicate()
        wait_until(lambda: self.cancelled(stage) == rounds, "the kill is counted", FREE_SECONDS)
        print(f"killed in {stage}: {rounds} clients, slot free after {slowest * 1000:.0f} ms at most", flush=True)

    def in_flight(self) -> int:
        load = self.control.load()
        return load.running + load.waiting

    def assert_still_right(self) -> None:
        golden = arguments.model / "tokens.json"
        answer = cli_json(self.server, "generate", "--ids-file", str(golden), *GREEDY, "--max-new-tokens", "5")
        expected = json.loads((arguments.model / "expected_greedy.json").read_text())["tokens"]
        self.assertEqual(answer["token_ids"], expected[:5])
        self.assertEqual(self.in_flight(), 0)

    def test_in_the_queue(self) -> None:
        running = start_cli(self.server, *ENDLESS)
        self.addCleanup(running.kill)
        self.assertEqual(running.stdout.read(1), "A")
        self.kill_again_and_again("queued", lambda: start_cli(self.server, "generate", "--prompt", "y"),
                                  lambda _: self.control.load().waiting == 1, slots_left=1)
        running.kill()
        running.communicate()
        wait_until(lambda: self.in_flight() == 0, "the last slot is free", FREE_SECONDS)
        self.assert_still_right()

    def test_in_prefill(self) -> None:
        def has_come(_: subprocess.Popen[str]) -> bool:
            return self.control.load().running == 1

        self.kill_again_and_again(
            "prefill", lambda: start_cli(self.server, "generate", "--ids-file", self.long_ids), has_come)
        self.assertEqual(self.server.metric("bst_generation_tokens_total"), 0)
        self.assert_still_right()

    def test_in_decode(self) -> None:
        self.kill_again_and_again("decode", lambda: start_cli(self.server, *ENDLESS),
                                  lambda client: client.stdout.read(1) == "A")
        self.assert_still_right()

    def test_while_scoring(self) -> None:
        self.kill_again_and_again("prefill", lambda: start_cli(self.server, "score", "--ids-file", self.long_ids),
                                  lambda _: self.control.load().running == 1)
        self.assert_still_right()

    def test_in_an_upload(self) -> None:
        """A connection that closes while the prompt arrives, as the death of its process leaves it."""
        part = message("GenerateUploadPart", {"request": {"token_ids": {"ids": [i % 250 for i in range(1000)]}}})
        for i in range(20):
            with Http2(self.server.grpc) as client:
                client.send(Http2.opening() + Http2.frame(
                    Http2.HEADERS, Http2.END_HEADERS, 1, Http2.call_headers(b"/bst.v1.Generation/GenerateUpload")) +
                    Http2.frame(Http2.DATA, 0, 1, Http2.message_bytes(part)))
                wait_until(lambda: self.control.load().running == 1, "the upload runs")
                if i % 2 == 1:  # in the middle of the next part
                    client.send(Http2.frame(Http2.DATA, 0, 1, Http2.message_bytes(part)[:100]))
            wait_until(lambda: self.in_flight() == 0, "the slot is free", FREE_SECONDS)
        wait_until(lambda: self.cancelled("prefill") == 20, "they are counted", FREE_SECONDS)
        self.assert_still_right()

    def test_in_the_middle_of_a_message(self) -> None:
        """The process that sends the prompt dies before the last of it: there never was a request."""
        call = Http2.generate_bytes(message("GenerateRequest", {"token_ids": {"ids": list(range(200)) * 50}}))
        random_cut = random.Random(1)
        for _ in range(200):
            with Http2(self.server.grpc) as client:
                client.send(Http2.opening() + call[:random_cut.randrange(len(call) - 1)])
        time.sleep(0.2)
        self.assertEqual(self.in_flight(), 0)
        self.assert_still_right()
        self.assertEqual(self.server.metric('bst_requests_cancelled_total{cause="client",stage="queued"}'), 0)


class StormTest(unittest.TestCase):
    def test_ten_thousand_connections(self) -> None:
        """A third only connects, a third opens HTTP/2, a third also sends a request; none says goodbye."""
        request = message("GenerateRequest", {"text": "storm", "stopping": {"max_new_tokens": 20}})
        call = Http2.opening() + Http2.generate_bytes(request)
        openings = (b"", Http2.opening(), call)

        def connect(i: int) -> None:
            with Http2(server.grpc) as client:
                client.send(openings[i % 3])
                if i % 6 == 5:
                    client.socket.recv(1)

        with ServerProcess("--control_listen=127.0.0.1:0") as server, Api(server.addresses["control"]) as control:
            def storm(connections: int) -> None:
                with ThreadPoolExecutor(8) as pool:
                    list(pool.map(connect, range(connections), chunksize=50))
                wait_until(lambda: control.load().running + control.load().waiting == 0, "all slots are free")
                wait_until(lambda: server.open_files <= files + 3, "the connections are closed")

            files = server.open_files
            storm(STORM_CONNECTIONS // 5)
            warm = server.resident_bytes
            start = time.monotonic()
            storm(STORM_CONNECTIONS)
            seconds = time.monotonic() - start
            grown = server.resident_bytes - warm
            print(f"storm: {STORM_CONNECTIONS} connections in {seconds:.1f} s, resident memory +{grown / 1e6:.1f} MB"
                  f" of {warm / 1e6:.0f}", flush=True)
            if not arguments.sanitized:  # they keep what was freed
                self.assertLess(grown, 20e6)  # 2 KB a connection is a leak
            self.assertEqual(control.load().slots_used, 0)
            self.assertGreater(server.metric("bst_prompt_tokens_total"), STORM_CONNECTIONS / 6)  # they were requests
            self.assertEqual(cli_json(server, "generate", "--prompt", "x", *GREEDY, "--max-new-tokens", "3")
                             ["usage"]["generated_tokens"], 3)
            self.assertEqual(server.terminate(), 0)


if __name__ == "__main__":
    bst_process.main()
