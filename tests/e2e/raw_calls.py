"""Calls to bst-server below the Python client: plain gRPC with every status and trailer, and HTTP/2 by hand.

`Api` calls RPCs with the messages of proto/; `Http2` writes frames, so that they can be cut, wrong or slow.
"""

from __future__ import annotations

import socket
import struct
import subprocess
import tempfile
from pathlib import Path
from typing import Any, Iterator, Mapping

import grpc
from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor_pb2 import FileDescriptorSet

PROTO_FOLDER = Path(__file__).resolve().parents[2] / "proto"
PROTO_FILES = ("bst/v1/generation.proto", "bst/v1/control.proto", "grpc/health/v1/health.proto",
               "google/rpc/status.proto", "google/rpc/error_details.proto")


def _load_pool() -> descriptor_pool.DescriptorPool:
    pool = descriptor_pool.DescriptorPool()
    with tempfile.NamedTemporaryFile() as output:
        subprocess.run(["protoc", f"--proto_path={PROTO_FOLDER}", "--include_imports",
                        f"--descriptor_set_out={output.name}", *PROTO_FILES], check=True)
        for file in FileDescriptorSet.FromString(Path(output.name).read_bytes()).file:
            pool.AddSerializedFile(file.SerializeToString())
    return pool


POOL = _load_pool()


def message_class(name: str) -> Any:
    """The class of the message `name`, "bst.v1.GenerateRequest"."""
    descriptor = POOL.FindMessageTypeByName(name)
    if hasattr(message_factory, "GetMessageClass"):  # since protobuf 4.22
        return message_factory.GetMessageClass(descriptor)
    return message_factory.MessageFactory(POOL).GetPrototype(descriptor)


def message(name: str, fields: Mapping[str, Any]) -> Any:
    """A message of bst.v1 from nested dicts; lists and dicts fill repeated fields and maps."""
    result = message_class(f"bst.v1.{name}")()
    _fill(result, fields)
    return result


def _fill(target: Any, fields: Mapping[str, Any]) -> None:
    for name, value in fields.items():
        field = target.DESCRIPTOR.fields_by_name[name]
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            for key, entry in value.items():
                getattr(target, name)[key] = entry
        elif field.label == field.LABEL_REPEATED:
            getattr(target, name).extend(value)
        elif field.message_type is not None and not isinstance(value, dict):
            getattr(target, name).CopyFrom(value)
        elif field.message_type is not None:
            getattr(target, name).SetInParent()
            _fill(getattr(target, name), value)
        else:
            setattr(target, name, value)


