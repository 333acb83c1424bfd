"""The length study: which layers use a context longer than the attention window, at equal size?

    python3 training/study/study.py --text DIR --work DIR

repeats all of it: makes the code corpus, trains every configuration of `configs/` on the same
tokens in the same order, evaluates each on held-out documents by position, and writes the results
(`results/NAME.json`, curves), the pictures and the tables of README.md. DIR of --text holds
books.train, books.valid, latex.train and latex.valid, as .jsonl.xz; --work keeps runs and caches
outside the repository. What is there already is not done again: a run is resumed, a finished one
left alone. Parts of it: --steps evaluate,report --models transformer.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, Dict, Iterator, List

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))

from training.bst_train.checkpoint import export_model  # noqa: E402
from training.bst_train.corpus import tokenize  # noqa: E402
from training.bst_train.evaluate import document_losses, token_byte_lengths  # noqa: E402
from training.bst_train.tokenizer import load_tokenizer  # noqa: E402
from training.bst_train.trainer import (  # noqa: E402
    check_run_tokenizer,
    load_training_checkpoint,
    model_of,
)
from training.study import report  # noqa: E402

DOMAINS = ("books", "latex", "code")
# Shares of the training tokens.
WEIGHTS = {"books": 0.75, "latex": 0.13, "code": 0.12}
STEPS = ("corpus", "train", "evaluate", "report")

# Bounds of the bins that results are kept in; tokens from the last on are not read.
EDGES = (0, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536)

# Everything about the training but its length. One sequence of 4,096 tokens a step.
TRAINING = (
    "--segment", "4096", "--sequences", "1", "--lanes", "16", "--max_segments", "16",
    "--warmup_steps", "100", "--final_lr", "0.02", "--seed", "1", "--checkpoint_every_s", "120",
    "--log_every", "20", "--valid_every", "1000000", "--valid_tokens", "4096",
)


def corpus_path(args: argparse.Namespace, domain: str, split: str) -> Path:
    folder = args.work / "corpus" if domain == "code" else args.text
    return folder / f"{domain}.{split}.jsonl.xz"


def make_corpus(args: argparse.Namespace) -> None:
    if not corpus_path(args, "code", "valid").exists():
        script = HERE / "make_code_corpus.py"
        subprocess.run([sys.executable, str(script), "--output", str(args.work / "corpus")],
                       check=True)


def train(args: argparse.Namespace, name: str) -> None:
    """Starts or resumes a run; returns when its tokens are used up."""
    command = [
        sys.executable, "-m", "training.bst_train", "train",
        "--config", str(HERE / "configs" / f"{name}.json"),
        "--run_dir", str(args.work / "runs" / name), "--cache_dir", str(args.work / "cache"),
        "--tokenizer", str(args.tokenizer), "--max_tokens", str(args.max_tokens),
        "--threads", str(args.threads), "--valid", str(corpus_path(args, "books", "valid")),
        *TRAINING,
    ]
    for domain in DOMAINS:
        command += ["--corpus", f"{corpus_path(args, domain, 'train')}:{WEIGHTS[domain]}"]
    # Large tensors stay in the process instead of being handed back and cleared at every step.
    environment = dict(os.environ, MALLOC_MMAP_MAX_="0", MALLOC_TRIM_THRESHOLD_="100000000000",
                       MALLOC_TOP_PAD_="268435456")
    subprocess.run(command, cwd=ROOT, env=environment, check=True)


def engine_losses(
    binaries: Path, checkpoint: Path, documents: List[np.ndarray]
) -> Iterator[np.ndarray]:
    """Nats of every token but the first of each document, from bst-server through `bst score`."""
    server = subprocess.Popen(
        [str(binaries / "bst-server"), f"--model={checkpoint}", "--listen=127.0.0.1:0",
         "--metrics_listen=127.0.0.1:0", "--weights=f32", "--max_sequences=1"],
        stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    try:
        ready = next((line for line in server.stderr if line.startswith("ready ")), None)
        if ready is None:
            raise RuntimeError(f"bst-server did not start on {checkpoint}")
        address = ready.split("grpc=")[1].split()[0]
        threading.Thread(target=server.stderr.read, daemon=True).start()
        for ids in documents:
            answer = subprocess.run(
                [str(binaries / "bst"), "score", "--json", "--server", address, "--ids-file", "-"],
                input=json.dumps([int(i) for i in ids]), capture_output=True, text=True, check=True)
            yield -np.array(json.loads(answer.stdout)["logprobs"][1:], dtype=np.float64)
    finally:
        server.terminate()
        server.wait()


def evaluate(args: argparse.Namespace, name: str) -> None:
    """Reads every held-out document from its start and writes results/NAME.json and its curve.

    Raises ValueError, before anything is read or exported, where --tokenizer is not the vocabulary
    that the run was trained with.
    """
    run_dir = args.work / "runs" / name
    state = load_training_checkpoint(run_dir / "checkpoint.pt")
    if state["tokens"] < args.max_tokens:
        print(f"{name}: {state['tokens']} of {args.max_tokens} tokens, not evaluated")
        return
    tokenizer = load_tokenizer(str(args.tokenizer))
    check_run_tokenizer(run_dir / "checkpoint.pt", state, tokenizer)
    model = model_of(state).eval()
    if args.engine is not None:
        export_model(model, args.work / "export" / name, args.tokenizer, torch.float32)
    documents: List[Dict[str, Any]] = []
    for domain in DOMAINS:
        corpus = tokenize(corpus_path(args, domain, "valid"), tokenizer, args.work / "cache")
        ids = [corpus.document(i)[: EDGES[-1] + 1] for i in range(len(corpus))]
        if args.engine is None:
            scored: Iterator[np.ndarray] = iter(document_losses(model, ids, 4096, 1))
        else:
            scored = engine_losses(args.engine, args.work / "export" / name, ids)
        for losses, tokens in zip(scored, ids):
            sizes = token_byte_lengths(tokenizer, tokens[1:].astype(np.int64))
            parts = [slice(a, b) for a, b in zip(EDGES, EDGES[1:])]
            documents.append({
                "domain": domain,
                "tokens": [len(losses[p]) for p in parts],
                "bytes": [int(sizes[p].sum()) for p in parts],
                "nats": [round(float(losses[p].sum(dtype=np.float64)), 3) for p in parts],
            })
            print(f"{name} {domain} {len(losses)} tokens "
                  f"{losses.mean(dtype=np.float64):.4f} nats/token", flush=True)
    with open(run_dir / "curve.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    late = rows[-max(1, len(rows) // 10) :]
    result = {
        "model": name,
        "parameters": model.num_parameters(),
        "trained_tokens": state["tokens"],
        "training_nats_per_token_last_tenth": round(
            float(np.mean([float(row["loss"]) for row in late])), 4),
        "edges": list(EDGES),
        "documents": documents,
    }
    results = HERE / "results"
    results.mkdir(exist_ok=True)
    text = json.dumps(result, indent=1)
    # One line per list of numbers.
    text = re.sub(r"\[\s+([-\d.,\s]+?)\s+\]", lambda m: f"[{' '.join(m[1].split())}]", text)
    (results / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    with open(results / f"{name}.curve.csv", "w", newline="", encoding="utf-8") as file:
        columns = ("step", "tokens", "loss", "lr")
        writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def main() -> None:
    names = sorted(path.stem for path in (HERE / "configs").glob("*.json"))
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--text", type=Path, help="folder of the books and LaTeX corpora")
    add("--work", type=Path, help="folder for runs, caches and the code corpus")
    add("--steps", default=",".join(STEPS), help="default: %(default)s")
    add("--models", default=",".join(names), help="default: %(default)s")
    add("--tokenizer", type=Path, default=ROOT / "models" / "bst-books-4m" / "tokenizer.model",
        help="the SentencePiece model of all of it; runs keep the one that they were started with "
             "(default %(default)s)")
    add("--max_tokens", type=int, default=4_000_000, help="of training (default %(default)s)")
    add("--engine", type=Path, metavar="DIR",
        help="score with the bst-server and bst of this folder (build/release/bin), several times "
             "as fast as PyTorch; the same numbers to 1e-5")
    add("--threads", type=int, default=1, help="default: %(default)s")
    args = parser.parse_args()
    steps = args.steps.split(",")
    if set(steps) - set(STEPS):
        parser.error(f"--steps: choose from {', '.join(STEPS)}")
    if steps != ["report"] and (args.text is None or args.work is None):
        parser.error("--text and --work are needed for anything but a report")
    torch.set_num_threads(args.threads)
    if "corpus" in steps:
        make_corpus(args)
    for name in args.models.split(","):
        if "train" in steps:
            train(args, name)
        if "evaluate" in steps:
            evaluate(args, name)
    if "report" in steps:
        report.write(HERE / "results", HERE / "README.md")


if __name__ == "__main__":
    main()
