"""The model computes the documented function: golden logits, causality, hand-over, gradients."""

from __future__ import annotations

import json
import sys
import tempfile
import unittest
from pathlib import Path
from typing import List

import numpy as np
import torch

from training.bst_train.attention import t5_bucket
from training.bst_train.checkpoint import load_model
from training.bst_train.config import AttentionConfig
from training.bst_train.kernels import SsmOptions
from training.bst_train.loss import token_losses
from training.bst_train.model import LanguageModel, split_state, stack_states
from training.bst_train.parts import RmsNorm
from training.tests.tiny import (
    BRECT,
    TRANSFORMER,
    bst,
    every_layer,
    gss,
    random_model,
    tiny_config,
)

GOLDEN = Path(__file__).resolve().parents[2] / "tests" / "golden"
sys.path.insert(0, str(GOLDEN))

import evaluator  # noqa: E402
import random_checkpoint  # noqa: E402

ATTENTIONS = (
    AttentionConfig(),
    AttentionConfig(include_self=False, position="t5", t5_num_buckets=8, t5_max_distance=16),
    AttentionConfig(include_self=False, empty_prefix="zeros", position="none"),
    AttentionConfig(empty_prefix="zeros", qk_norm=False, position="rope"),
    AttentionConfig(scope="block", position="t5", t5_num_buckets=4, t5_max_distance=8),
    AttentionConfig(scope="block", include_self=False, qk_norm=False, position="rope"),
)

# Few layers that together have every context, kernel and kind of state.
MIXTURE = (
    TRANSFORMER, bst("s4"), bst("s5", "multi_head"), bst("explicit", "multi_filter"), BRECT, gss(),
)


def relative_rms(actual: np.ndarray, expected: np.ndarray) -> float:
    return float(np.sqrt(np.square(actual - expected).sum() / np.square(expected).sum()))


class GoldenTest(unittest.TestCase):
    """Logits made in float64 by a program that shares nothing with this package."""

    def test_golden_logits(self) -> None:
        directories = sorted(path.parent for path in GOLDEN.glob("*/expected_logits.npy"))
        self.assertGreaterEqual(len(directories), 8)
        for directory in directories:
            with self.subTest(name=directory.name), torch.no_grad():
                model = load_model(directory)
                tokens = torch.tensor(json.loads((directory / "tokens.json").read_text()))
                expected = np.load(directory / "expected_logits.npy")
                logits = model(tokens.unsqueeze(0))[0][0].numpy()
                # Float32 rounding through a few layers; 4e-7 to 1.3e-6 were measured.
                self.assertLess(relative_rms(logits, expected), 1e-5)

    def test_greedy_continuation(self) -> None:
        for name in ("bst_single_head_s4d", "hybrid"):
            directory = GOLDEN / name
            model = load_model(directory)
            expected = json.loads((directory / "expected_greedy.json").read_text())["tokens"]
            tokens = json.loads((directory / "tokens.json").read_text())
            with torch.no_grad():
                for wanted in expected:
                    logits = model(torch.tensor([tokens]))[0][0, -1]
                    self.assertEqual(int(logits.argmax()), wanted)
                    tokens.append(wanted)

    def test_random_checkpoints(self) -> None:
        """Odd sizes, all options, mixed storage types and shards, against the evaluator."""
        kinds = set()
        for index in range(24):
            with self.subTest(index=index), tempfile.TemporaryDirectory() as name:
                directory = Path(name)
                config = random_checkpoint.generate(directory, 7, index, "all")
                for layer in config["layers"]:
                    kinds.add((layer["type"], layer.get("context"), layer.get("num_states", 0) > 0))
                tokens = json.loads((directory / "tokens.json").read_text())
                expected = evaluator.evaluate(directory, tokens)
                with torch.no_grad():
                    logits = load_model(directory)(torch.tensor([tokens]))[0][0].numpy()
                self.assertLess(relative_rms(logits, expected), 1e-4)
        self.assertEqual(len(kinds), 6)


