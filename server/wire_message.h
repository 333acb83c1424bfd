// Bytes of the wire <-> messages of our services, which all serve their methods raw.
//
// Left to itself gRPC answers a request that it cannot parse with UNIMPLEMENTED and no message, and
// in a stream of requests such a one looks like the client's end of the stream. What it has
// received it keeps until the RPC is done, unless TakeBytes takes it away.
//
// Threads     Free functions, thread-safe.
// Tested by   tests/server/generation_service_test.cc, score_service_test.cc,
//             upload_service_test.cc, control_service_test.cc
#pragma once

#include <grpcpp/impl/codegen/proto_utils.h>
#include <grpcpp/support/byte_buffer.h>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "engine/base/check.h"
#include "server/grpc_status.h"

namespace bst {

// Takes the bytes of a request out of `message`, which is gRPC's.
inline grpc::ByteBuffer TakeBytes(const grpc::ByteBuffer& message) {
  grpc::ByteBuffer bytes;
  bytes.Swap(const_cast<grpc::ByteBuffer*>(&message));  // no const object: gRPC's handler made it
  return bytes;
}

// Errors: kInvalidArgument that names `field`, which the message is of the call: "request", "part".
template <typename Message>
absl::StatusOr<Message> ParseMessage(grpc::ByteBuffer bytes, const char* field) {
  Message message;
  if (grpc::SerializationTraits<Message>::Deserialize(&bytes, &message).ok()) return message;
  return InvalidFields({{field, absl::StrCat("is no ", Message::descriptor()->full_name(),
                                             ": malformed, or a string in it is not UTF-8")}});
}

template <typename Message>
grpc::ByteBuffer BytesOf(const Message& message) {
  grpc::ByteBuffer bytes;
  bool owns_buffer = false;  // always true: the bytes are our own
  // Fails beyond 2 GB alone, which no message of ours comes near.
  const grpc::Status status =
      grpc::SerializationTraits<Message>::Serialize(message, &bytes, &owns_buffer);
  BST_CHECK(status.ok(), status.error_message());
  return bytes;
}

}  // namespace bst
