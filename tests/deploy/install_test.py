"""The installed programs, moved as the Dockerfile moves them into its image."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
import unittest
from pathlib import Path

import bst_process
from bst_process import ServerProcess, arguments, run_cli
from deploy_files import ROOT

COPY = re.compile(r"^COPY --from=build (/\S+) (/\S+)$", re.M)


class InstallTest(unittest.TestCase):
    """The image's file tree, made by `cmake --install` and the Dockerfile's COPY lines alone."""

    @classmethod
    def setUpClass(cls) -> None:
        cls.folder = Path(cls.enterClassContext(tempfile.TemporaryDirectory()))
        build = Path(arguments.server).resolve().parent.parent
        subprocess.run(["cmake", "--install", build, "--strip", "--prefix", cls.folder / "build/usr/local"],
                       check=True, capture_output=True)
        cls.image = cls.folder / "image"
        for source, target in COPY.findall((ROOT / "Dockerfile").read_text()):
            shutil.copytree(cls.folder / f"build{source}", cls.image / target[1:])
        # What remains is what the image has.
        shutil.rmtree(cls.folder / "build")
        arguments.server = str(cls.image / "usr/local/bin/bst-server")
        arguments.cli = str(cls.image / "usr/local/bin/bst")

    def test_version(self) -> None:
        result = subprocess.run([arguments.server, "--version"], capture_output=True, text=True, timeout=60)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertRegex(result.stdout, r"^bst-server \d+\.\d+\.\d+\n$")

    def test_serves_the_bundled_model(self) -> None:
        with ServerProcess("--max_sequences=1") as server:
            result = run_cli(server, "tokenize", "--prompt", "It was a dark evening")
            self.assertEqual(result.returncode, 0, result.stderr)

    def test_a_missing_library_is_named(self) -> None:
        lonely = self.folder / "lonely/bin"
        lonely.mkdir(parents=True)
        shutil.copy(arguments.server, lonely)
        result = subprocess.run([lonely / "bst-server", f"--model={arguments.model}", "--listen=127.0.0.1:0",
                                 "--metrics_listen="], capture_output=True, text=True, timeout=60)
        self.assertEqual(result.returncode, 1)
        self.assertIn("cannot open the SentencePiece library", result.stderr)
        self.assertNotIn("not a SentencePiece model", result.stderr)


if __name__ == "__main__":
    bst_process.main()
