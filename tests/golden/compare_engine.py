#!/usr/bin/env python3
"""Compares an engine with the evaluator on random checkpoints.

    compare_engine.py --engine build/bst-logits --count 200 --seed 1 --layers basic --jobs 2

The engine is a program with this interface:

    ENGINE --backend=reference|cpu --weights=f32|bf16|auto [--split=K] DIR [DIR...]

It loads each checkpoint directory DIR, runs DIR/tokens.json and writes DIR/logits.BACKEND.npy,
float32 [L, V]. With --split=K only the first K tokens are a prompt; the others are fed one by one
as decode steps. Its exit status is not 0 when a directory fails, and standard error names it.

Checked for every checkpoint: the reference backend against the float64 evaluator and the cpu
backend against the reference; for some of them also a random split, which must not change the
logits. The measure is the relative RMS error over the whole array. A directory that fails stays
in the work directory with all its files; the others are removed. Checkpoint I of a run can be made
again with `random_checkpoint.py --seed SEED --index I --layers LAYERS DIR`.
"""

from __future__ import annotations

import os

for _variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")  # read by numpy when it is imported

import argparse
import json
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

import evaluator
import random_checkpoint


@dataclass(frozen=True)
class Options:
    """What a worker process needs to know."""

    engine: tuple[str, ...]
    weights: str
    seed: int
    layers: str
    workdir: Path
    split_share: float
    tolerance: float
    keep: bool


@dataclass
class Case:
    """One checkpoint: its options, the errors measured and what went wrong."""

    index: int
    directory: Path
    options: str = ""
    errors: dict[str, float] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)


def run_engine(
    options: Options, backend: str, cases: list[Case], split: int | None = None
) -> dict[int, np.ndarray]:
    """Runs the engine once over all cases; {index: logits} of those that produced any.

    If it fails with several directories they are run again one by one, to find the guilty one.
    """
    name = f"logits.{backend}.npy"
    for case in cases:
        (case.directory / name).unlink(missing_ok=True)
    command = [*options.engine, f"--backend={backend}", f"--weights={options.weights}"]
    command += [f"--split={split}"] if split is not None else []
    label = backend if split is None else f"{backend} --split={split}"
    try:
        done = subprocess.run(
            command + [str(case.directory) for case in cases],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            timeout=60 + 20 * len(cases),
        )
        status, message = done.returncode, done.stderr.strip()[-2000:]
    except subprocess.TimeoutExpired:
        status, message = -1, "timed out"
    if status != 0 and len(cases) > 1:
        single = [run_engine(options, backend, [case], split) for case in cases]
        if not any(case.failures for case in cases):
            cases[0].failures.append(f"{label}: status {status} on a batch only: {message}")
        return {index: logits for result in single for index, logits in result.items()}
    results = {}
    for case in cases:
        if status != 0:
            case.failures.append(f"{label}: exit status {status}: {message}")
            continue
        try:
            logits = np.load(case.directory / name)
        except (OSError, ValueError) as error:
            case.failures.append(f"{label}: no usable {name}: {error}")
            continue
        if logits.dtype != np.float32:
            case.failures.append(f"{label}: {name} is {logits.dtype}, not float32")
        results[case.index] = logits
    return results


def check(
    case: Case, kind: str, label: str, actual: np.ndarray, expected: np.ndarray, bound: float
) -> None:
    """Records the error; says where the first bad row is when it is too large."""
    error = evaluator.relative_rms(actual, expected)
    case.errors[kind] = error
    if error <= bound:
        return
    text = f"{label}: relative RMS {error:.3g} > {bound:g}"
    if actual.shape != expected.shape:
        text += f", shape {actual.shape} instead of {expected.shape}"
    else:
        typical = np.sqrt(np.mean(np.square(expected, dtype=np.float64)))
        rows = np.sqrt(np.mean((np.asarray(actual, np.float64) - expected) ** 2, axis=1)) / typical
        text += f", first bad row {int(np.argmax(~(rows <= bound)))} of {len(rows)}"
    case.failures.append(text)


