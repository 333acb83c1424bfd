"""Adds the wire contract to the package when it is built; all else is in pyproject.toml."""

import shutil
import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))  # PEP 517 front ends do not add it
import build_proto  # noqa: E402


class BuildPy(build_py):
    def run(self) -> None:
        super().run()
        # An editable install imports the package from where its sources are.
        base = HERE if getattr(self, "editable_mode", False) else Path(self.build_lib)
        build_proto.write_descriptors(base / "bst_client" / build_proto.FILE_NAME)


class Sdist(sdist):
    """Packs proto/ too, which lies outside of this folder in a checkout."""

    def make_release_tree(self, base_dir: str, files: "list[str]") -> None:
        super().make_release_tree(base_dir, files)
        shutil.copy(HERE / "build_proto.py", base_dir)
        for name in build_proto.PROTO_FILES:
            target = Path(base_dir, "proto", name)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(build_proto.proto_folder() / name, target)


setup(cmdclass={"build_py": BuildPy, "sdist": Sdist})