class Api:
    """The RPCs of a server at one port. Streams are grpc calls: iterate, cancel(), code(), trailing_metadata()."""

    def __init__(self, address: str, credentials: grpc.ChannelCredentials | None = None,
                 options: tuple[tuple[str, Any], ...] = ()) -> None:
        options = (("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1), *options)
        self.channel = (grpc.insecure_channel(address, options) if credentials is None else
                        grpc.secure_channel(address, credentials, options))

    def __enter__(self) -> Api:
        return self

    def __exit__(self, *_: object) -> None:
        self.channel.close()

    def call(self, method: str, request: Any, timeout: float | None = 60, **kwargs: Any) -> Any:
        """`method` is "Generation/Generate"; the answer, or the stream. Raises grpc.RpcError.

        Where the client streams, `request` is an iterable of requests."""
        service, name = method.split("/")
        if "." not in service:
            service = f"bst.v1.{service}"
        rpc = POOL.FindServiceByName(service).methods_by_name[name]
        def to_message(fields: Any) -> Any:
            if not isinstance(fields, dict):
                return fields
            filled = message_class(rpc.input_type.full_name)()
            _fill(filled, fields)
            return filled

        if rpc.client_streaming:
            kind, requests = self.channel.stream_stream, map(to_message, request)
        else:
            kind = self.channel.unary_stream if rpc.server_streaming else self.channel.unary_unary
            requests = to_message(request)
        stub = kind(f"/{service}/{name}", request_serializer=lambda m: m.SerializeToString(),
                    response_deserializer=message_class(rpc.output_type.full_name).FromString)
        return stub(requests, timeout=timeout, **kwargs)

    def generate(self, timeout: float | None = 60, **fields: Any) -> Any:
        return self.call("Generation/Generate", fields, timeout)

    def score(self, timeout: float | None = 60, **fields: Any) -> Any:
        return self.call("Generation/Score", fields, timeout)

    def load(self) -> Any:
        """Of a control port."""
        return self.call("Control/GetLoad", {})

    def abort(self, request_id: str) -> None:
        self.call("Control/Abort", {"request_id": request_id})

    def health(self, service: str = "") -> str:
        answer = self.call("grpc.health.v1.Health/Check", {"service": service})
        return message_class("grpc.health.v1.HealthCheckResponse").ServingStatus.Name(answer.status)


def finish(call: Any) -> tuple[list[Any], str]:
    """All messages of a stream and the name of its status code."""
    messages = []
    try:
        for item in call:
            messages.append(item)
    except grpc.RpcError:
        pass
    return messages, call.code().name


def detail(call: Any, name: str) -> Any | None:
    """The google.rpc detail "RetryInfo" or "BadRequest" of a call that failed, or None."""
    trailers = dict(call.trailing_metadata())
    status = message_class("google.rpc.Status").FromString(trailers.get("grpc-status-details-bin", b""))
    for packed in status.details:
        if packed.type_url.endswith(f"google.rpc.{name}"):
            return message_class(f"google.rpc.{name}").FromString(packed.value)
    return None


class Http2:
    """A connection on which HTTP/2 frames are written by hand."""

    PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
    END_STREAM, END_HEADERS = 1, 4

    def __init__(self, address: str, timeout: float = 10) -> None:
        host, port = address.rsplit(":", 1)
        self.socket = socket.create_connection((host, int(port)), timeout)

    def __enter__(self) -> Http2:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    @staticmethod
    def frame(kind: int, flags: int, stream: int, payload: bytes = b"", length: int | None = None) -> bytes:
        """`length`: what the header says, if it is to differ from the truth."""
        size = len(payload) if length is None else length
        return struct.pack(">I", size)[1:] + bytes((kind, flags)) + struct.pack(">I", stream) + payload

    @staticmethod
    def header_block(headers: Iterator[tuple[bytes, bytes]] | list[tuple[bytes, bytes]]) -> bytes:
        """HPACK, all literals."""
        def text(value: bytes) -> bytes:
            size = len(value)
            if size < 127:
                return bytes((size,)) + value
            rest, prefix = size - 127, [127]
            while rest >= 128:
                prefix.append(rest % 128 + 128)
                rest //= 128
            return bytes((*prefix, rest)) + value
        return b"".join(b"\x00" + text(name) + text(value) for name, value in headers)

    @classmethod
    def call_headers(cls, path: bytes, extra: list[tuple[bytes, bytes]] = []) -> bytes:
        return cls.header_block([(b":method", b"POST"), (b":scheme", b"http"), (b":path", path),
                                 (b":authority", b"test"), (b"te", b"trailers"),
                                 (b"content-type", b"application/grpc"), *extra])

    @classmethod
    def opening(cls) -> bytes:
        return cls.PREFACE + cls.frame(cls.SETTINGS, 0, 0)

    @classmethod
    def generate_bytes(cls, request: Any, stream: int = 1) -> bytes:
        """A whole Generate call as a client sends it, after the opening."""
        return (cls.frame(cls.HEADERS, cls.END_HEADERS, stream, cls.call_headers(b"/bst.v1.Generation/Generate")) +
                cls.frame(cls.DATA, cls.END_STREAM, stream, cls.message_bytes(request)))

    @staticmethod
    def message_bytes(request: Any) -> bytes:
        """A message as DATA frames carry it."""
        body = request.SerializeToString()
        return b"\x00" + struct.pack(">I", len(body)) + body

    def send(self, data: bytes) -> bool:
        """False when the server has closed the connection."""
        try:
            self.socket.sendall(data)
            return True
        except (BrokenPipeError, ConnectionResetError):
            return False

    def read_until_closed(self) -> bool:
        """True when the server closes within the timeout; what it sends is dropped."""
        try:
            while self.socket.recv(65536):
                pass
            return True
        except ConnectionResetError:
            return True
        except TimeoutError:
            return False