class SequenceTest(unittest.TestCase):
    def _models(self) -> List[LanguageModel]:
        """Every layer between transformers, and the mixture with every kind of attention."""
        models = [
            random_model(tiny_config((TRANSFORMER, layer)), seed)
            for seed, layer in enumerate(every_layer().values())
        ]
        return models + [
            random_model(tiny_config(MIXTURE, attention), seed)
            for seed, attention in enumerate(ATTENTIONS)
        ]

    def test_segments_equal_the_whole(self) -> None:
        tokens = torch.randint(0, 256, (2, 83), generator=torch.Generator().manual_seed(1))
        for model in self._models():
            with self.subTest(config=model.config), torch.no_grad():
                whole = model(tokens)[0].numpy()
                for cuts in ([0, 8, 83], [0, 40, 48, 83], [0, 24, 72, 80, 83]):
                    state, parts = None, []
                    for begin, end in zip(cuts, cuts[1:]):
                        logits, state = model(tokens[:, begin:end], state)
                        parts.append(logits.numpy())
                    self.assertLess(relative_rms(np.concatenate(parts, 1), whole), 2e-5)

    def test_rows_of_a_batch_may_start_at_different_places(self) -> None:
        tokens = torch.randint(0, 256, (2, 40), generator=torch.Generator().manual_seed(2))
        for model in self._models():
            with self.subTest(config=model.config), torch.no_grad():
                before = split_state(model(tokens[:1, :16])[1])[0]
                state = stack_states([before, None], before)
                both = model(tokens[:, 16:], state, torch.tensor([False, True]))[0].numpy()
                first = model(tokens[:1])[0][:, 16:].numpy()
                second = model(tokens[1:, 16:])[0].numpy()
                self.assertLess(relative_rms(both, np.concatenate([first, second])), 2e-5)

    def test_nothing_looks_ahead(self) -> None:
        tokens = torch.randint(0, 256, (1, 40), generator=torch.Generator().manual_seed(3))
        for model in self._models():
            with self.subTest(config=model.config), torch.no_grad():
                logits = model(tokens)[0]
                for position in (13, 16, 39):
                    changed = tokens.clone()
                    changed[0, position] = (changed[0, position] + 1) % 256
                    other = model(changed)[0]
                    # The FFT spreads rounding errors over the whole segment.
                    difference = (other - logits)[0, :position].abs().max()
                    self.assertLess(float(difference), 2e-4)
                    self.assertGreater(float((other - logits)[0, position].abs().max()), 1e-3)

    def test_context_reaches_beyond_the_windows(self) -> None:
        for name, layer in every_layer().items():
            if name in ("transformer", "gss_dss") or name.endswith("explicit"):
                continue   # the taps of the small filters do not reach far enough
            model = random_model(tiny_config((TRANSFORMER, layer)), 4)
            tokens = torch.randint(0, 256, (1, 48), generator=torch.Generator().manual_seed(4))
            changed = tokens.clone()
            changed[0, :8] = (changed[0, :8] + 1) % 256
            with self.subTest(name=name), torch.no_grad():
                difference = (model(tokens)[0] - model(changed)[0])[0, 32:].abs().max()
                self.assertGreater(float(difference), 1e-3)

    def test_new_layers_compute_their_transformer(self) -> None:
        for layer in (bst(), bst("explicit", "multi_filter"), BRECT):
            torch.manual_seed(5)
            model = LanguageModel(tiny_config((TRANSFORMER, layer)))
            twin = LanguageModel(tiny_config((TRANSFORMER, TRANSFORMER)))
            weights = model.state_dict()
            wanted = {name: weights[name] for name in twin.state_dict()}
            name = "layers.1.attn.o_proj.weight"
            wanted[name] = weights[name][:, : twin.config.attention_size]
            twin.load_state_dict(wanted)
            tokens = torch.randint(0, 256, (1, 20))
            self.assertTrue(torch.allclose(model(tokens)[0], twin(tokens)[0], atol=1e-6))

    def _assert_gradients(self, model: LanguageModel) -> None:
        tokens = torch.randint(0, 256, (1, 40), generator=torch.Generator().manual_seed(6))
        hidden, _ = model.hidden(tokens)
        token_losses(model, hidden, tokens).sum().backward()
        for name, parameter in model.named_parameters():
            self.assertIsNotNone(parameter.grad, name)
            assert parameter.grad is not None
            self.assertTrue(bool(torch.isfinite(parameter.grad).all()), name)
            self.assertGreater(float(parameter.grad.abs().sum()), 0.0, name)

    def test_every_parameter_gets_a_gradient(self) -> None:
        for activation in ("relu", "gelu", "geglu", "swiglu"):
            with self.subTest(activation=activation):
                config = tiny_config(
                    (TRANSFORMER, bst()), AttentionConfig(position="t5"),
                    ffn_activation=activation, tie_embeddings=False,
                )
                options = [SsmOptions(), SsmOptions(with_b=True)]
                self._assert_gradients(random_model(config, 6, options))
        for name, layer in every_layer().items():
            with self.subTest(name=name):
                self._assert_gradients(random_model(tiny_config((TRANSFORMER, layer)), 7))


