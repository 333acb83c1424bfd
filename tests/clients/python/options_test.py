"""Options and prompts as they go on the wire."""

from __future__ import annotations

import array
import math
import unittest

import numpy

from bst_client import GenerateOptions, OutputOptions, SamplingOptions, StoppingOptions, _convert, _wire
from bst_client.options import detokenize_request, generate_request, score_request, tokenize_request


def field_names(message: type) -> set[str]:
    return {field.name for field in message.DESCRIPTOR.fields}


class OptionsTest(unittest.TestCase):
    def test_every_field_of_the_contract_is_an_option_and_the_other_way_round(self) -> None:
        request = _wire.GenerateRequest()
        groups = {"sampling": SamplingOptions, "stopping": StoppingOptions, "output": OutputOptions}
        for name, options in groups.items():
            self.assertEqual(set(options.__annotations__), field_names(type(getattr(request, name))), name)
        self.assertEqual(set(GenerateOptions.__annotations__) - {o for g in groups.values() for o in g.__annotations__},
                         field_names(_wire.GenerateRequest) - set(groups) - {"text", "token_ids"})

    def test_nothing_given_is_nothing_sent(self) -> None:
        expected = _wire.GenerateRequest(text="x")
        self.assertEqual(generate_request("x", {}), expected)
        self.assertEqual(generate_request("x", {"temperature": None, "stop_strings": None, "seed": None}), expected)

    def test_zero_is_sent(self) -> None:
        request = generate_request("x", {"temperature": 0, "seed": 0, "min_new_tokens": 0, "ignore_eos": False,
                                         "prompt_progress": False})
        for group, name in (("sampling", "temperature"), ("sampling", "seed"), ("stopping", "min_new_tokens"),
                            ("stopping", "ignore_eos"), ("output", "prompt_progress")):
            self.assertTrue(getattr(request, group).HasField(name), name)
        self.assertFalse(request.sampling.HasField("top_p"))

    def test_every_option_lands_in_its_field(self) -> None:
        sampling = {"temperature": 0.5, "top_k": -1, "top_p": 0.25, "min_p": 0.125, "typical_p": 0.75,
                    "repetition_penalty": 1.5, "presence_penalty": -2.0, "frequency_penalty": 2.0,
                    "logit_bias": {5: -math.inf, 6: 1.5}, "seed": 2**64 - 1, "num_sequences": 1}
        stopping = {"max_new_tokens": 9, "min_new_tokens": 2, "stop_strings": ["a", "é"], "stop_token_ids": [1, 2],
                    "ignore_eos": True, "include_stop_string": True}
        output = {"top_logprobs": 3, "echo": True, "prompt_progress": False, "logprobs": True}
        rest = {"priority": 3, "request_id": "me", "queue_timeout_ms": 10, "time_limit_ms": 20}
        request = generate_request("p", {**sampling, **stopping, **output, **rest})
        expected = _wire.GenerateRequest(text="p", sampling=sampling, stopping=stopping, output=output, **rest)
        self.assertEqual(request, expected)
        self.assertEqual({**sampling, **stopping, **output, **rest}.keys(), GenerateOptions.__annotations__.keys())

    def test_prompts(self) -> None:
        for ids in ([1, 2, 300], (1, 2, 300), range(1, 4), array.array("I", [1, 2]), numpy.array([1, 2, 300]),
                    (i for i in [1, 2])):
            expected = None if not hasattr(ids, "__len__") else [int(i) for i in ids]
            request = generate_request(ids, {})
            self.assertEqual(list(request.token_ids.ids), expected or [1, 2])
        self.assertEqual(generate_request([], {}).WhichOneof("prompt"), "token_ids")
        self.assertEqual(generate_request("", {}).WhichOneof("prompt"), "text")
        self.assertEqual(score_request("é", 3, "me"),
                         _wire.ScoreRequest(text="é", top_logprobs=3, request_id="me"))
        self.assertEqual(tokenize_request("x", True), _wire.TokenizeRequest(text="x", add_bos=True))
        self.assertFalse(tokenize_request("x", None).HasField("add_bos"))
        self.assertEqual(list(detokenize_request(range(3)).token_ids), [0, 1, 2])

    def test_mistakes_name_the_option(self) -> None:
        for options, error, part in (
                ({"temprature": 1}, TypeError, "temprature"), ({"seed": -1}, ValueError, "seed: "),
                ({"top_k": 2**31}, ValueError, "top_k: "), ({"temperature": "hot"}, TypeError, "temperature: "),
                ({"max_new_tokens": 1.5}, TypeError, "max_new_tokens: "),
                ({"stop_strings": "abc"}, TypeError, "stop_strings: a list is needed"),
                ({"stop_token_ids": [-1]}, ValueError, "stop_token_ids: "),
                ({"logit_bias": {-1: 0.0}}, ValueError, "logit_bias: "),
                ({"request_id": 7}, TypeError, "request_id: ")):
            with self.subTest(options), self.assertRaises(error) as caught:
                generate_request("x", options)
            self.assertIn(part, str(caught.exception))
        for prompt, error in ((b"bytes", TypeError), (None, TypeError), ([1, -1], ValueError), (["a"], TypeError),
                              ("\ud800", ValueError)):
            with self.subTest(repr(prompt)), self.assertRaises(error) as caught:
                generate_request(prompt, {})
            self.assertRegex(str(caught.exception), "^(prompt|text): ")

    def test_model_defaults_can_be_handed_on(self) -> None:
        message = _wire.ModelInfo(name="m", layers=["transformer"], eos_token_id=0, default_max_new_tokens=5,
                                  default_sampling={"temperature": 0.5, "top_k": 0, "logit_bias": {3: 1.0}})
        info = _convert.model_info(message)
        self.assertEqual(info.default_sampling, {"temperature": 0.5, "top_k": 0, "logit_bias": {3: 1.0}})
        self.assertEqual(generate_request("x", info.default_sampling).sampling, message.default_sampling)
        self.assertEqual((info.layers, info.eos_token_id, info.bos_token_id), (("transformer",), 0, None))


if __name__ == "__main__":
    unittest.main()
