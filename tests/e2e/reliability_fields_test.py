"""Every field of every request at its bounds and beyond, through the real server.

FIELDS names all of them: a field that proto/ has and this table has not fails the test.
"""

from __future__ import annotations

import math
import unittest
from typing import Any, Iterator

import grpc

import bst_process
from bst_process import ServerProcess
from raw_calls import POOL, Api, detail, finish, message_class

MAX_PROMPT_TOKENS = 4000
SLOTS = 4
VOCABULARY = 259  # of the golden models
NAN, INFINITY = math.nan, math.inf
UINT32, UINT64 = 2**32 - 1, 2**64 - 1
FLOAT = 3.4028234663852886e38  # the largest

# path -> (values that are served, values that are INVALID_ARGUMENT and named).
# What is beyond a type's own range cannot be sent. Booleans have no bounds.
Bounds = tuple[list[Any], list[Any]]
ids = list(range(VOCABULARY))
REQUEST_ID: Bounds = (["a", "~" * 128, "!#-_."], ["", "x" * 129, "a b", "a\n", "ä", "\x7f"])
FIELDS: dict[str, dict[str, Bounds]] = {
    "Generation/Generate": {
        "request_id": REQUEST_ID,
        "text": (["a", "\0", "ä€𝄞", "x" * (MAX_PROMPT_TOKENS - 1)], ["", "x" * MAX_PROMPT_TOKENS, "x" * 1_000_000]),
        "token_ids.ids": ([[0], [VOCABULARY - 1], [7] * MAX_PROMPT_TOKENS],
                          [[], [VOCABULARY], [UINT32], [1, UINT32], [7] * (MAX_PROMPT_TOKENS + 1)]),
        "sampling.temperature": ([0.0, 1e-45, 100.0], [-1e-45, 100.001, NAN, INFINITY, -INFINITY, -FLOAT, FLOAT]),
        "sampling.top_k": ([-1, 0, 1, VOCABULARY, 2**31 - 1], [-2, -2**31]),
        "sampling.top_p": ([1e-45, 1.0], [0.0, -0.0, 1.0001, NAN, INFINITY, -1.0]),
        "sampling.min_p": ([0.0, 1.0], [-1e-45, 1.0001, NAN, INFINITY]),
        "sampling.typical_p": ([1e-45, 1.0], [0.0, 1.0001, NAN, -INFINITY]),
        "sampling.repetition_penalty": ([1e-45, 1e-30, 10.0], [0.0, -1.0, 10.001, NAN, INFINITY]),
        "sampling.presence_penalty": ([-2.0, 2.0], [-2.001, 2.001, NAN, INFINITY, -INFINITY]),
        "sampling.frequency_penalty": ([-2.0, 2.0], [-2.001, 2.001, NAN, INFINITY, -INFINITY]),
        "sampling.logit_bias": ([{}, {0: 100.0}, {VOCABULARY - 1: -100.0}, {i: 0.0 for i in ids},
                                 {i: -INFINITY for i in ids[1:]}],
                                [{VOCABULARY: 0.0}, {UINT32: 0.0}, {0: 100.001}, {0: -100.001}, {0: NAN},
                                 {0: INFINITY}, {i: -INFINITY for i in ids}, {i: 0.0 for i in range(VOCABULARY + 1)}]),
        "sampling.seed": ([0, 1, UINT64], []),
        "sampling.num_sequences": ([1, 2, SLOTS], [0, SLOTS + 1, UINT32]),
        "stopping.max_new_tokens": ([1, 1_000_000], [0, 1_000_001, UINT32]),
        "stopping.min_new_tokens": ([0, 2], [3, UINT32]),
        "stopping.stop_strings": ([[], ["a"] * 16, ["x" * 256]], [["a"] * 17, [""], ["x" * 257]]),
        "stopping.stop_token_ids": ([[], [0] * 64, [VOCABULARY - 1]], [[0] * 65, [VOCABULARY], [UINT32], ids]),
        "stopping.ignore_eos": ([False, True], []),
        "stopping.include_stop_string": ([False, True], []),
        "output.top_logprobs": ([0, 20], [21, UINT32]),
        "output.echo": ([False, True], []),
        "output.prompt_progress": ([False, True], []),
        "output.logprobs": ([False, True], []),
        "priority": ([0, 1, 2, 3], [4, -1, 2**31 - 1, -2**31]),
        "queue_timeout_ms": ([60_000, 86_400_000], [0, 86_400_001, UINT32]),
        "time_limit_ms": ([60_000, 86_400_000], [0, 86_400_001, UINT32]),
    },
    # Of the parts after the first one, which is a request of Generate.
    "Generation/GenerateUpload": {
        "text": (["", "a", "x" * (MAX_PROMPT_TOKENS - 7)], ["x" * (MAX_PROMPT_TOKENS - 6), "x" * 1_000_000]),
        "token_ids.ids": ([[], [0], [VOCABULARY - 1], [7] * (MAX_PROMPT_TOKENS - 1)],
                          [[VOCABULARY], [UINT32], [7] * MAX_PROMPT_TOKENS]),
    },
    "Generation/Score": {
        "request_id": REQUEST_ID,
        "text": (["a", "x" * (MAX_PROMPT_TOKENS - 1)], ["", "x" * MAX_PROMPT_TOKENS]),
        "token_ids.ids": ([[0], [VOCABULARY - 1], [7] * MAX_PROMPT_TOKENS],
                          [[], [VOCABULARY], [UINT32], [7] * (MAX_PROMPT_TOKENS + 1)]),
        "top_logprobs": ([0, 20], [21, UINT32]),
        "priority": ([0, 1, 2, 3], [4, -1, 2**31 - 1, -2**31]),
    },
    "Generation/Tokenize": {
        "text": (["", "a", "x" * MAX_PROMPT_TOKENS], ["x" * (MAX_PROMPT_TOKENS + 1)]),
        "add_bos": ([False, True], []),
    },
    "Generation/Detokenize": {
        "token_ids": ([[], [0], [VOCABULARY - 1], [7] * MAX_PROMPT_TOKENS],
                      [[VOCABULARY], [UINT32], [7] * (MAX_PROMPT_TOKENS + 1)]),
    },
    "Generation/GetModelInfo": {},
    "Control/GetServerInfo": {},
    "Control/GetLoad": {},
    "Control/Abort": {"request_id": ([], [""])},  # what is served: see AbortTest of the limits
    "Control/Drain": {},
}
# RPCs that another RPC's table covers: they take the same request.
SAME_REQUEST = {"Generation/GenerateOnce": "Generation/Generate"}
UPLOAD = "Generation/GenerateUpload"
# (the RPC that is called, the one whose request it is, the fields)
TABLES = [*((rpc, rpc, table) for rpc, table in FIELDS.items()),
          *((rpc, other, FIELDS[other]) for rpc, other in (*SAME_REQUEST.items(), (UPLOAD, "Generation/Generate")))]


