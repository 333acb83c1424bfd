"""The model computes the documented function: golden logits, causality, hand-over, gradients."""

from __future__ import annotations

import json
import math
import unittest
from pathlib import Path
from typing import List

import numpy as np
import torch

from training.bst_train.attention import t5_bucket
from training.bst_train.checkpoint import load_model
from training.bst_train.config import AttentionConfig, ConfigError, ModelConfig, SsmConfig
from training.bst_train.model import (
    LanguageModel,
    RmsNorm,
    split_state,
    stack_states,
    token_losses,
)
from training.bst_train.ssm import S4d
from training.tests.tiny import TRANSFORMER, bst, random_model, tiny_config

GOLDEN = Path(__file__).resolve().parents[2] / "tests" / "golden"

ATTENTIONS = (
    AttentionConfig(),
    AttentionConfig(include_self=False, position="t5", t5_num_buckets=8, t5_max_distance=16),
    AttentionConfig(include_self=False, empty_prefix="zeros", position="none"),
    AttentionConfig(empty_prefix="zeros", qk_norm=False, position="rope"),
    AttentionConfig(scope="block", position="t5", t5_num_buckets=4, t5_max_distance=8),
    AttentionConfig(scope="block", include_self=False, qk_norm=False, position="rope"),
)


def relative_rms(actual: np.ndarray, expected: np.ndarray) -> float:
    return float(np.sqrt(np.square(actual - expected).sum() / np.square(expected).sum()))


class GoldenTest(unittest.TestCase):
    """Logits made in float64 by a program that shares nothing with this package."""

    def test_golden_logits(self) -> None:
        for name in ("transformer", "bst_single_head_s4d"):
            with self.subTest(name=name):
                directory = GOLDEN / name
                model = load_model(directory)
                tokens = torch.tensor(json.loads((directory / "tokens.json").read_text()))
                expected = np.load(directory / "expected_logits.npy")
                with torch.no_grad():
                    logits = model(tokens.unsqueeze(0))[0][0].numpy()
                # Float32 rounding through a few layers; 4e-7 was measured.
                self.assertLess(relative_rms(logits, expected), 1e-5)

    def test_greedy_continuation(self) -> None:
        directory = GOLDEN / "bst_single_head_s4d"
        model = load_model(directory)
        tokens = json.loads((directory / "tokens.json").read_text())
        expected = json.loads((directory / "expected_greedy.json").read_text())["tokens"][:8]
        for token in expected:
            with torch.no_grad():
                logits = model(torch.tensor([tokens]))[0]
            self.assertEqual(int(logits[0, -1].argmax()), token)
            tokens.append(token)


