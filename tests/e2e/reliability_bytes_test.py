"""Whatever comes in at the ports, the server goes on: noise, broken HTTP/2, half a request, slow and huge ones.

    --seconds N   how long each kind of noise goes on
"""

from __future__ import annotations

import json
import random
import socket
import threading
import time
import unittest
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Callable

import bst_process
from bst_process import ServerProcess, arguments
from raw_calls import Api, Http2, finish, message

SEED = 20261125


class BytesTest(unittest.TestCase):
    def setUp(self) -> None:
        self.server = self.enterContext(ServerProcess("--control_listen=127.0.0.1:0", "--max_sequences=4"))
        self.api = self.enterContext(Api(self.server.grpc))
        self.control = self.enterContext(Api(self.server.addresses["control"]))
        self.tokens = json.loads((arguments.model / "tokens.json").read_text())
        self.expected = json.loads((arguments.model / "expected_greedy.json").read_text())["tokens"]
        self.random = random.Random(SEED)
        self.call = Http2.generate_bytes(
            message("GenerateRequest", {"text": "noise", "stopping": {"max_new_tokens": 5}}))
        self.assert_serves()  # buffers of a first request are there before anything is measured
        self.files = self.server.open_files

    def assert_serves(self) -> None:
        """The golden answer, on a connection that was there before the noise."""
        events, code = finish(self.api.generate(
            token_ids={"ids": self.tokens}, sampling={"temperature": 0},
            stopping={"max_new_tokens": len(self.expected), "ignore_eos": True}))
        self.assertEqual(code, "OK")
        self.assertEqual([i for event in events for i in event.tokens.token_ids], self.expected)

    def assert_clean(self, grown_limit: float = 30e6, before: float = 0) -> None:
        """Nothing is left of the noise."""
        self.assert_serves()
        deadline = time.monotonic() + 60
        while self.control.load().slots_used > 0 or self.server.open_files > self.files + 3:
            self.assertLess(time.monotonic(), deadline, f"{self.server.open_files} files, {self.control.load()}")
            time.sleep(0.05)
        self.assertIsNone(self.server.process.poll())
        if before and not arguments.sanitized:  # they keep what was freed
            self.assertLess(self.server.resident_bytes - before, grown_limit)

    def wait_until_closed(self) -> None:
        deadline = time.monotonic() + 60
        while self.server.open_files > self.files + 50:
            self.assertLess(time.monotonic(), deadline, f"{self.server.open_files} files are open")
            time.sleep(0.01)

    def noise(self, name: str, connect: Callable[[random.Random], None]) -> None:
        """Calls `connect` from four threads for --seconds; then the server must be as it was."""
        def run(seed: int) -> int:
            own = random.Random(seed)
            rounds = 0
            while time.monotonic() < end:
                connect(own)
                rounds += 1
                if rounds % 50 == 0:  # what is measured is what stays, not how far the server is behind
                    self.wait_until_closed()
            return rounds

        for _ in range(200):
            connect(self.random)
        self.wait_until_closed()
        before = self.server.resident_bytes
        end = time.monotonic() + arguments.seconds
        with ThreadPoolExecutor(4) as pool:
            rounds = sum(pool.map(run, range(4)))
        self.assert_clean(before=before)
        print(f"{name}: {rounds} connections, resident memory "
              f"{(self.server.resident_bytes - before) / 1e6:+.1f} MB", flush=True)

    def test_a_call_written_by_hand_is_a_call(self) -> None:
        """Or the other tests would send less than they think."""
        with Http2(self.server.grpc) as client:
            client.send(Http2.opening() + self.call)
            # Beside an open connection: without one the call would be cancelled if it still ran.
            self.server.wait_for('bst_requests_total{code="OK",finish_reason="MAX_TOKENS",rpc="Generate"}', 2)

    def test_a_request_that_runs_or_waits_does_not_keep_its_bytes(self) -> None:
        """8 MB each in a field that no one knows, so that nothing is tokenised."""
        request = message("GenerateRequest", {"text": "x", "stopping": {"max_new_tokens": 1_000_000, "ignore_eos": True}})
        request.MergeFromString(b"\xfa\x7f" + b"\x80\x80\x80\x04" + bytes(8 << 20))  # number 2047, of 2^23 bytes

        def start(calls: int) -> list[Any]:
            started = [self.api.call("Generation/Generate", request, timeout=None) for _ in range(calls)]
            for call in started:
                next(call)  # Accepted: it has been read
            return started

        calls = start(4)  # what malloc keeps for the next
        before = self.server.resident_bytes
        for _ in range(10):
            calls += start(4)
        grown = self.server.resident_bytes - before
        print(f"40 requests of 8 MB run and wait: resident memory {grown / 1e6:+.1f} MB", flush=True)
        if not arguments.sanitized:
            self.assertLess(grown, 160e6)
        for call in calls:
            call.cancel()
        self.assert_clean()

    def test_random_bytes(self) -> None:
        ports = [self.server.addresses[name] for name in ("grpc", "metrics", "control")]

        def connect(own: random.Random) -> None:
            with Http2(own.choice(ports)) as client:
                for _ in range(own.randrange(1, 4)):
                    client.send(own.randbytes(own.choice((1, 9, 100, 5000))))

        self.noise("random bytes", connect)

    def test_random_frames(self) -> None:
        """A good opening, then frames of every type with random flags, streams, lengths and payloads."""
        def connect(own: random.Random) -> None:
            with Http2(self.server.grpc) as client:
                frames = [Http2.frame(own.randrange(12), own.randrange(256), own.choice((0, 1, 3, 2**31 - 1)),
                                      own.randbytes(own.choice((0, 4, 5, 8, 40))),
                                      own.choice((None, None, None, 0, 2**14, 2**24 - 1)))
                          for _ in range(own.randrange(1, 8))]
                client.send(Http2.opening() + own.choice((b"", self.call)) + b"".join(frames))

        self.noise("random frames", connect)

    def test_calls_with_flipped_bytes(self) -> None:
        """A good call, in which a few bytes are others: of the frames, of HPACK, of Protobuf."""
        whole = Http2.opening() + self.call

        def connect(own: random.Random) -> None:
            mutant = bytearray(whole)
            for _ in range(own.randrange(1, 5)):
                mutant[own.randrange(len(Http2.PREFACE), len(mutant))] = own.randrange(256)
            with Http2(self.server.grpc) as client:
                client.send(bytes(mutant[:own.choice((len(mutant), own.randrange(1, len(mutant))))]))

        self.noise("flipped bytes", connect)

    def test_random_messages(self) -> None:
        """Good frames around noise: what Protobuf does not parse is an error of the call, not of the server."""
        methods = [f"/bst.v1.Generation/{name}".encode() for name in ("Generate", "GenerateOnce", "Score", "Tokenize",
                                                                     "Detokenize", "GetModelInfo", "Nothing")]

        def connect(own: random.Random) -> None:
            body = own.randbytes(own.randrange(0, 60))
            size = own.choice((len(body), len(body), len(body), 0, 2**31, 2**32 - 1)).to_bytes(4, "big")
            with Http2(self.server.grpc) as client:
                client.send(Http2.opening() +
                            Http2.frame(Http2.HEADERS, Http2.END_HEADERS, 1, Http2.call_headers(own.choice(methods))) +
                            Http2.frame(Http2.DATA, Http2.END_STREAM, 1, bytes((own.choice((0, 0, 1, 255)),)) + size +
                                        body))
                client.socket.recv(1)

        self.noise("random messages", connect)

    def test_half_open_streams(self) -> None:
        """Calls that never end: headers without data, data without an end, a header block without its rest."""
        headers = Http2.call_headers(b"/bst.v1.Generation/Generate")
        halves = [Http2.frame(Http2.HEADERS, Http2.END_HEADERS, 1, headers),
                  Http2.frame(Http2.HEADERS, 0, 1, headers),
                  Http2.frame(Http2.HEADERS, Http2.END_HEADERS, 1, headers) + Http2.frame(Http2.DATA, 0, 1, b"\0\0\0\1"),
                  Http2.frame(Http2.DATA, 0, 1, b"\0" * 100, length=2**14)[:50], b"PRI * HT"]
        before = self.server.resident_bytes
        clients = []
        for i in range(500):
            clients.append(Http2(self.server.grpc))
            clients[-1].send((b"" if halves[i % 5].startswith(b"PRI") else Http2.opening()) + halves[i % 5])
        self.assert_serves()
        self.assertEqual(self.control.load().slots_used, 0)  # none of them got as far
        for client in clients:
            client.socket.close()
        self.assert_clean(before=before, grown_limit=100e6)

    def test_slow_loris(self) -> None:
        """Fifty clients that send a byte now and then do not hold up the others."""
        whole = Http2.opening() + self.call
        stop = threading.Event()

        def drip() -> None:
            with Http2(self.server.grpc) as client:
                for i in range(len(whole) - 1):
                    if stop.wait(0.05) or not client.send(whole[i:i + 1]):
                        return

        threads = [threading.Thread(target=drip) for _ in range(50)]
        for thread in threads:
            thread.start()
        end = time.monotonic() + arguments.seconds
        slowest = 0.0
        while time.monotonic() < end:
            start = time.monotonic()
            self.assert_serves()
            slowest = max(slowest, time.monotonic() - start)
        stop.set()
        for thread in threads:
            thread.join()
        print(f"beside 50 dripping clients: slowest request {slowest * 1000:.0f} ms", flush=True)
        self.assert_clean()

    def test_huge_headers(self) -> None:
        """gRPC takes 8 KB of metadata; more ends the call or the connection, and holds no memory."""
        before = self.server.resident_bytes
        for size in (5_000, 16_000, 200_000, 2_000_000):
            for _ in range(10):
                block = Http2.call_headers(b"/bst.v1.Generation/Generate", [(b"x-much", b"y" * size)])
                pieces = [block[i:i + 16384] for i in range(0, len(block), 16384)]
                frames = [Http2.frame(Http2.HEADERS if i == 0 else Http2.CONTINUATION,
                                      Http2.END_HEADERS if i == len(pieces) - 1 else 0, 1, piece)
                          for i, piece in enumerate(pieces)]
                with Http2(self.server.grpc) as client:
                    client.send(Http2.opening() + b"".join(frames))
        with Http2(self.server.grpc) as client:  # a header block that never ends
            client.send(Http2.opening() + Http2.frame(Http2.HEADERS, 0, 1, block[:16384]))
            sent = 0
            while sent < 64 << 20 and client.send(Http2.frame(Http2.CONTINUATION, 0, 1, b"\x00\x01a\x7f\x80\x7f" * 2000)):
                sent += 12_000
        self.assert_clean(before=before, grown_limit=60e6)

    def test_silent_clients_at_the_metrics_port(self) -> None:
        """Prometheus waits ten seconds for its answer."""
        host, port = self.server.addresses["metrics"].split(":")
        clients = [socket.create_connection((host, int(port)), 10) for _ in range(30)]
        for client in clients:
            client.sendall(b"GET /met")
        start = time.monotonic()
        self.assertIn("bst_requests_running 0", self.server.metrics_text())
        self.assertLess(time.monotonic() - start, 10)
        for client in clients:
            client.close()

    def test_an_end_among_half_open_connections(self) -> None:
        """They are not waited for."""
        headers = Http2.frame(Http2.HEADERS, Http2.END_HEADERS, 1, Http2.call_headers(b"/bst.v1.Generation/Generate"))
        clients = [Http2(self.server.addresses[name]) for name in ("grpc", "control") for _ in range(50)]
        for i, client in enumerate(clients):
            client.send((b"", b"PRI", Http2.opening(), Http2.opening() + headers)[i % 4])
        start = time.monotonic()
        self.assertEqual(self.server.terminate(), 0)
        self.assertLess(time.monotonic() - start, 15)  # grace is 30 s
        for client in clients:
            client.socket.close()

    def test_metrics_port(self) -> None:
        host, port = self.server.addresses["metrics"].split(":")
        requests = (b"GET /metrics HTTP/1.1\r\n", b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n",
                    b"POST /metrics HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n", b"\r\n" * 10_000,
                    b"GET /../../../../etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n",
                    b"GET /metrics HTTP/1.1\r\n" + b"X-Much: y\r\n" * 5_000 + b"\r\n")
        for _ in range(20):
            for request in requests:
                with socket.create_connection((host, int(port)), 10) as client:
                    try:
                        client.sendall(request)
                        client.shutdown(socket.SHUT_WR)
                        self.assertNotIn(b"root:", client.recv(1 << 16))
                    except OSError:  # the server closed first
                        pass
        self.assertIn("bst_requests_running 0", self.server.metrics_text())
        self.assert_clean()


if __name__ == "__main__":
    bst_process.main()
