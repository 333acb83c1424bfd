// ParseJson: the text of one of a checkpoint's JSON files, read strictly.
//
// Stricter than nlohmann::json::parse: a key that occurs twice in one object is an error (the
// library would silently keep the last one), and so is nesting deeper than kMaxJsonDepth.
//
// Threads   Pure functions.
// Errors    kFailedPrecondition, saying where.
// Tested by tests/engine/checkpoint/json_test.cc, tests/fuzz/checkpoint_fuzz.cc
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/base/read_file.h"
#include "nlohmann/json_fwd.hpp"

namespace bst {

inline constexpr int kMaxJsonDepth = 32;
// Of config.json, generation_config.json and model.safetensors.index.json.
inline constexpr size_t kMaxJsonFileBytes = size_t{16} << 20;

absl::StatusOr<nlohmann::json> ParseJson(std::string_view text);

// nlohmann::json takes a NUL byte for the end of the text. Errors: kFailedPrecondition.
absl::Status CheckNoNul(std::string_view text);

// `text` for an error message: control and non-ASCII bytes escaped, cut after 100 bytes.
std::string Excerpt(std::string_view text);

// `name` names a file beside the one that mentions it: not empty, no path separator, not "." or
// "..".
bool IsPlainFileName(std::string_view name);

}  // namespace bst
