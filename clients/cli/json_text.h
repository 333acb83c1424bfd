// The JSON that commands write: one object, in the order in which keys were set.
//
// Threads     Thread-compatible.
// Tested by   tests/clients/json_text_test.cc
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <optional>

#include "bst/v1/generation.pb.h"

namespace bst::cli {

using Json = nlohmann::ordered_json;

// `value` rounded to 9 significant digits, which is enough to get a float back; null if not finite.
Json Number(double value);

Json UsageJson(const v1::Usage& usage);
Json TimingsJson(const v1::Timings& timings);
// [{"token_id": 7, "logprob": -0.5}, ...]
Json TopTokensJson(const google::protobuf::RepeatedPtrField<v1::TopToken>& top);

// Writes `object` and a newline to stdout.
void PrintJson(const Json& object);

}  // namespace bst::cli
