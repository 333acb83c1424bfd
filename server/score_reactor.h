// The RPC that scores a text: streams runs of log-probabilities, and their mean at the end.
//
// Ownership   The reactor owns itself until gRPC's OnDone.
// Threads     Thread-safe.
// Tested by   tests/server/score_service_test.cc
#pragma once

#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/server_callback.h>

#include "server/frontend.h"

namespace bst {

// Starts the RPC of `context`, as StartGenerate does; from v1::ScoreRequest to v1::ScoreEvent.
grpc::ServerWriteReactor<grpc::ByteBuffer>* StartScore(Frontend& frontend,
                                                       grpc::CallbackServerContext& context,
                                                       const grpc::ByteBuffer& request);

}  // namespace bst
