// The RPC GenerateUpload: Generate with a prompt that arrives in parts and is read meanwhile.
//
//   gRPC thread   OnReadDone: the part -> PromptReader -> Engine::AppendPrompt -> StartRead; of a
//                 large part, or one that may complete much text, on a thread of MessageReaders
//   Advance       PrefillProgress: so much was read; StartRead if that was waited for
//
// At most kMaxUnreadTokens and one part wait for the engine: then nothing is read from the client,
// and HTTP/2 stops it. A part that is wrong ends the request. One whose first part does not come
// within upload_timeout ends with kDeadlineExceeded, when the engine drains with kUnavailable; the
// parts after it are the engine's to wait for.
//
// Memory      Of all uploads that wait in the queue, with the other requests there, at most
//             max_queue_tokens; of those that have started kMaxUnreadTokens and a part each, and
//             they are at most max_sequences. Text that cannot be tokenised before its end takes as
//             many bytes as max_queue_tokens do (HeldText). A part that would exceed either ends
//             its request with kResourceExhausted. From half of max_queue_tokens on an upload in
//             the queue is read no further than it takes to have its turn.
// Ownership   Owns itself until gRPC's OnDone.
// Threads     Thread-safe.
// Tested by   tests/server/upload_service_test.cc
#pragma once

#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/server_callback.h>

#include "server/frontend.h"

namespace bst {

inline constexpr int64_t kMaxUnreadTokens = 256 * 1024;

// Starts the RPC of `context`, which is gRPC's and lives until OnDone; from v1::GenerateUploadPart
// to v1::GenerateEvent.
grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* StartGenerateUpload(
    Frontend& frontend, grpc::CallbackServerContext& context);

}  // namespace bst
