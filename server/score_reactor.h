// The RPC that scores a text: streams runs of log-probabilities, and their mean at the end.
//
// Ownership   The reactor owns itself until gRPC's OnDone.
// Threads     Thread-safe.
// Tested by   tests/server/score_service_test.cc
#pragma once

#include <grpcpp/support/server_callback.h>

#include "bst/v1/generation.pb.h"
#include "server/frontend.h"

namespace bst {

// Starts the RPC of `context`, as StartGenerate does.
grpc::ServerWriteReactor<v1::ScoreEvent>* StartScore(Frontend& frontend,
                                                     grpc::CallbackServerContext& context,
                                                     const v1::ScoreRequest& request);

}  // namespace bst
