"""Compiles the .proto files that the client needs into one file of descriptors.

    python3 build_proto.py OUTPUT

The descriptors are data, not code: any protoc can write them and any protobuf runtime can read them,
so a package that was built with one version runs with another (generated *_pb2.py modules refuse a
runtime older than their protoc). bst_client/_wire.py makes the message classes when it is imported.
"""

import shutil
import subprocess
import sys
from pathlib import Path

FILE_NAME = "wire.binpb"
PROTO_FILES = (
    "bst/v1/generation.proto",
    "grpc/health/v1/health.proto",
    "google/rpc/status.proto",
    "google/rpc/error_details.proto",
)


def proto_folder() -> Path:
    """proto/ of a source distribution, or else of the checkout that this folder is part of."""
    here = Path(__file__).resolve().parent
    for folder in (here / "proto", here.parent.parent / "proto"):
        if (folder / PROTO_FILES[0]).is_file():
            return folder
    raise SystemExit(f"{here}: no proto/ folder here or two folders up")


def write_descriptors(output: Path) -> None:
    """Writes `output` with the protoc on the PATH or, where that is missing or too old, grpcio-tools'."""
    output.parent.mkdir(parents=True, exist_ok=True)
    flags = [f"--proto_path={proto_folder()}", "--include_imports", f"--descriptor_set_out={output}", *PROTO_FILES]
    for protoc in ([shutil.which("protoc")], [sys.executable, "-m", "grpc_tools.protoc"]):
        if protoc[0] is not None and subprocess.run([*protoc, *flags]).returncode == 0:
            return
    raise SystemExit("no protoc that works: install Debian's protobuf-compiler or PyPI's grpcio-tools")


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        raise SystemExit(__doc__)
    write_descriptors(Path(sys.argv[1]))
