"""config.json: what is accepted, and that errors name the key."""

from __future__ import annotations

import json
import math
import unittest

from training.bst_train.config import AttentionConfig, ConfigError, ModelConfig
from training.tests.tiny import TRANSFORMER, bst, every_layer, tiny_config


class ConfigTest(unittest.TestCase):
    def test_round_trip(self) -> None:
        layers = tuple(every_layer().values())
        config = tiny_config(
            layers, AttentionConfig(position="t5"), tokenizer_file="tokenizer.model",
            bos_token_id=None,
        )
        self.assertEqual(ModelConfig.from_json(json.loads(json.dumps(config.to_json()))), config)

    def test_discretization_has_a_default(self) -> None:
        for kernel, default in (("s4d", "zoh"), ("dss", "zoh"), ("s4", "bilinear"), ("s5", "zoh")):
            data = tiny_config((bst(kernel),)).to_json()
            del data["layers"][0]["ssm"]["discretization"]
            ssm = ModelConfig.from_json(data).layers[0].ssm
            assert ssm is not None
            self.assertEqual(ssm.discretization, default)

    def _refused(self, key: str, change: dict) -> None:
        data = tiny_config().to_json()
        data.update(change)
        with self.assertRaises(ConfigError) as caught:
            ModelConfig.from_json(data)
        self.assertIn(key, str(caught.exception))

    def test_errors_name_the_key(self) -> None:
        self._refused("surprise", {"surprise": 1})
        self._refused("window", {"window": 0})
        self._refused("window", {"window": "8"})
        self._refused("head_dim", {"head_dim": 7})
        self._refused("bos_token_id", {"bos_token_id": 259})
        for value in (0.0, -1e-6, 1e-60, 1e39, math.inf, math.nan):
            self._refused("norm_eps", {"norm_eps": value})
        for value in (1e39, -1e300, math.inf, math.nan):
            self._refused("logit_scale", {"logit_scale": value})
        for theta in (0.0, -1.0, 1e-60, 1e16, math.inf, math.nan):
            attention = {**tiny_config().to_json()["attention"], "rope_theta": theta}
            self._refused("attention.rope_theta", {"attention": attention})
        for file in ("", ".", "..", "../tokenizer.model", "/tmp/t", "a\\b", "a\0"):
            self._refused("tokenizer.file", {"tokenizer": {"type": "sentencepiece", "file": file}})
        missing = tiny_config().to_json()
        del missing["norm_eps"]
        with self.assertRaisesRegex(ConfigError, "norm_eps"):
            ModelConfig.from_json(missing)

    def test_any_scale_and_epsilon_of_float32(self) -> None:
        for change in ({"logit_scale": 0}, {"logit_scale": -3e38}, {"norm_eps": 3e38},
                       {"norm_eps": 1e-45}):
            data = tiny_config().to_json()
            data.update(change)
            self.assertEqual(ModelConfig.from_json(data).to_json(), data)

    def _layer_refused(self, key: str, layer: dict) -> None:
        self._refused(key, {"layers": [TRANSFORMER.to_json(), layer]})

    def test_a_layer_has_exactly_the_keys_of_its_kind(self) -> None:
        s4d = {"kernel": "s4d", "state_size": 4}
        single = {"type": "bst", "context": "single_head", "ssm": s4d}
        self._layer_refused("layers[1].type", {"type": "mamba"})
        self._layer_refused("layers[1].window", {"type": "transformer", "window": 8})
        self._layer_refused("layers[1].num_states", {**single, "num_states": 4})
        self._layer_refused("layers[1].num_states", {**single, "context": "multi_filter"})
        self._layer_refused("layers[1].context", {**single, "context": "double_head"})
        self._layer_refused("layers[1].gate", {**single, "gate": "fixed"})
        self._layer_refused("layers[1].gate", {"type": "brect", "num_states": 4})
        self._layer_refused(
            "layers[1].gate", {"type": "brect", "num_states": 4, "gate": "lstm"})
        self._layer_refused(
            "layers[1].num_states", {"type": "brect", "num_states": 0, "gate": "fixed"})
        gss = {"type": "gss", "inner_size": 8, "ssm_size": 4, "ssm": s4d}
        self._layer_refused("layers[1].context", {**gss, "context": "single_head"})
        self._layer_refused("layers[1].inner_size", {**gss, "inner_size": -1})
        self._layer_refused(
            "layers[1].ssm.kernel", {**gss, "ssm": {"kernel": "s5", "state_size": 4}})

    def test_a_kernel_has_exactly_its_keys(self) -> None:
        def refused(key: str, ssm: dict) -> None:
            self._layer_refused(
                f"layers[1].ssm.{key}", {"type": "bst", "context": "single_head", "ssm": ssm})

        refused("kernel", {"kernel": "hyena", "length": 4})
        refused("state_size", {"kernel": "s4d", "state_size": 3})
        refused("state_size", {"kernel": "s5", "state_size": 3})
        refused("state_size", {"kernel": "dss", "state_size": 0})
        refused("state_size", {"kernel": "s4"})
        refused("length", {"kernel": "s4d", "state_size": 4, "length": 4})
        refused("length", {"kernel": "explicit", "length": 0})
        refused("state_size", {"kernel": "explicit", "length": 4, "state_size": 4})
        refused("discretization", {"kernel": "explicit", "length": 4, "discretization": "zoh"})
        refused("discretization", {"kernel": "dss", "state_size": 4, "discretization": "bilinear"})
        refused("discretization", {"kernel": "s4", "state_size": 4, "discretization": "zoh"})


if __name__ == "__main__":
    unittest.main()
