// The RPCs that generate: GenerateReactor streams, GenerateOnceReactor answers once.
//
// Ownership   Both own themselves until gRPC's OnDone.
// Threads     Thread-safe.
// Tested by   tests/server/generation_service_test.cc
#pragma once

#include <grpcpp/support/server_callback.h>

#include "bst/v1/generation.pb.h"
#include "server/frontend.h"

namespace bst {

// Starts the RPC of `context`. The reactor is gRPC's to drive; it ends by itself, also where the
// request is refused. `context` and `response` are gRPC's and live until OnDone; `request` is read
// before these functions return.
grpc::ServerWriteReactor<v1::GenerateEvent>* StartGenerate(Frontend& frontend,
                                                           grpc::CallbackServerContext& context,
                                                           const v1::GenerateRequest& request);
grpc::ServerUnaryReactor* StartGenerateOnce(Frontend& frontend,
                                            grpc::CallbackServerContext& context,
                                            const v1::GenerateRequest& request,
                                            v1::GenerateResult& response);

}  // namespace bst