def scalar_paths(descriptor: Any, prefix: str = "") -> Iterator[str]:
    """Of all fields that hold values: maps, lists of scalars and scalars."""
    for field in descriptor.fields:
        nested = field.message_type
        if nested is None or nested.GetOptions().map_entry:
            yield prefix + field.name
        else:
            yield from scalar_paths(nested, f"{prefix}{field.name}.")


def rpcs() -> Iterator[tuple[str, Any]]:
    for service in ("Generation", "Control"):
        for rpc in POOL.FindServiceByName(f"bst.v1.{service}").methods:
            yield f"{service}/{rpc.name}", rpc.input_type


def request_with(rpc: str, path: str, value: Any) -> Any:
    """A good request of `rpc` but for one field."""
    service, name = rpc.split("/")
    descriptor = POOL.FindServiceByName(f"bst.v1.{service}").methods_by_name[name].input_type
    request = message_class(descriptor.full_name)()
    if rpc == "Generation/Generate":
        request.stopping.max_new_tokens = 2
        if path == "stopping.max_new_tokens":
            request.stopping.stop_token_ids.extend(range(64))  # or a million tokens come
            request.stopping.stop_strings.append("\n")
            request.time_limit_ms = 200
    if rpc in ("Generation/Generate", "Generation/Score"):
        request.text = "prompt"
    *parents, last = path.split(".")
    target = request
    for parent in parents:
        target = getattr(target, parent)
        target.SetInParent()
    field = target.DESCRIPTOR.fields_by_name[last]
    if field.message_type is not None:
        for key, entry in value.items():
            getattr(target, last)[key] = entry
    elif field.label == field.LABEL_REPEATED:
        getattr(target, last).extend(value)
    else:
        setattr(target, last, value)
    return request


class FieldsTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls) -> None:
        cls.server = cls.enterClassContext(ServerProcess(
            f"--max_prompt_tokens={MAX_PROMPT_TOKENS}", f"--max_sequences={SLOTS}", "--reserved_sequences=0",
            "--control_listen=127.0.0.1:0"))
        cls.apis = {"Generation": cls.enterClassContext(Api(cls.server.grpc)),
                    "Control": cls.enterClassContext(Api(cls.server.addresses["control"]))}

    def run_call(self, rpc: str, request: Any) -> tuple[str, Any]:
        """The code, and the call or error that has its details."""
        try:
            call = self.apis[rpc.split("/")[0]].call(rpc, request if rpc != UPLOAD else self.parts(request))
            if isinstance(call, grpc.Call):
                return finish(call)[1], call
            return "OK", None
        except grpc.RpcError as error:
            return error.code().name, error

    @staticmethod
    def parts(request: Any) -> list[Any]:
        """What is uploaded for it: a first part alone, or a beginning and that part."""
        if request.DESCRIPTOR.name == "GenerateRequest":
            return [{"request": request}]
        beginning = {"text": "prompt"} if request.WhichOneof("part") == "text" else {"token_ids": {"ids": [1]}}
        return [{"request": {**beginning, "stopping": {"max_new_tokens": 2}}}, request]

    def test_the_table_has_every_field(self) -> None:
        for rpc, descriptor in rpcs():
            paths = sorted(FIELDS[SAME_REQUEST.get(rpc, rpc)])
            if rpc == UPLOAD:
                paths = sorted(paths + [f"request.{path}" for path in FIELDS["Generation/Generate"]])
            self.assertEqual(sorted(scalar_paths(descriptor)), paths, rpc)

    def test_at_the_bounds(self) -> None:
        calls = 0
        for rpc, kind, table in TABLES:
            for path, (served, _) in table.items():
                for value in served:
                    code, call = self.run_call(rpc, request_with(kind, path, value))
                    with self.subTest(rpc=rpc, path=path, value=str(value)[:50]):
                        self.assertEqual(code, "OK", call and call.details())
                    calls += 1
        print(f"at the bounds: {calls} calls", flush=True)

    def test_beyond_the_bounds(self) -> None:
        calls = 0
        for rpc, kind, table in TABLES:
            for path, (_, refused) in table.items():
                for value in refused:
                    code, call = self.run_call(rpc, request_with(kind, path, value))
                    with self.subTest(rpc=rpc, path=path, value=str(value)[:50]):
                        self.assertEqual(code, "INVALID_ARGUMENT")
                        named = [violation.field for violation in detail(call, "BadRequest").field_violations]
                        self.assertTrue(all(field.startswith(path) for field in named), named)
                        self.assertLess(len(call.details()), 2000)  # trailers are bounded, and hold no prompt
                    calls += 1
        self.assertEqual(self.apis["Control"].load().slots_used, 0)
        print(f"beyond the bounds: {calls} calls", flush=True)

    def test_all_fields_wrong_at_once(self) -> None:
        request = message_class("bst.v1.GenerateRequest")()
        paths = [path for path, (_, refused) in FIELDS["Generation/Generate"].items()
                 if refused and path != "token_ids.ids"]
        for path in paths:
            request.MergeFrom(request_with("Generation/Generate", path, FIELDS["Generation/Generate"][path][1][0]))
        code, call = self.run_call("Generation/Generate", request)
        self.assertEqual(code, "INVALID_ARGUMENT")
        self.assertEqual(len(detail(call, "BadRequest").field_violations), 8)  # and how many more, in the message
        self.assertRegex(call.details(), r"; and \d+ more$")


if __name__ == "__main__":
    bst_process.main()
