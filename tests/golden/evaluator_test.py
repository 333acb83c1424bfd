#!/usr/bin/env python3
"""Tests of the evaluator: against the golden numbers, against recurrences, against itself."""

from __future__ import annotations

import json
import math
import tempfile
import unittest
from pathlib import Path

import numpy as np

import evaluator
import random_checkpoint
import safetensors_file

HERE = Path(__file__).resolve().parent
GOLDEN = sorted(path.parent for path in HERE.glob("*/expected_logits.npy"))


class Stub(evaluator.Checkpoint):
    """Tensors without a directory."""

    def __init__(self, **tensors: object) -> None:
        self.tensors = {f"x.{name}": np.asarray(value, float) for name, value in tensors.items()}
        self._used = set()


def pairs(values: object) -> np.ndarray:
    z = np.asarray(values, complex)
    return np.stack([z.real, z.imag], axis=-1)


def impulse_response(stub: Stub, config: dict, length: int) -> np.ndarray:
    impulse = np.zeros((length, 1))
    impulse[0] = 1.0
    return evaluator.ssm(stub, "x", config, impulse, 1)[:, 0, 0]


class GoldenTest(unittest.TestCase):
    def test_logits(self) -> None:
        self.assertEqual(len(GOLDEN), 8)
        for directory in GOLDEN:
            with self.subTest(directory.name):
                tokens = json.loads((directory / "tokens.json").read_text())
                logits = evaluator.evaluate(directory, tokens)
                expected = np.load(directory / "expected_logits.npy")
                error = evaluator.relative_rms(logits, expected)
                print(f"{directory.name:22} relative RMS {error:.2e}")
                self.assertLessEqual(error, 1e-6)

    def test_greedy(self) -> None:
        """Fed with prompt and continuation, every argmax and margin must be the recorded one."""
        for directory in GOLDEN:
            with self.subTest(directory.name):
                prompt = json.loads((directory / "tokens.json").read_text())
                recorded = json.loads((directory / "expected_greedy.json").read_text())
                chosen = recorded["tokens"]
                logits = evaluator.evaluate(directory, prompt + chosen)[len(prompt) - 1 : -1]
                self.assertEqual(logits.argmax(axis=1).tolist(), chosen)
                ordered = np.sort(logits, axis=1)
                margins = ordered[:, -1] - ordered[:, -2]
                np.testing.assert_allclose(margins, recorded["margins"], atol=1e-5)

    def test_greedy_helper(self) -> None:
        directory = HERE / "hybrid"
        prompt = json.loads((directory / "tokens.json").read_text())
        tokens, margins = evaluator.greedy(evaluator.Model(directory), prompt, 5)
        recorded = json.loads((directory / "expected_greedy.json").read_text())
        self.assertEqual(tokens, recorded["tokens"][:5])
        np.testing.assert_allclose(margins, recorded["margins"][:5], atol=1e-5)

    def test_scores(self) -> None:
        directory = HERE / "brect"
        tokens = json.loads((directory / "tokens.json").read_text())
        scores = evaluator.score_expectation(evaluator.Model(directory), tokens)
        self.assertEqual(len(scores), len(tokens))
        self.assertIsNone(scores[0])
        logits = np.load(directory / "expected_logits.npy").astype(float)
        for position, token in enumerate(tokens[1:]):
            p = math.exp(logits[position, token]) / np.exp(logits[position]).sum()
            self.assertAlmostEqual(scores[position + 1], math.log(p), delta=1e-5)


