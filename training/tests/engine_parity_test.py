"""PyTorch and the engine compute the same logits from the same exported checkpoint.

    python3 training/tests/engine_parity_test.py --engine build/release/.../bst-logits

Random models of odd sizes, with every layer and every kernel of the format and all attention and
feed-forward options, are exported, some as F32 and some as BF16. (`--layers basic` keeps to
transformer layers and single-head S4D BST layers.) The engine is run as

    ENGINE --backend=BACKEND --weights=f32 DIR [DIR...]

reads DIR/tokens.json and writes DIR/logits.BACKEND.npy, float32 [L, V]. They are compared with the
logits of the re-imported checkpoint, so that the rounding of the weights is the same on both sides.
The measure is the relative RMS error over the whole array, at most 1e-4; float32 arithmetic gives
1e-7 to 1e-6. A directory that fails is kept and named.

Without --engine nothing is run, and the exit status is 0 with a message.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import List, Sequence, Tuple

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from training.bst_train.checkpoint import export_model, load_model  # noqa: E402
from training.bst_train.config import (  # noqa: E402
    ACTIVATIONS,
    CONTEXTS,
    DISCRETIZATIONS,
    GSS_KERNELS,
    KERNELS,
    LAYER_TYPES,
    AttentionConfig,
    LayerConfig,
    ModelConfig,
    SsmConfig,
)
from training.bst_train.kernels import SsmOptions  # noqa: E402
from training.tests.tiny import random_model  # noqa: E402

TOLERANCE = 1e-4


def random_ssm(rng: random.Random, kernels: Sequence[str]) -> SsmConfig:
    kernel = rng.choice(kernels)
    if kernel == "explicit":
        return SsmConfig(kernel, length=rng.randint(1, 150))
    size = rng.randint(1, 20) if kernel == "dss" else 2 * rng.randint(1, 10)
    return SsmConfig(kernel, size, rng.choice(DISCRETIZATIONS[kernel]))


def random_layer(rng: random.Random, layers: str) -> LayerConfig:
    if layers == "basic":
        if rng.random() < 0.4:
            return LayerConfig()
        return LayerConfig("bst", "single_head", ssm=random_ssm(rng, ["s4d"]))
    kind = rng.choice([*LAYER_TYPES, "bst"])
    if kind == "bst":
        context = rng.choice(CONTEXTS)
        states = rng.randint(1, 20) if context == "multi_filter" else None
        return LayerConfig(kind, context, states, ssm=random_ssm(rng, KERNELS))
    if kind == "brect":
        return LayerConfig(kind, num_states=rng.randint(1, 40))
    if kind == "gss":
        ssm = random_ssm(rng, GSS_KERNELS)
        return LayerConfig(
            kind, inner_size=rng.randint(5, 70), ssm_size=rng.randint(3, 40), ssm=ssm)
    return LayerConfig()


def random_config(rng: random.Random, layer_kinds: str) -> Tuple[ModelConfig, List[SsmOptions]]:
    """A configuration with sizes that no vector width divides, and what it leaves open."""
    scope = rng.choice(["sliding", "sliding", "block"])
    buckets = rng.choice([2, 6, 8, 32])
    position = rng.choice(["none", "t5", "rope"])
    attention = AttentionConfig(
        scope=scope,
        include_self=rng.random() < 0.6,
        empty_prefix=rng.choice(["masked", "zeros"]) if scope == "sliding" else "masked",
        qk_norm=rng.random() < 0.5,
        position=position,
        t5_num_buckets=buckets,
        t5_max_distance=buckets // 2 + rng.randint(1, 40),
        rope_theta=rng.choice([100.0, 10000.0]),
    )
    layers = [random_layer(rng, layer_kinds) for _ in range(rng.randint(1, 4))]
    options = [
        SsmOptions(with_b=rng.random() < 0.5, taps=rng.random() < 0.3) for _ in layers
    ]
    head_dim = rng.choice([4, 6, 10, 16, 34, 64])
    config = ModelConfig(
        vocab_size=rng.randint(259, 700),
        hidden_size=rng.choice([8, 17, 30, 33, 64, 100]),
        num_heads=rng.randint(1, 5),
        head_dim=head_dim if position == "rope" else head_dim + rng.randint(0, 1),
        ffn_size=rng.choice([5, 32, 67, 130]),
        ffn_activation=rng.choice(ACTIVATIONS),
        window=rng.choice([1, 2, 5, 8, 13, 32, 64]),
        norm_eps=rng.choice([1e-6, 1e-3]),
        logit_scale=rng.uniform(0.2, 2.0),
        tie_embeddings=rng.random() < 0.5,
        layers=tuple(layers),
        attention=attention,
        bos_token_id=256,
        eos_token_id=rng.choice([257, None]),
    )
    return config, options


def write_case(directory: Path, seed: int, layers: str) -> None:
    """Exports one random model with a prompt and, as expected.npy, PyTorch's logits."""
    rng = random.Random(seed)
    config, options = random_config(rng, layers)
    model = random_model(config, seed, options)
    export_model(model, directory, dtype=rng.choice([torch.float32, torch.bfloat16]))
    length = rng.randint(1, 5 * config.window + 40)
    tokens = [rng.randrange(config.vocab_size) for _ in range(length)]
    (directory / "tokens.json").write_text(json.dumps(tokens), encoding="utf-8")
    with torch.no_grad():
        logits = load_model(directory).eval()(torch.tensor([tokens]))[0][0]
    np.save(directory / "expected.npy", logits.numpy())


def relative_rms(actual: np.ndarray, expected: np.ndarray) -> float:
    wanted = expected.astype(np.float64)
    return float(np.sqrt(np.square(actual - wanted).sum() / np.square(wanted).sum()))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", type=Path, help="the bst-logits program")
    parser.add_argument("--backend", default="reference,cpu", help="default: %(default)s")
    parser.add_argument("--count", type=int, default=20, help="models (default %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of the first (default %(default)s)")
    parser.add_argument("--layers", choices=("basic", "all"), default="all",
                        help="default: %(default)s")
    args = parser.parse_args()
    if args.engine is None:
        print("skipped: no --engine given")
        return 0
    torch.set_num_threads(1)
    work = Path(tempfile.mkdtemp(prefix="bst_parity_"))
    directories = [work / f"seed{args.seed + index}" for index in range(args.count)]
    for index, directory in enumerate(directories):
        write_case(directory, args.seed + index, args.layers)
    failures = 0
    for backend in args.backend.split(","):
        command = [str(args.engine), f"--backend={backend}", "--weights=f32"]
        result = subprocess.run(command + [str(d) for d in directories], check=False)
        if result.returncode != 0:
            print(f"{backend}: the engine failed with status {result.returncode}")
            failures += 1
        worst = 0.0
        for directory in directories:
            output = directory / f"logits.{backend}.npy"
            error = float("inf")
            if output.exists():
                actual, expected = np.load(output), np.load(directory / "expected.npy")
                if actual.shape == expected.shape:
                    error = relative_rms(actual, expected)
            worst = max(worst, error)
            if not error <= TOLERANCE:
                print(f"{backend}: {directory}: relative RMS {error:.2e}")
                failures += 1
        print(f"{backend}: {args.count} models, worst relative RMS {worst:.2e}")
    if failures == 0:
        shutil.rmtree(work)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