class FunctionTest(unittest.TestCase):
    def _model(self, attention: AttentionConfig, seed: int, window: int = 8) -> LanguageModel:
        config = tiny_config(
            (TRANSFORMER, bst(), bst(4, "bilinear")), attention, window=window
        )
        return random_model(config, seed, [False, True, False])

    def test_odd_windows(self) -> None:
        tokens = torch.randint(0, 256, (1, 40), generator=torch.Generator().manual_seed(1))
        for seed, attention in enumerate(ATTENTIONS):
            with self.subTest(attention=attention), torch.no_grad():
                model = self._model(attention, seed, window=7)
                whole = model(tokens)[0].numpy()
                first, state = model(tokens[:, :14])
                second = model(tokens[:, 14:], state)[0]
                parts = torch.cat([first, second], 1).numpy()
                self.assertLess(relative_rms(parts, whole), 1e-5)

    def test_segments_equal_the_whole(self) -> None:
        tokens = torch.randint(0, 256, (2, 61), generator=torch.Generator().manual_seed(1))
        for seed, attention in enumerate(ATTENTIONS):
            model = self._model(attention, seed)
            with torch.no_grad():
                whole = model(tokens)[0].numpy()
                for cut in (8, 24):
                    with self.subTest(attention=attention, cut=cut):
                        state = None
                        parts: List[np.ndarray] = []
                        for begin in range(0, 61, cut):
                            logits, state = model(tokens[:, begin : begin + cut], state)
                            parts.append(logits.numpy())
                        self.assertLess(relative_rms(np.concatenate(parts, 1), whole), 1e-5)

    def test_rows_of_a_batch_may_start_at_different_places(self) -> None:
        tokens = torch.randint(0, 256, (2, 24), generator=torch.Generator().manual_seed(2))
        for seed, attention in enumerate(ATTENTIONS):
            with self.subTest(attention=attention), torch.no_grad():
                model = self._model(attention, seed)
                before = split_state(model(tokens[:1, :16])[1])[0]
                state = stack_states([before, None], before)
                both = model(tokens[:, 16:], state, torch.tensor([False, True]))[0].numpy()
                first = model(tokens[:1])[0][:, 16:].numpy()
                second = model(tokens[1:, 16:])[0].numpy()
                self.assertLess(relative_rms(both, np.concatenate([first, second])), 1e-5)

    def test_nothing_looks_ahead(self) -> None:
        tokens = torch.randint(0, 256, (1, 40), generator=torch.Generator().manual_seed(3))
        for seed, attention in enumerate(ATTENTIONS):
            model = self._model(attention, seed)
            with torch.no_grad():
                logits = model(tokens)[0]
                for position in (1, 13, 16, 39):
                    with self.subTest(attention=attention, position=position):
                        changed = tokens.clone()
                        changed[0, position] = (changed[0, position] + 1) % 256
                        other = model(changed)[0]
                        # The FFT spreads rounding errors over the whole segment.
                        difference = (other - logits)[0, :position].abs().max()
                        self.assertLess(float(difference), 1e-4)
                        self.assertGreater(float((other - logits)[0, position].abs().max()), 1e-3)

    def test_context_reaches_beyond_the_windows(self) -> None:
        config = tiny_config((TRANSFORMER, bst()))
        model = random_model(config, 4)
        tokens = torch.randint(0, 256, (1, 64), generator=torch.Generator().manual_seed(4))
        changed = tokens.clone()
        changed[0, 0] = (changed[0, 0] + 1) % 256
        with torch.no_grad():
            difference = (model(tokens)[0] - model(changed)[0])[0, 40:].abs().max()
        self.assertGreater(float(difference), 1e-3)

    def test_new_bst_computes_its_transformer(self) -> None:
        torch.manual_seed(5)
        model = LanguageModel(tiny_config((TRANSFORMER, bst())))
        twin = LanguageModel(tiny_config((TRANSFORMER, TRANSFORMER)))
        weights = model.state_dict()
        wanted = {name: weights[name] for name in twin.state_dict()}
        name = "layers.1.attn.o_proj.weight"
        wanted[name] = weights[name][:, : twin.config.attention_size]
        twin.load_state_dict(wanted)
        tokens = torch.randint(0, 256, (1, 20))
        self.assertTrue(torch.allclose(model(tokens)[0], twin(tokens)[0], atol=1e-6))

    def test_every_parameter_gets_a_gradient(self) -> None:
        tokens = torch.randint(0, 256, (1, 24), generator=torch.Generator().manual_seed(6))
        for activation in ("relu", "gelu", "geglu", "swiglu"):
            with self.subTest(activation=activation):
                config = tiny_config(
                    (TRANSFORMER, bst()), AttentionConfig(position="t5"),
                    ffn_activation=activation, tie_embeddings=False,
                )
                model = random_model(config, 6, [False, True])
                hidden, _ = model.hidden(tokens)
                token_losses(model, hidden, tokens).sum().backward()
                for name, parameter in model.named_parameters():
                    self.assertIsNotNone(parameter.grad, name)
                    assert parameter.grad is not None
                    self.assertTrue(bool(torch.isfinite(parameter.grad).all()), name)
                    self.assertGreater(float(parameter.grad.abs().sum()), 0.0, name)