class KernelTest(unittest.TestCase):
    def test_known_impulse_responses(self) -> None:
        """Two S4D modes a = −1/2, −1/2 + iπ with Δ = 0.1, b = c = 1, from a published start."""
        zoh = [0.387011209, 0.350341188, 0.300984953, 0.244020162, 0.184808924, 0.128456684]
        bilinear = [0.385766598, 0.349877232, 0.301444902, 0.245362496, 0.186828387, 0.130826824]
        for method, expected in (("zoh", zoh), ("bilinear", bilinear)):
            stub = Stub(
                log_dt=[[math.log(0.1)]],
                log_neg_a_real=np.full((1, 1, 2), math.log(0.5)),
                a_imag=[[[0.0, math.pi]]],
                c=pairs(np.ones((1, 1, 2))),
                d=[[0.0]],
            )
            config = {"kernel": "s4d", "state_size": 4, "discretization": method}
            np.testing.assert_allclose(impulse_response(stub, config, 6), expected, atol=1e-9)

    def test_dss(self) -> None:
        """Two full modes, a = −1 + i and −1/e + i·sqrt(e), with Δ = 1 and the plain real part."""
        stub = Stub(
            log_dt=[[0.0]],
            log_neg_a_real=[0.0, -1.0],
            a_imag=[1.0, math.exp(0.5)],
            w=pairs(np.ones((1, 1, 2))),
            d=[[0.0]],
        )
        a = np.array([-1.0 + 1.0j, -math.exp(-1.0) + 1j * math.exp(0.5)])
        taps = [float(((np.exp(a) - 1) / a * np.exp(a * n)).sum().real) for n in range(5)]
        actual = impulse_response(stub, {"kernel": "dss", "state_size": 2}, 5)
        np.testing.assert_allclose(actual, taps, atol=1e-12)

    def test_s5_known_outputs(self) -> None:
        stub = Stub(
            lambda_real=[-0.5, -0.5],
            lambda_imag=[1.0, 2.0],
            log_step=np.log([0.1, 0.2]),
            b=pairs([[1, 2], [3, 4]]),
            c=pairs(np.eye(2)[None]),
            d=np.zeros((1, 2)),
        )
        u = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
        y = evaluator.ssm(stub, "x", {"kernel": "s5", "state_size": 4}, u, 1)[:, 0]
        expected = [
            [0.194761382, 1.112492257],
            [0.572942163, 2.332386584],
            [1.122100133, 4.232305323],
        ]
        np.testing.assert_allclose(y, expected, atol=1e-9)

    def test_s5_pure_sum(self) -> None:
        """λ = 0 makes Ā = 1 and B̄ = Δ b: a running sum."""
        stub = Stub(
            lambda_real=[0.0],
            lambda_imag=[0.0],
            log_step=[math.log(0.25)],
            b=pairs([[1]]),
            c=pairs([[[2]]]),
            d=[[0.5]],
        )
        y = impulse_response(stub, {"kernel": "s5", "state_size": 2}, 4)
        np.testing.assert_allclose(y, [1.5, 1.0, 1.0, 1.0], atol=1e-12)

    def test_s4_against_its_recurrence(self) -> None:
        """The rank-one step, which inverts I − Δ/2 A by Sherman-Morrison on the half state.

        With ⟨a, b⟩ = Σ a b, q = conj(p), E = 2/Δ + Λ, G = 1/(2/Δ − Λ), r = q G/(1 + 2Re⟨q, G p⟩):
        t = E x − 2Re⟨q, x⟩ p + 2 b u,  x ← G (t − 2Re⟨r, t⟩ p),  y = 2Re⟨c, x⟩ + d u.
        """
        rng = np.random.default_rng(5)
        m, step, length = 4, 0.2, 40
        b, c, p = (rng.normal(size=m) + 1j * rng.normal(size=m) for _ in range(3))
        log_real, imag = rng.normal(size=m), 3.0 * rng.normal(size=m)
        stub = Stub(
            log_dt=[[math.log(step)]],
            log_neg_a_real=log_real[None, None],
            a_imag=imag[None, None],
            b=pairs(b[None, None]),
            c=pairs(c[None, None]),
            p=pairs(p[None, None]),
            d=[[0.7]],
        )
        u = rng.normal(size=length)
        y = evaluator.ssm(stub, "x", {"kernel": "s4", "state_size": 2 * m}, u[:, None], 1)[:, 0, 0]
        lam, q = -np.exp(log_real) + 1j * imag, p.conj()
        e, g = 2 / step + lam, 1 / (2 / step - lam)
        r = q * g / (1 + 2 * (q * g * p).sum().real)
        x, expected = np.zeros(m, complex), []
        for value in u:
            t = e * x - 2 * (q * x).sum().real * p + 2 * b * value
            x = g * (t - 2 * (r * t).sum().real * p)
            expected.append(2 * (c * x).sum().real + 0.7 * value)
        np.testing.assert_allclose(y, expected, atol=1e-10)

    def test_explicit(self) -> None:
        """Taps beyond the filter are zero, and the skip is added."""
        stub = Stub(filter=[[[1.0, -2.0, 3.0]]], d=[[0.5]])
        u = np.array([[1.0], [10.0], [100.0], [1000.0], [0.0], [0.0]])
        y = evaluator.ssm(stub, "x", {"kernel": "explicit", "length": 3}, u, 1)[:, 0, 0]
        expected = [1.5, 13.0, 133.0, 1330.0, -1700.0, 3000.0]
        np.testing.assert_allclose(y, expected, atol=1e-9)

    def test_t5_boundaries(self) -> None:
        """First distance of the logarithmic buckets; boundaries belong to the upper bucket."""
        buckets = evaluator.t5_bucket(np.arange(200), 32, 128)
        starts = [int(np.argmax(buckets == n)) for n in range(16, 32)]
        expected = [16, 19, 21, 24, 27, 31, 35, 40, 46, 52, 59, 67, 77, 87, 99, 113]
        self.assertEqual(starts, expected)
        self.assertEqual(buckets[-1], 31)
        self.assertEqual(evaluator.t5_bucket(np.array([3, 4, 7, 8]), 8, 16).tolist(), [3, 4, 5, 6])


class StorageTest(unittest.TestCase):
    def test_round_trip(self) -> None:
        rng = np.random.default_rng(1)
        values = rng.normal(size=(3, 5)).astype(np.float32)
        bound = {"F32": 0.0, "F16": 2.0**-11, "BF16": 2.0**-8}
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "x.safetensors"
            safetensors_file.write(path, {name: (values, name) for name in bound})
            for name, tensor in safetensors_file.read(path).items():
                self.assertTrue(np.all(np.abs(tensor - values) <= bound[name] * np.abs(values)))

    def test_random_checkpoints(self) -> None:
        """They load with no tensor missing or left over, and the logits are causal and sane."""
        for index in range(50):
            layers = ("basic", "all")[index % 2]
            with self.subTest(index=index), tempfile.TemporaryDirectory() as folder:
                directory = Path(folder)
                random_checkpoint.generate(directory, 7, index, layers)
                tokens = json.loads((directory / "tokens.json").read_text())
                model = evaluator.Model(directory)
                logits = model.logits(tokens)
                self.assertTrue(0.3 < logits.std() < 5.0)
                cut = 1 + index * len(tokens) // 50
                np.testing.assert_allclose(model.logits(tokens[:cut]), logits[:cut], atol=1e-10)

    def test_superfluous_tensor(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            directory = Path(folder)
            random_checkpoint.generate(directory, 1, 0, "basic")
            model = evaluator.Model(directory)
            model.ck.tensors["layers.9.attn.q_proj.weight"] = np.zeros((2, 2))
            with self.assertRaisesRegex(ValueError, "superfluous"):
                model.logits([1, 2, 3])


if __name__ == "__main__":
    unittest.main()
