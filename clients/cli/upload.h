// Requests that are larger than the server's message limit, and how to send them all the same.
//
// Threads     Free functions.
// Tested by   tests/clients/upload_test.cc, tests/e2e/upload_test.py
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>

#include "bst/v1/generation.grpc.pb.h"
#include "clients/cli/connection.h"

namespace bst::cli {

// Sets `exceeded` to the server's message limit if a request of `bytes` is above it. Asks the
// server only where that is possible at all. Errors: those of the call.
grpc::Status CheckMessageLimit(const Connection& connection, v1::Generation::Stub& stub,
                               size_t bytes, std::optional<uint64_t>& exceeded);

// What a call that cannot be sent in parts ends with.
grpc::Status TooLarge(uint64_t bytes, uint64_t limit);

// Hands `request` to `send` as the parts of a GenerateUpload, none above `max_message_bytes` where
// the request without its prompt fits into that. Stops when `send` returns false.
void ForEachPart(const v1::GenerateRequest& request, uint64_t max_message_bytes,
                 const std::function<bool(const v1::GenerateUploadPart&)>& send);

// GenerateUpload: sends `request` in parts while `handle` gets the events.
grpc::Status Upload(v1::Generation::Stub& stub, grpc::ClientContext& context,
                    const v1::GenerateRequest& request, uint64_t max_message_bytes,
                    const std::function<void(const v1::GenerateEvent&)>& handle);

}  // namespace bst::cli
