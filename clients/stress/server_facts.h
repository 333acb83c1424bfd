// What bst-stress asks the server before it loads it: the model, its limits, the tokens of a text.
//
// Threads     Free functions; each blocks until the server answered.
// Tested by   tests/e2e/stress_test.py
#pragma once

#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "bst/v1/generation.grpc.pb.h"
#include "clients/stress/traffic.h"

namespace bst::stress {

// The server did not answer as it must.
class ServerError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Waits up to `wait_seconds` while the server is UNAVAILABLE (not there yet, or loading its model).
// Throws ServerError.
v1::ModelInfo GetModelInfo(v1::Generation::Stub& stub, const std::string& key, double wait_seconds);

ModelLimits LimitsOf(const v1::ModelInfo& info);

// The tokens of the beginning of `text` (UTF-8), kMaxTextBytes at most, asked for in pieces that a
// server of these limits takes. Throws ServerError.
inline constexpr size_t kMaxTextBytes = 4 << 20;
std::vector<uint32_t> TokenizeText(v1::Generation::Stub& stub, const std::string& key,
                                   const ModelLimits& limits, std::string_view text);

}  // namespace bst::stress
