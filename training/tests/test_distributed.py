"""Two processes started by torchrun train the model that one process trains."""

from __future__ import annotations

import csv
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path
from typing import List

import torch

from training.bst_train.trainer import load_training_checkpoint
from training.tests.tiny import BRECT, TRANSFORMER, bst, random_text, tiny_config

ROOT = Path(__file__).resolve().parents[2]
STEPS = 6


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class DistributedTest(unittest.TestCase):
    def setUp(self) -> None:
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = Path(directory.name)
        layers = (TRANSFORMER, BRECT, bst("explicit", "multi_filter"))
        config = tiny_config(layers).to_json()
        (self.directory / "config.json").write_text(json.dumps(config), encoding="utf-8")
        with open(self.directory / "text.jsonl", "w", encoding="utf-8") as file:
            for seed in range(6):
                file.write(json.dumps({"text": random_text(seed, 60 + 20 * seed)}) + "\n")

    def _run(
        self, launcher: List[str], name: str, max_tokens: int, *more: str
    ) -> "subprocess.CompletedProcess[str]":
        run_dir = self.directory / name
        command = [
            *launcher, "-m", "training.bst_train", "train",
            "--config", str(self.directory / "config.json"), "--run_dir", str(run_dir),
            "--corpus", str(self.directory / "text.jsonl"),
            "--valid", str(self.directory / "text.jsonl"), "--valid_tokens", "40",
            "--cache_dir", str(self.directory / "cache"), "--max_tokens", str(max_tokens),
            "--segment", "32", "--sequences", "4", "--lanes", "8", "--max_segments", "4",
            "--min_tail", "0", "--log_every", "1", "--threads", "1", "--warmup_steps", "5",
            *more,
        ]
        environment = dict(os.environ, OMP_NUM_THREADS="1")
        return subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
            timeout=300,
        )

    def _train(self, launcher: List[str], name: str, max_tokens: int, *more: str) -> Path:
        result = self._run(launcher, name, max_tokens, *more)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertIn("6 of 6 documents are trained on, too", result.stdout + result.stderr)
        return self.directory / name

    def _torchrun(self) -> List[str]:
        return [
            sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2",
            "--master_addr", "127.0.0.1", "--master_port", str(free_port()),
            # PyTorch 1.13 under Python 3.11 takes no other values than these.
            "--redirects", "1", "--tee", "1", "--log_dir", str(self.directory / "logs"),
        ]

    def test_processes_stop_together_where_the_loss_is_not_finite(self) -> None:
        for name, launcher in (("one", [sys.executable]), ("two", self._torchrun())):
            result = self._run(launcher, name, STEPS * 128, "--matrix_lr", "nan")
            self.assertNotEqual(result.returncode, 0)
            output = result.stdout + result.stderr
            self.assertIn("error: step 2: the loss is nan", output)
            self.assertFalse((self.directory / name / "checkpoint.pt").exists())

    def _losses(self, run_dir: Path) -> List[float]:
        with open(run_dir / "curve.csv", newline="", encoding="utf-8") as file:
            return [float(row["loss"]) for row in csv.DictReader(file)]

    def test_two_processes_equal_one(self) -> None:
        one = self._train([sys.executable], "one", STEPS * 128)
        two = self._train(self._torchrun(), "two", STEPS * 128)
        self.assertGreaterEqual(len(self._losses(one)), STEPS)
        self._assert_equal(one, two)

    def test_two_processes_resume_anywhere_in_the_rotation(self) -> None:
        """Here after an odd number of lanes, of which a single process took one at a time."""
        start = self._train([sys.executable], "start", 3 * 32, "--sequences", "1")
        state = load_training_checkpoint(start / "checkpoint.pt")
        self.assertEqual(state["sampler"]["next_lane"] % 2, 1)
        for name in ("one", "two"):
            shutil.copytree(start, self.directory / name)
        self._assert_equal(
            self._train([sys.executable], "one", STEPS * 128),
            self._train(self._torchrun(), "two", STEPS * 128),
        )

    def _assert_equal(self, one: Path, two: Path) -> None:
        """The runs had the same losses, and have the same weights and states, up to rounding."""
        expected, actual = self._losses(one), self._losses(two)
        self.assertEqual(len(actual), len(expected))
        for a, b in zip(actual, expected):
            self.assertAlmostEqual(a, b, delta=2e-4)
        single = load_training_checkpoint(one / "checkpoint.pt")
        shared = load_training_checkpoint(two / "checkpoint.pt")
        for name, tensor in single["model"].items():
            difference = float((shared["model"][name] - tensor).abs().max())
            self.assertLess(difference, 2e-3 * float(tensor.abs().max()) + 1e-4, name)
        # The checkpoint holds the lanes of both processes, so any number of them can resume it.
        for a, b in zip(shared["states"], single["states"]):
            for layer, other in zip(a, b):
                for x, y in zip(layer, other):
                    self.assertTrue(torch.allclose(x, y, rtol=1e-2, atol=1e-2))


if __name__ == "__main__":
    unittest.main()
