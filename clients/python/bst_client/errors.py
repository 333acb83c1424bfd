"""Failures as exceptions: one class for each gRPC status that the server answers with."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import grpc

from . import _wire


@dataclass(frozen=True)
class FieldViolation:
    """One wrong field: its path within the request, as "sampling.top_p", its value and the limit."""

    field: str
    description: str


class BstError(Exception):
    """A request failed.

    code           grpc.StatusCode
    message        the server's or gRPC's, in English
    violations     every field that was wrong; empty where the code is not INVALID_ARGUMENT
    retry_delay    seconds after which the server asks to try again; None: it does not say
    pushback_ms    the trailer grpc-retry-pushback-ms; negative: do not try again; None: not sent
    """

    def __init__(self, code: grpc.StatusCode, message: str, violations: tuple[FieldViolation, ...] = (),
                 retry_delay: float | None = None, pushback_ms: int | None = None) -> None:
        super().__init__(code, message)  # what __init__ needs, so that it can be pickled
        self.code = code
        self.message = message
        self.violations = violations
        self.retry_delay = retry_delay
        self.pushback_ms = pushback_ms

    def __str__(self) -> str:
        return f"{self.code.name}: {self.message}"


class InvalidArgumentError(BstError):
    """A parameter out of its range, an empty or too long prompt: see `violations`."""


class ResourceExhaustedError(BstError):
    """The queue is full: see `retry_delay`. Without it: more than 64 MB of the output was not read."""


class MessageTooLargeError(ResourceExhaustedError):
    """The request is above the server's max_message_bytes (see model_info().limits), or the answer
    above this client's max_receive_message_bytes. Trying again does not help; token ids of a text
    may be smaller or larger than the text."""


class UnavailableError(BstError):
    """No server there, or it is loading or draining, or it was lost: a stream that a proxy reset is this too."""


class DeadlineExceededError(BstError):
    """`timeout` passed, or queue_timeout_ms before the request started."""


class CancelledError(BstError):
    """An operator ended the request, nobody read its stream for long, or this side closed the client."""


class NotFoundError(BstError):
    """No such service, or handle."""


class AlreadyExistsError(BstError):
    """A request with this request_id is in flight."""


class UnauthenticatedError(BstError):
    """The server wants a token."""


class PermissionDeniedError(BstError):
    """The token is not one of the server's."""


class UnimplementedError(BstError):
    """The server does not have this RPC."""


class InternalError(BstError):
    """The server failed, or broke the contract."""


# A proxy that lost its server after the headers went out can only reset the stream (HTTP/2 NO_ERROR or
# INTERNAL_ERROR), which gRPC calls INTERNAL. What a server has to say comes in trailers instead.
_RESET_BY_PROXY = re.compile(r"Received RST_STREAM with error code [02]")

_CLASSES: dict[grpc.StatusCode, type[BstError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidArgumentError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ResourceExhaustedError,
    grpc.StatusCode.UNAVAILABLE: UnavailableError,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceededError,
    grpc.StatusCode.CANCELLED: CancelledError,
    grpc.StatusCode.NOT_FOUND: NotFoundError,
    grpc.StatusCode.ALREADY_EXISTS: AlreadyExistsError,
    grpc.StatusCode.UNAUTHENTICATED: UnauthenticatedError,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDeniedError,
    grpc.StatusCode.UNIMPLEMENTED: UnimplementedError,
    grpc.StatusCode.INTERNAL: InternalError,
}


def client_closed() -> CancelledError:
    return CancelledError(grpc.StatusCode.CANCELLED, "the client was closed")


def from_rpc_error(error: Any) -> BstError:
    """`error`: a grpc.RpcError that is a call too (code, details, trailing_metadata)."""
    code, message = error.code(), error.details() or ""
    violations: list[FieldViolation] = []
    retry_delay = pushback_ms = None
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-retry-pushback-ms":
            pushback_ms = _parse_pushback(value)
        elif key == "grpc-status-details-bin":
            violations, retry_delay = _parse_details(value)
    if code is grpc.StatusCode.INTERNAL and _RESET_BY_PROXY.fullmatch(message):
        code = grpc.StatusCode.UNAVAILABLE
    kind = _CLASSES.get(code, BstError)
    # gRPC's own answer, without RetryInfo: "Received message larger than max (6 vs. 5)".
    if kind is ResourceExhaustedError and retry_delay is None and "message larger than max" in message:
        kind = MessageTooLargeError
    return kind(code, message, tuple(violations), retry_delay, pushback_ms)


def _parse_pushback(value: str | bytes) -> int:
    """What is no number counts as "do not try again", as gRPC's own retries take it."""
    try:
        return int(value)
    except ValueError:
        return -1


def _parse_details(data: bytes) -> tuple[list[FieldViolation], float | None]:
    violations: list[FieldViolation] = []
    retry_delay = None
    try:
        for detail in _wire.RpcStatus.FromString(data).details:
            name = detail.type_url.rpartition("/")[2]
            if name == "google.rpc.BadRequest":
                violations += [FieldViolation(v.field, v.description)
                               for v in _wire.BadRequest.FromString(detail.value).field_violations]
            elif name == "google.rpc.RetryInfo":
                delay = _wire.RetryInfo.FromString(detail.value).retry_delay
                retry_delay = delay.seconds + delay.nanos / 1e9
    except _wire.DecodeError:
        pass  # a proxy's trailer; the status itself is still worth reporting
    return violations, retry_delay