class PartsTest(unittest.TestCase):
    def test_t5_buckets(self) -> None:
        starts = [next(n for n in range(200) if t5_bucket(n, 32, 128) == b) for b in range(16, 32)]
        self.assertEqual(
            starts, [16, 19, 21, 24, 27, 31, 35, 40, 46, 52, 59, 67, 77, 87, 99, 113]
        )
        self.assertEqual(t5_bucket(8, 8, 16), 6)
        self.assertEqual(t5_bucket(7, 8, 16), 5)
        self.assertEqual(t5_bucket(10**6, 32, 128), 31)

    def test_norm_gradient(self) -> None:
        torch.manual_seed(8)
        norm = RmsNorm(5, 1e-3)
        weight = torch.randn(5, requires_grad=True)
        norm.weight.data = weight.detach().clone()
        x = torch.randn(3, 7, 5, requires_grad=True)
        factor = torch.randn(3, 7, 5)
        (norm(x) * factor).sum().backward()
        assert x.grad is not None and norm.weight.grad is not None
        by_hand, x.grad = x.grad.clone(), None
        plain = weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-3)
        (plain * factor).sum().backward()
        self.assertTrue(torch.allclose(by_hand, x.grad, atol=1e-6))
        self.assertTrue(torch.allclose(norm.weight.grad, weight.grad, atol=1e-5))

    def test_chunked_loss_equals_plain_loss(self) -> None:
        model = random_model(tiny_config((TRANSFORMER,)), 9)
        hidden = torch.randn(2, 11, 24, requires_grad=True)
        targets = torch.randint(0, 259, (2, 11))
        targets[1, 4:] = -1
        losses = token_losses(model, hidden, targets, chunk=5)
        losses.sum().div(3.0).backward()
        assert hidden.grad is not None and model.embed.weight.grad is not None
        gradients = hidden.grad.clone(), model.embed.weight.grad.clone()
        hidden.grad, model.embed.weight.grad = None, None
        logits = hidden @ model.embed.weight.t() * model.config.logit_scale
        plain = torch.nn.functional.cross_entropy(
            logits.reshape(22, -1), targets.reshape(-1), ignore_index=-1, reduction="none"
        )
        plain.sum().div(3.0).backward()
        self.assertTrue(torch.allclose(losses.reshape(-1), plain, atol=1e-5))
        self.assertTrue(torch.allclose(gradients[0], hidden.grad, atol=1e-5))
        self.assertTrue(torch.allclose(gradients[1], model.embed.weight.grad, atol=1e-5))


if __name__ == "__main__":
    unittest.main()