class PartsTest(unittest.TestCase):
    def test_t5_buckets(self) -> None:
        starts = [next(n for n in range(200) if t5_bucket(n, 32, 128) == b) for b in range(16, 32)]
        self.assertEqual(
            starts, [16, 19, 21, 24, 27, 31, 35, 40, 46, 52, 59, 67, 77, 87, 99, 113]
        )
        self.assertEqual(t5_bucket(8, 8, 16), 6)
        self.assertEqual(t5_bucket(7, 8, 16), 5)
        self.assertEqual(t5_bucket(10**6, 32, 128), 31)

    def test_s4d_kernel_values(self) -> None:
        """The impulse response of a = (-1/2, -1/2 + i pi), step 0.1, computed by hand."""
        expected = {
            "zoh": [0.387011209, 0.350341188, 0.300984953, 0.244020162, 0.184808924],
            "bilinear": [0.385766598, 0.349877232, 0.301444902, 0.245362496, 0.186828387],
        }
        for discretization, values in expected.items():
            ssm = S4d(1, SsmConfig(4, discretization))
            with torch.no_grad():
                ssm.log_dt.fill_(math.log(0.1))
                ssm.c[..., 0] = 1.0
                ssm.c[..., 1] = 0.0
                ssm.d.zero_()
                impulse = torch.zeros(1, 5, 1)
                impulse[0, 0, 0] = 1.0
                y = ssm(impulse, None)[0].flatten()
            self.assertTrue(torch.allclose(y, torch.tensor(values), atol=1e-6), discretization)

    def test_s4d_equals_its_recurrence(self) -> None:
        torch.manual_seed(7)
        for discretization in ("zoh", "bilinear"):
            ssm = S4d(3, SsmConfig(6, discretization), with_b=True)
            u = torch.randn(2, 45, 3)
            with torch.no_grad():
                state = torch.randn(2, 3, 3, 2)
                y, after = ssm(u, state)
                log_a_bar, b_bar = ssm._discretize()
                x = torch.view_as_complex(state)
                c = torch.view_as_complex(ssm.c.detach())
                steps = []
                for t in range(45):
                    x = torch.exp(log_a_bar) * x + b_bar * u[:, t].unsqueeze(-1)
                    steps.append(2.0 * (c * x).sum(-1).real + ssm.d[0] * u[:, t])
            self.assertTrue(torch.allclose(y, torch.stack(steps, 1), atol=2e-5))
            self.assertTrue(torch.allclose(torch.view_as_complex(after), x, atol=2e-5))

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


class ConfigTest(unittest.TestCase):
    def test_round_trip(self) -> None:
        config = tiny_config(
            (TRANSFORMER, bst(4, "bilinear")), AttentionConfig(position="t5"),
            tokenizer_file="tokenizer.model", bos_token_id=None,
        )
        self.assertEqual(ModelConfig.from_json(json.loads(json.dumps(config.to_json()))), config)

    def test_errors_name_the_key(self) -> None:
        def refused(key: str, change: dict) -> None:
            data = tiny_config().to_json()
            data.update(change)
            with self.assertRaises(ConfigError) as caught:
                ModelConfig.from_json(data)
            self.assertIn(key, str(caught.exception))

        refused("surprise", {"surprise": 1})
        refused("window", {"window": 0})
        refused("window", {"window": "8"})
        refused("head_dim", {"head_dim": 7})
        refused("bos_token_id", {"bos_token_id": 259})
        refused("layers[0].type", {"layers": [{"type": "gss"}]})
        refused("state_size", {"layers": [
            {"type": "bst", "context": "single_head", "ssm": {"kernel": "s4d", "state_size": 3}}
        ]})
        missing = tiny_config().to_json()
        del missing["norm_eps"]
        with self.assertRaisesRegex(ConfigError, "norm_eps"):
            ModelConfig.from_json(missing)


if __name__ == "__main__":
    unittest.main()
