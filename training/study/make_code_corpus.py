"""Source code as training text: Python's standard library, one document per package or module.

    python3 training/study/make_code_corpus.py --output DIR

writes DIR/code.train.jsonl.xz and DIR/code.valid.jsonl.xz. The text is what Debian installs as
libpython3.11-stdlib (PSF licence): a package's files in path order are one document, and so is
each module that stands alone. Held-out documents are whole packages, chosen by name below.
"""

from __future__ import annotations

import argparse
import json
import lzma
from pathlib import Path
from typing import Dict, List, Optional, Sequence

# Long enough to be read at 16k tokens and more, and unlike one another.
HELD_OUT = ("asyncio", "email", "unittest", "turtle.py", "tarfile.py", "_pydecimal.py")

# Tables, not prose in code; they would teach a model to count.
SKIPPED = ("encodings", "pydoc_data", "test", "site-packages", "dist-packages", "__pycache__")

MIN_BYTES = 10_000


def documents(root: Path) -> Dict[str, str]:
    """Text by package or module name, in name order."""
    found: Dict[str, List[str]] = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        if any(part in SKIPPED for part in parts):
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        found.setdefault(parts[0], []).append(f"# {'/'.join(parts)}\n{text}")
    return {name: "\n".join(texts) for name, texts in found.items()}


def main(arguments: Optional[Sequence[str]] = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--root", type=Path, default=Path("/usr/lib/python3.11"),
                        help="the library (default %(default)s)")
    parser.add_argument("--output", type=Path, required=True, help="folder for the two files")
    args = parser.parse_args(arguments)
    args.output.mkdir(parents=True, exist_ok=True)
    texts = documents(args.root)
    missing = [name for name in HELD_OUT if name not in texts]
    if missing:
        raise SystemExit(f"{args.root} lacks {', '.join(missing)}")
    for split in ("train", "valid"):
        path = args.output / f"code.{split}.jsonl.xz"
        size = count = 0
        # A file that is there is whole: the study does not make it again.
        scratch = path.with_name(path.name + ".partial")
        with lzma.open(scratch, "wt", encoding="utf-8") as file:
            for name, text in texts.items():
                if (name in HELD_OUT) != (split == "valid") or len(text) < MIN_BYTES:
                    continue
                file.write(json.dumps({"title": name, "text": text}, ensure_ascii=False) + "\n")
                size += len(text)
                count += 1
        scratch.replace(path)
        print(f"{path}: {count} documents, {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
