"""Where the files of deploy/ are, and how a test reads them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, NoReturn

import yaml

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"

SKIPPED = 77  # SKIP_RETURN_CODE in CMakeLists.txt


def skip(reason: str) -> NoReturn:
    """Ends the whole test program; ctest reports it as skipped, not as passed."""
    print(f"SKIPPED: {reason}")
    sys.exit(SKIPPED)


def load(path: str) -> Any:
    """The YAML (or JSON) document deploy/`path`."""
    return yaml.safe_load((DEPLOY / path).read_text())


def read_flags(text: str) -> dict[str, str]:
    """A flag file as {name: value}."""
    lines = (line.strip() for line in text.splitlines())
    return dict(line[2:].split("=", 1) for line in lines if line.startswith("--"))
