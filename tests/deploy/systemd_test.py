"""The unit file, by systemd's own checks."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
import unittest
from pathlib import Path

import bst_process
from bst_process import arguments
from deploy_files import DEPLOY, read_flags, skip

UNIT = DEPLOY / "systemd/bst-server.service"
INSTALLED = "/usr/local/bin/bst-server"


def setting(name: str) -> str:
    return re.search(rf"^{name}=(.*)$", UNIT.read_text(), re.M).group(1)


class UnitTest(unittest.TestCase):
    def setUp(self) -> None:
        # verify wants the program to exist: this build's stands in for the installed one.
        folder = self.enterContext(tempfile.TemporaryDirectory())
        text = UNIT.read_text()
        self.assertIn(f"ExecStart={INSTALLED} ", text)
        self.unit = Path(folder, UNIT.name)
        self.unit.write_text(text.replace(INSTALLED, str(Path(arguments.server).resolve())))
        # The drop-in for CUDA, where systemd looks for it.
        self.drop_in = Path(folder, "bst-server.service.d", "cuda.conf")
        self.drop_in.parent.mkdir()

    def analyze(self, *command: str) -> tuple[int, str]:
        result = subprocess.run(["systemd-analyze", *command, str(self.unit)], capture_output=True, text=True,
                                env={"PATH": "/usr/bin:/bin"})
        return result.returncode, result.stdout + result.stderr

    def test_verify(self) -> None:
        self.assertEqual(self.analyze("verify", "--man=no"), (0, ""))

    def test_verify_with_cuda(self) -> None:
        shutil.copy(DEPLOY / "systemd/bst-server.service.d-cuda.conf", self.drop_in)
        self.assertEqual(self.analyze("verify", "--man=no"), (0, ""))

    def test_exposure(self) -> None:
        """At most 2.0 of 10, where 10 is a service without any sandboxing."""
        code, text = self.analyze("security", "--offline=true", "--threshold=20")
        self.assertEqual(code, 0, text)

    def test_streams_end_before_the_server_is_killed(self) -> None:
        flags = read_flags((DEPLOY / "systemd/server.flags").read_text())
        self.assertGreaterEqual(int(setting("TimeoutStopSec")), int(flags["grace_seconds"]) + 10)

    def test_every_flag_exists(self) -> None:
        help_text = subprocess.run([arguments.server, "--help"], capture_output=True, text=True).stdout
        for name in read_flags((DEPLOY / "systemd/server.flags").read_text()):
            self.assertIn(f"--{name} (", help_text)


if __name__ == "__main__":
    if shutil.which("systemd-analyze") is None:
        skip("no systemd-analyze; Debian has it in the package systemd")
    bst_process.main()
