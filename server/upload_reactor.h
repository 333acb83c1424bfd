// The RPC GenerateUpload: Generate with a prompt that arrives in parts and is read meanwhile.
//
//   gRPC thread   OnReadDone: the part -> PromptReader -> Engine::AppendPrompt -> StartRead
//   Advance       PrefillProgress: so much was read; StartRead if that was waited for
//
// At most kMaxUnreadTokens and one part wait for the engine: then nothing is read from the client,
// and HTTP/2 stops it. A part that is wrong ends the request.
//
// Ownership   Owns itself until gRPC's OnDone.
// Threads     Thread-safe.
// Tested by   tests/server/upload_service_test.cc
#pragma once

#include <grpcpp/support/server_callback.h>

#include "bst/v1/generation.pb.h"
#include "server/frontend.h"

namespace bst {

inline constexpr int64_t kMaxUnreadTokens = 256 * 1024;

// Starts the RPC of `context`, which is gRPC's and lives until OnDone.
grpc::ServerBidiReactor<v1::GenerateUploadPart, v1::GenerateEvent>* StartGenerateUpload(
    Frontend& frontend, grpc::CallbackServerContext& context);

}  // namespace bst