def random_split(rng: np.random.Generator, length: int, window: int) -> int:
    """A prompt length of 1 … L − 1, mostly around block boundaries."""
    block = window * int(rng.integers(1, max(1, length // window) + 1))
    choices = [1, block - 1, block, block + 1, length - 1, int(rng.integers(1, length))]
    return int(np.clip(choices[int(rng.integers(len(choices)))], 1, length - 1))


def run_batch(options: Options, indices: list[int]) -> list[Case]:
    """Generates, evaluates and compares the checkpoints with these numbers."""
    cases, expected, splits = [], {}, {}
    for index in indices:
        case = Case(index, options.workdir / f"{options.layers}-{options.seed}-{index:04d}")
        shutil.rmtree(case.directory, ignore_errors=True)
        config = random_checkpoint.generate(case.directory, options.seed, index, options.layers)
        tokens = json.loads((case.directory / "tokens.json").read_text())
        case.options = random_checkpoint.summary(config, len(tokens))
        expected[index] = evaluator.evaluate(case.directory, tokens)
        rng = np.random.default_rng([options.seed, index, 2])
        if len(tokens) > 1 and rng.random() < options.split_share:
            backend = ("cpu", "cpu", "reference")[int(rng.integers(3))]
            splits[index] = (backend, random_split(rng, len(tokens), config["window"]))
        cases.append(case)

    reference = run_engine(options, "reference", cases)
    cpu = run_engine(options, "cpu", cases)
    for case in cases:
        truth, bound = expected[case.index], options.tolerance
        if case.index in reference:
            check(case, "reference", "reference", reference[case.index], truth, bound)
        base = reference.get(case.index, truth)
        if case.index in cpu:
            check(case, "cpu", "cpu", cpu[case.index], base, bound)
        if case.index in splits:
            backend, split = splits[case.index]
            logits = run_engine(options, backend, [case], split).get(case.index)
            if logits is not None:
                check(case, "split", f"{backend} --split={split}", logits, base, bound)
        if case.failures:
            np.save(case.directory / "logits.expected.npy", truth)
        elif not options.keep:
            shutil.rmtree(case.directory)
    return cases


def report(cases: list[Case], options: Options, seconds: float) -> int:
    """Prints the summary; the exit status."""
    against = {
        "reference": "reference against the evaluator",
        "cpu": "cpu against the reference",
        "split": "prefill and decode against the reference",
    }
    for label, title in against.items():
        measured = [(case.errors[label], case) for case in cases if label in case.errors]
        if not measured:
            continue
        worst, case = max(measured, key=lambda item: item[0])
        median = statistics.median(error for error, _ in measured)
        print(f"{title}: {len(measured)} runs, median {median:.2e}, max {worst:.2e}")
        print(f"  worst: #{case.index} {case.options}")
    failed = sorted((case for case in cases if case.failures), key=lambda case: case.index)
    for case in failed[:20]:
        print(f"FAILED #{case.index} {case.options}\n  {case.directory}")
        print("".join(f"  {line}\n" for text in case.failures for line in text.split("\n")), end="")
    if len(failed) > 20:
        print(f"and {len(failed) - 20} more failed directories in {options.workdir}")
    print(f"{len(cases) - len(failed)} of {len(cases)} checkpoints passed in {seconds:.1f} s")
    return 1 if failed else 0


def main() -> int:
    parser = argparse.ArgumentParser(description="engine against evaluator on random checkpoints")
    parser.add_argument("--engine", required=True, help="program (and leading arguments) to test")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="number of the first checkpoint [0]")
    parser.add_argument("--layers", choices=["basic", "all"], default="basic")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--batch", type=int, default=10, help="checkpoints per engine run [10]")
    parser.add_argument("--workdir", type=Path, help="where checkpoints go [a temporary directory]")
    parser.add_argument("--weights", choices=["f32", "bf16", "auto"], default="f32")
    parser.add_argument("--split-share", type=float, default=0.3, help="share also split [0.3]")
    parser.add_argument("--tolerance", type=float, default=1e-4)
    parser.add_argument("--keep", action="store_true", help="keep directories that pass, too")
    args = parser.parse_args()
    workdir = args.workdir or Path(tempfile.mkdtemp(prefix="compare_engine."))
    workdir.mkdir(parents=True, exist_ok=True)
    options = Options(
        engine=tuple(shlex.split(args.engine)),
        weights=args.weights,
        seed=args.seed,
        layers=args.layers,
        workdir=workdir.resolve(),
        split_share=args.split_share,
        tolerance=args.tolerance,
        keep=args.keep,
    )
    if shutil.which(options.engine[0]) is None:
        parser.error(f"no such program: {options.engine[0]}")
    indices = range(args.first, args.first + args.count)
    batches = [list(indices[i : i + args.batch]) for i in range(0, args.count, args.batch)]
    begin, cases = time.monotonic(), []
    with ProcessPoolExecutor(args.jobs) as pool:
        futures = [pool.submit(run_batch, options, batch) for batch in batches]
        for number, future in enumerate(as_completed(futures), 1):
            cases += future.result()
            failed = sum(bool(case.failures) for case in cases)
            if number * 10 // len(batches) > (number - 1) * 10 // len(batches):
                print(f"{len(cases)}/{args.count} done, {failed} failed", flush=True)
    status = report(cases, options, time.monotonic() - begin)
    if not args.workdir and status == 0 and not args.keep:
        shutil.rmtree(workdir)
    return status


if __name__ == "__main__":
    sys.exit(main())
