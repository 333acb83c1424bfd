// The RPCs that generate: GenerateReactor streams, GenerateOnceReactor answers once.
//
// Ownership   Both own themselves until gRPC's OnDone.
// Threads     Thread-safe.
// Tested by   tests/server/generation_service_test.cc
#pragma once

#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/server_callback.h>

#include "server/frontend.h"

namespace bst {

// Starts the RPC of `context`. The reactor is gRPC's to drive; it ends by itself, also where the
// request is refused. `context` and `response` are gRPC's and live until OnDone; `request`, a
// v1::GenerateRequest, is read before these functions return. The answers are v1::GenerateEvent and
// v1::GenerateResult.
grpc::ServerWriteReactor<grpc::ByteBuffer>* StartGenerate(Frontend& frontend,
                                                          grpc::CallbackServerContext& context,
                                                          const grpc::ByteBuffer& request);
grpc::ServerUnaryReactor* StartGenerateOnce(Frontend& frontend,
                                            grpc::CallbackServerContext& context,
                                            const grpc::ByteBuffer& request,
                                            grpc::ByteBuffer& response);

}  // namespace bst
