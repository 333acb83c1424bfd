"""Files that are replaced whole: after a crash or a power cut there is the old one or the new one."""

from __future__ import annotations

import errno
import os
from pathlib import Path


def replace_durably(scratch: Path, target: Path) -> None:
    """Moves the finished, closed file `scratch` onto `target`, which is in the same directory.

    The content is on disk before the name points to it, and the name before this returns.
    """
    _sync(scratch)
    os.replace(scratch, target)
    try:
        _sync(target.parent)
    except OSError as error:
        # Some network file systems cannot sync a directory.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise


def write_durably(target: Path, content: bytes) -> None:
    """Replaces `target` by a file of that content."""
    scratch = target.with_name(target.name + ".partial")
    scratch.write_bytes(content)
    replace_durably(scratch, target)


def _sync(path: Path) -> None:
    # What other descriptors wrote is the file's, too.
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
