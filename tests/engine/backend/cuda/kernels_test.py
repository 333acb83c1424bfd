"""The kernels as nvcc compiles them: the same as in the sources, and within their budget.

orders_test launches every kernel of the sources under emulation; here the PTX may have no other entry.
The budget is the table of engine/backend/cuda/README.md: registers per thread and shared memory per
block, at most, on every architecture the plugin has code for. Nothing may spill.
"""

import argparse
import pathlib
import re
import subprocess
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[4]
FOLDER = ROOT / "engine/backend/cuda"
ARCHITECTURES = ("80", "90")
REGISTERS_OF_A_MULTIPROCESSOR = 65536
SHARED_BYTES_OF_A_MULTIPROCESSOR = 228 * 1024  # of an H100
SHARED_BYTES_OF_AN_A100 = 164 * 1024           # where one block must fit
SHARED_BYTES_OF_THE_SYSTEM = 1024              # in every block, from compute capability 8.0 on


def source_kernels():
    """name -> (threads, blocks) of its launch bounds."""
    found = {}
    for path in sorted(FOLDER.glob("*.cu")):
        for threads, blocks, name in re.findall(r"BST_KERNEL void BST_BOUNDS\((\d+), (\d+)\)\s+(bst_\w+)\(",
                                                path.read_text()):
            found[name] = int(threads), int(blocks)
    return found


def budget():
    """name -> (threads, blocks, registers, shared bytes), the rows of the README's table."""
    rows = re.findall(r"^\| `(bst_\w+)` \| (\d+) \| (\d+) \| (\d+) \| (\d+) \|", (FOLDER / "README.md").read_text(),
                      re.M)
    return {name: tuple(map(int, numbers)) for name, *numbers in rows}


class KernelsTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.kernels = source_kernels()
        cls.entries = {arch: set() for arch in ARCHITECTURES}
        cls.usage = {}  # (name, arch) -> (registers, shared bytes, bytes spilled)
        code = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in ARCHITECTURES]
        with tempfile.TemporaryDirectory() as folder:
            for source in sorted(FOLDER.glob("*.cu")):
                run = subprocess.run(
                    [arguments.nvcc, *arguments.flags.split(), *code, f"-I{ROOT}", "--resource-usage", "--keep",
                     f"--keep-dir={folder}", "-c", source, "-o", f"{folder}/{source.stem}.o"],
                    cwd=folder, capture_output=True, text=True)
                if run.returncode != 0:
                    raise RuntimeError(run.stderr)
                cls.read_usage(run.stderr + run.stdout)
                for arch in ARCHITECTURES:
                    ptx = pathlib.Path(folder, f"{source.stem}.compute_{arch}.ptx").read_text()
                    cls.entries[arch] |= set(re.findall(r"\.entry (\w+)", ptx))

    @classmethod
    def read_usage(cls, log):
        spilled = 0
        for line in log.splitlines():
            if match := re.search(r"Compiling entry function '(\w+)' for 'sm_(\d+)'", line):
                kernel, spilled = match.groups(), 0
            if match := re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", line):
                spilled = int(match[1]) + int(match[2])
            if match := re.search(r"Used (\d+) registers", line):
                shared = re.search(r"(\d+) bytes smem", line)
                cls.usage[kernel] = int(match[1]), int(shared[1]) if shared else 0, spilled

    def test_the_ptx_has_the_kernels_of_the_sources(self):
        self.assertGreater(len(self.kernels), 20)
        for arch, entries in self.entries.items():
            self.assertEqual(entries, set(self.kernels), arch)

    def test_every_kernel_is_within_its_budget_on_every_architecture(self):
        table = budget()
        self.assertEqual(set(table), set(self.kernels), "the README's table has other kernels")
        self.assertEqual(set(self.usage), {(k, a) for k in self.kernels for a in ARCHITECTURES})
        for (name, arch), (registers, shared, spilled) in self.usage.items():
            with self.subTest(kernel=name, arch=arch):
                self.assertLessEqual(registers, table[name][2])
                self.assertLessEqual(shared, table[name][3])
                self.assertEqual(spilled, 0)

    def test_the_budget_gives_the_stated_occupancy(self):
        for name, (threads, blocks, registers, shared) in budget().items():
            with self.subTest(kernel=name):
                self.assertEqual((threads, blocks), self.kernels[name])
                self.assertLessEqual(-(-registers // 8) * 8 * threads * blocks, REGISTERS_OF_A_MULTIPROCESSOR)
                block = shared + SHARED_BYTES_OF_THE_SYSTEM
                self.assertLessEqual(block * blocks, SHARED_BYTES_OF_A_MULTIPROCESSOR)
                self.assertLessEqual(block, SHARED_BYTES_OF_AN_A100)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--nvcc", required=True)
    parser.add_argument("--flags", required=True, help="those of the plugin")
    arguments, rest = parser.parse_known_args()
    unittest.main(argv=[sys.argv[0], *rest])
