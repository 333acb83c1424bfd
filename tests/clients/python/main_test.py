"""python -m bst_client as a process: what implies TLS, and output that cannot be written."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path
from typing import Any

from fake_server import FakeServer, whole


def run(server: FakeServer, *flags: str, stdout: Any = subprocess.PIPE) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "bst_client", "x", "--server", server.target, *flags],
                          stdout=stdout, stderr=subprocess.PIPE, text=True, timeout=60)


class TlsTest(unittest.TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.key = Path(folder.name) / "key"
        self.key.write_text("secret")
        self.server = FakeServer(whole())  # without TLS
        self.server.__enter__()
        self.addCleanup(self.server.__exit__)

    def test_every_flag_of_tls_implies_it(self) -> None:
        for flags in ("--tls",), ("--tls-server-name", "bst.example"):
            with self.subTest(flags):
                done = run(self.server, "--token-file", str(self.key), *flags)
                self.assertEqual((done.returncode, done.stdout), (1, ""))
                self.assertIn("UNAVAILABLE", done.stderr)
        self.assertEqual(self.server.calls, 0)  # nothing was shown to it, the key least of all

    def test_what_cannot_be(self) -> None:
        for flags in ("--tls-key", str(self.key)), ("--tls-cert", str(self.key)), ("--tls-ca", ""), (
                "--tls-server-name", ""):
            with self.subTest(flags):
                done = run(self.server, *flags)
                self.assertEqual((done.returncode, done.stdout), (2, ""))
                self.assertIn("bst_client: ", done.stderr)
        self.assertEqual(self.server.calls, 0)

    def test_without_flags_there_is_none(self) -> None:
        done = run(self.server)
        self.assertEqual((done.returncode, done.stdout), (0, "ab"), done.stderr)


class OutputTest(unittest.TestCase):
    def test_a_reader_that_has_gone_is_no_wrong_usage(self) -> None:
        reader, writer = os.pipe()
        os.close(reader)
        with FakeServer(whole()) as server, os.fdopen(writer, "w") as stdout:
            done = run(server, stdout=stdout)
        self.assertEqual((done.returncode, done.stderr), (1, ""))

    def test_a_full_disk_is_said(self) -> None:
        with FakeServer(whole()) as server, open("/dev/full", "w") as stdout:
            done = run(server, stdout=stdout)
        self.assertEqual(done.returncode, 1)
        self.assertRegex(done.stderr, r"^bst_client: cannot write: .*No space left on device\n$")


if __name__ == "__main__":
    unittest.main()
