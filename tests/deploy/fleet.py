"""Three real servers, streams on them, and the loss of one under load: for whatever balances over them."""

from __future__ import annotations

import signal
import subprocess
import tempfile
import threading
import time
import unittest
from collections import Counter
from pathlib import Path
from typing import Callable, Union

from bst_client import BstError, Client, Tokens

from bst_process import ServerProcess, arguments

STREAMS = 6
ENDLESS = 1_000_000  # tokens: far longer than a test
SHORT = 8
TIME_LIMIT_MS = 120_000  # ends those that a failed test leaves behind


def wait_for(what: str, condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s: {what}")
        time.sleep(0.05)


class Stream:
    """A `bst generate` whose text goes to a file."""

    def __init__(self, path: Path, target: str, max_new_tokens: int) -> None:
        self.path = path
        self.output = path.open("w")
        self.process = subprocess.Popen(
            [arguments.cli, "generate", "--server", target, "--prompt", "It was", "--ignore-eos",
             "--max-new-tokens", str(max_new_tokens), "--time-limit-ms", str(TIME_LIMIT_MS)],
            stdout=self.output, stderr=subprocess.PIPE, text=True)

    def size(self) -> int:
        """Grows while text arrives."""
        return self.path.stat().st_size

    def is_running(self) -> bool:
        return self.process.poll() is None

    def outcome(self) -> str:
        """Waits for the end; OK or the status."""
        _, errors = self.process.communicate(timeout=60)
        return "OK" if self.process.returncode == 0 else errors.split(": ")[1]

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.process.stderr.close()
        self.output.close()


class ClientStream:
    """The same with the Python client: a stream that a thread reads."""

    def __init__(self, client: Client, max_new_tokens: int) -> None:
        self.events = client.stream("It was", max_new_tokens=max_new_tokens, ignore_eos=True,
                                    time_limit_ms=TIME_LIMIT_MS)
        self.tokens = 0
        self.end = "OK"
        self.thread = threading.Thread(target=self._read)
        self.thread.start()

    def _read(self) -> None:
        try:
            for event in self.events:
                self.tokens += isinstance(event, Tokens)
        except BstError as error:
            self.end = error.code.name

    def size(self) -> int:
        return self.tokens

    def is_running(self) -> bool:
        return self.thread.is_alive()

    def outcome(self) -> str:
        self.thread.join(60)
        return self.end

    def close(self) -> None:
        self.events.close()
        self.thread.join()


AnyStream = Union[Stream, ClientStream]


class FleetTest(unittest.TestCase):
    """Three `servers` under the streams of one client; a subclass's setUp sets `target`, the address that it calls."""

    target: str
    FLAGS = ("--threads=1", "--grace_seconds=0.5")

    def setUp(self) -> None:
        self.folder = Path(self.enterContext(tempfile.TemporaryDirectory()))
        self.servers = [self.enterContext(ServerProcess(*self.FLAGS)) for _ in range(3)]
        self.streams: list[AnyStream] = []

    def start(self, name: str, max_new_tokens: int) -> AnyStream:
        stream = Stream(self.folder / name, self.target, max_new_tokens)
        self.addCleanup(stream.close)
        return stream

    def start_streams(self) -> None:
        """At least STREAMS, and as many as it takes for each server to have one."""
        while len(self.streams) < 5 * STREAMS:
            self.streams.append(self.start(f"stream{len(self.streams)}", ENDLESS))
            if len(self.streams) < STREAMS:
                continue
            wait_for("text of each stream", lambda: all(stream.size() > 0 for stream in self.streams))
            if min(map(self.share, self.servers)) > 0:
                return
        self.fail("a server without streams")

    def share(self, server: ServerProcess) -> int:
        return int(server.metric("bst_requests_running"))

    def lose_a_server(self, number: signal.Signals) -> set[str]:
        """Ends the busiest server under load, checks that nobody else is hurt; how that server's streams ended."""
        shares = {server: self.share(server) for server in self.servers}
        self.assertEqual(sum(shares.values()), len(self.streams))
        lost = max(self.servers, key=lambda server: shares[server])
        left = len(self.streams) - shares[lost]
        self.assertGreater(left, 0)

        lost.process.send_signal(number)
        if number == signal.SIGKILL:
            lost.process.wait()  # until then it may still accept
        # The balancer cannot know yet: some of these are sent to the lost server, and sent again.
        fresh = [self.start(f"{number.name}{i}", SHORT) for i in range(STREAMS)]
        self.assertEqual(Counter(stream.outcome() for stream in fresh), {"OK": STREAMS})

        wait_for("its streams end", lambda: sum(stream.is_running() for stream in self.streams) <= left)
        ended = [stream for stream in self.streams if not stream.is_running()]
        self.streams = [stream for stream in self.streams if stream not in ended]
        self.servers.remove(lost)
        self.assertEqual(len(self.streams), left)
        sizes = [stream.size() for stream in self.streams]
        wait_for("more text of the others", lambda: all(s.size() > size for s, size in zip(self.streams, sizes)))
        return {stream.outcome() for stream in ended}
