"""Status, trailers and details to exceptions."""

from __future__ import annotations

import pickle
import unittest
from typing import Any

import grpc

import bst_client
from bst_client import FieldViolation, _wire
from bst_client.errors import from_rpc_error


class FakeRpcError(grpc.RpcError):
    def __init__(self, code: grpc.StatusCode, message: str | None, trailers: Any) -> None:
        self.code, self.details, self.trailing_metadata = lambda: code, lambda: message, lambda: trailers


def convert(code: grpc.StatusCode, message: str | None = "m", trailers: Any = ()) -> bst_client.BstError:
    return from_rpc_error(FakeRpcError(code, message, trailers))


def details(**messages: Any) -> tuple[str, bytes]:
    status = _wire.RpcStatus(code=3)
    for name, message in messages.items():
        status.details.add(type_url=f"type.googleapis.com/google.rpc.{name}", value=message.SerializeToString())
    return "grpc-status-details-bin", status.SerializeToString()


class ErrorsTest(unittest.TestCase):
    def test_every_status_has_its_class(self) -> None:
        for code in grpc.StatusCode:
            name = "".join(part.capitalize() for part in code.name.split("_")) + "Error"
            error = convert(code)
            self.assertIs(type(error), getattr(bst_client, name, bst_client.BstError), code)
            self.assertEqual((error.code, error.message, str(error)), (code, "m", f"{code.name}: m"))

    def test_no_message_and_no_trailers(self) -> None:
        error = convert(grpc.StatusCode.UNAVAILABLE, None, None)
        self.assertEqual((error.message, error.violations, error.retry_delay, error.pushback_ms), ("", (), None, None))

    def test_a_stream_that_a_proxy_reset_lost_its_server(self) -> None:
        for number, expected in (0, bst_client.UnavailableError), (2, bst_client.UnavailableError), (
                1, bst_client.InternalError), (20, bst_client.InternalError):
            error = convert(grpc.StatusCode.INTERNAL, f"Received RST_STREAM with error code {number}")
            self.assertIs(type(error), expected, number)
            self.assertIs(error.code is grpc.StatusCode.UNAVAILABLE, expected is bst_client.UnavailableError)

    def test_violations(self) -> None:
        bad = _wire.BadRequest(field_violations=[{"field": "sampling.top_p", "description": "is 7"},
                                                 {"field": "text", "description": "is empty"}])
        error = convert(grpc.StatusCode.INVALID_ARGUMENT, "m", [details(BadRequest=bad)])
        self.assertEqual(error.violations,
                         (FieldViolation("sampling.top_p", "is 7"), FieldViolation("text", "is empty")))

    def test_retry_delay_and_pushback(self) -> None:
        retry = _wire.RetryInfo(retry_delay={"seconds": 2, "nanos": 500_000_000})
        error = convert(grpc.StatusCode.RESOURCE_EXHAUSTED, "queue full",
                        [("grpc-retry-pushback-ms", "1500"), ("other", "x"),
                         details(DebugInfo=_wire.BadRequest(), RetryInfo=retry)])
        self.assertIs(type(error), bst_client.ResourceExhaustedError)
        self.assertEqual((error.retry_delay, error.pushback_ms), (2.5, 1500))
        self.assertEqual(convert(grpc.StatusCode.UNAVAILABLE, "m", [("grpc-retry-pushback-ms", "-1")]).pushback_ms, -1)
        self.assertEqual(convert(grpc.StatusCode.UNAVAILABLE, "m", [("grpc-retry-pushback-ms", "soon")]).pushback_ms, -1)

    def test_message_too_large(self) -> None:
        for message in ("Received message larger than max (6 vs. 5)", "CLIENT: Sent message larger than max (9 vs. 5)"):
            self.assertIs(type(convert(grpc.StatusCode.RESOURCE_EXHAUSTED, message)), bst_client.MessageTooLargeError)
        self.assertIs(type(convert(grpc.StatusCode.RESOURCE_EXHAUSTED, "quota")), bst_client.ResourceExhaustedError)

    def test_details_that_are_no_details(self) -> None:
        error = convert(grpc.StatusCode.INTERNAL, "m", [("grpc-status-details-bin", b"\xff\xff\xff")])
        self.assertEqual((type(error), error.message, error.violations), (bst_client.InternalError, "m", ()))

    def test_pickle(self) -> None:
        error = bst_client.InvalidArgumentError(grpc.StatusCode.INVALID_ARGUMENT, "m", (FieldViolation("f", "d"),), 1.5, 7)
        copy = pickle.loads(pickle.dumps(error))
        self.assertIs(type(copy), type(error))
        self.assertEqual(vars(copy), vars(error))


if __name__ == "__main__":
    unittest.main()
