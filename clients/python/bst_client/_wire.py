"""The wire contract at run time: message classes and the RPCs, from the descriptors of build_proto.py.

They live in a descriptor pool of their own. google.rpc and grpc.health are restated in proto/, and in
the default pool they would clash with googleapis-common-protos and grpcio-health-checking.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.message import DecodeError as DecodeError

Message = Any  # an instance of one of the classes below

_PATH = Path(__file__).with_name("wire.binpb")


def _load_pool() -> Any:
    try:
        data = _PATH.read_bytes()
    except FileNotFoundError:
        raise ImportError(f"{_PATH} is made when the package is built: pip install clients/python, or"
                          f" python3 clients/python/build_proto.py {_PATH}") from None
    pool = descriptor_pool.DescriptorPool()
    for file in FileDescriptorSet.FromString(data).file:  # each after what it imports
        pool.AddSerializedFile(file.SerializeToString())
    return pool


_POOL = _load_pool()


def _message_class(name: str) -> Any:
    descriptor = _POOL.FindMessageTypeByName(name)
    if hasattr(message_factory, "GetMessageClass"):  # since protobuf 4.22
        return message_factory.GetMessageClass(descriptor)
    return message_factory.MessageFactory(_POOL).GetPrototype(descriptor)


GenerateRequest = _message_class("bst.v1.GenerateRequest")
GenerateUploadPart = _message_class("bst.v1.GenerateUploadPart")
GenerateEvent = _message_class("bst.v1.GenerateEvent")
GenerateResult = _message_class("bst.v1.GenerateResult")
Finished = _message_class("bst.v1.Finished")
ScoreRequest = _message_class("bst.v1.ScoreRequest")
ScoreEvent = _message_class("bst.v1.ScoreEvent")
TokenizeRequest = _message_class("bst.v1.TokenizeRequest")
TokenizeResponse = _message_class("bst.v1.TokenizeResponse")
DetokenizeRequest = _message_class("bst.v1.DetokenizeRequest")
DetokenizeResponse = _message_class("bst.v1.DetokenizeResponse")
GetModelInfoRequest = _message_class("bst.v1.GetModelInfoRequest")
ModelInfo = _message_class("bst.v1.ModelInfo")
HealthCheckRequest = _message_class("grpc.health.v1.HealthCheckRequest")
HealthCheckResponse = _message_class("grpc.health.v1.HealthCheckResponse")
RpcStatus = _message_class("google.rpc.Status")
BadRequest = _message_class("google.rpc.BadRequest")
RetryInfo = _message_class("google.rpc.RetryInfo")


class Stubs:
    """The RPCs on one channel, grpc.Channel or grpc.aio.Channel."""

    def __init__(self, channel: Any) -> None:
        def stub(kind: Any, path: str, request: Any, response: Any) -> Any:
            return kind(path, request_serializer=request.SerializeToString, response_deserializer=response.FromString)

        generation = "/bst.v1.Generation/"
        self.generate = stub(channel.unary_stream, generation + "Generate", GenerateRequest, GenerateEvent)
        self.generate_upload = stub(channel.stream_stream, generation + "GenerateUpload", GenerateUploadPart,
                                    GenerateEvent)
        self.score = stub(channel.unary_stream, generation + "Score", ScoreRequest, ScoreEvent)
        self.tokenize = stub(channel.unary_unary, generation + "Tokenize", TokenizeRequest, TokenizeResponse)
        self.detokenize = stub(channel.unary_unary, generation + "Detokenize", DetokenizeRequest, DetokenizeResponse)
        self.model_info = stub(channel.unary_unary, generation + "GetModelInfo", GetModelInfoRequest, ModelInfo)
        self.health = stub(channel.unary_unary, "/grpc.health.v1.Health/Check", HealthCheckRequest,
                           HealthCheckResponse)
