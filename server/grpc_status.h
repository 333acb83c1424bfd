// absl::Status -> grpc::Status with google.rpc details: the only place that knows both.
//
// Codes map one to one. Details by code:
//   kInvalidArgument                   google.rpc.BadRequest; from InvalidFields it names the
//                                      fields
//   kResourceExhausted, kUnavailable   google.rpc.RetryInfo, and the trailer
//                                      grpc-retry-pushback-ms, except after WithoutRetry
//
// Threads     Free functions, thread-safe.
// Tested by   tests/server/grpc_status_test.cc
#pragma once

#include <grpcpp/support/status.h>

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"

namespace grpc {
class ServerContextBase;
}

namespace bst {

// How long a client is asked to wait before it tries again.
inline constexpr absl::Duration kRetryDelay = absl::Seconds(1);

struct FieldViolation {
  std::string field;        // path within the request: "sampling.top_p"
  std::string description;  // "is 1.5, must be in (0, 1]"
};

// kInvalidArgument that lists all `violations`, of which there is at least one, and says how many
// more there were.
absl::Status InvalidFields(const std::vector<FieldViolation>& violations, int num_omitted = 0);

// The same status, but the client is not asked to try again: that would end in the same way.
absl::Status WithoutRetry(absl::Status status);

grpc::Status ToGrpcStatus(const absl::Status& status);

// The same, and adds the trailer to `context` where it belongs. Must precede the Finish of its
// call.
grpc::Status ToGrpcStatus(const absl::Status& status, grpc::ServerContextBase& context);

// "OK", "INVALID_ARGUMENT": the code's name as gRPC writes it.
std::string CodeName(absl::StatusCode code);

}  // namespace bst
