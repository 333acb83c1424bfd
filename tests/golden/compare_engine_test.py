#!/usr/bin/env python3
"""Tests of the driver with the evaluator in the engine's place, sound and with planted faults."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

HERE = Path(__file__).resolve().parent


class DriverTest(unittest.TestCase):
    def drive(self, fault: str | None, *extra: str) -> tuple[int, str, list[str]]:
        """Exit status, output and the directories left behind."""
        engine = f"{sys.executable} {HERE / 'fake_engine.py'}"
        engine += f" --fault={fault}" if fault else ""
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, str(HERE / "compare_engine.py"), "--engine", engine]
            command += ["--seed=56", "--count=10", "--batch=5", "--layers=all"]
            command += ["--workdir", folder, *extra]
            done = subprocess.run(command, capture_output=True, text=True)
            left = sorted(path.name for path in Path(folder).iterdir())
        return done.returncode, done.stdout + done.stderr, left

    def test_sound_engine(self) -> None:
        status, output, left = self.drive(None, "--split-share=1")
        self.assertEqual(status, 0, output)
        self.assertIn("10 of 10 checkpoints passed", output)
        self.assertEqual(left, [])

    def test_inaccurate_backend(self) -> None:
        status, output, left = self.drive("noise")
        self.assertEqual(status, 1)
        self.assertIn("0 of 10 checkpoints passed", output)
        self.assertEqual(len(left), 10)

    def test_wrong_decode(self) -> None:
        status, output, _ = self.drive("decode", "--split-share=1")
        self.assertEqual(status, 1)
        self.assertRegex(output, r"--split=\d+: relative RMS")

    def test_crash_names_the_directory(self) -> None:
        status, output, left = self.drive("crash")
        self.assertEqual(status, 1)
        self.assertEqual(left, ["all-56-0000", "all-56-0005"])
        self.assertIn("8 of 10 checkpoints passed", output)
        self.assertIn("planted failure", output)


if __name__ == "__main__":
    unittest.main()
