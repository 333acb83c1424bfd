// Violations: what is wrong with a request, so that a client learns all of it at once.
//
// Threads     Thread-compatible.
// Tested by   tests/server/request_validation_test.cc
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/cord.h"
#include "absl/strings/str_cat.h"
#include "server/grpc_status.h"

namespace bst {

class Violations {
 public:
  void Add(std::string field, std::string description) {
    if (static_cast<int>(violations_.size()) < kMaxViolations) {
      violations_.push_back({std::move(field), std::move(description)});
    } else {
      ++num_omitted_;
    }
  }
  // What is no fault of the request, and ends it nevertheless.
  void Fail(absl::Status failure) { failure_ = std::move(failure); }
  bool empty() const { return violations_.empty() && failure_.ok(); }

  // Unless `value` lies in [low, high]; NaN does not.
  template <typename Number>
  void Between(const char* field, Number value, Number low, Number high) {
    if (value >= low && value <= high) return;
    Add(field, absl::StrCat("is ", value, ", must be in [", low, ", ", high, "]"));
  }
  // (0, high]
  void AboveZero(const char* field, float value, float high) {
    if (value > 0 && value <= high) return;
    Add(field, absl::StrCat("is ", value, ", must be in (0, ", high, "]"));
  }
  void TokenInVocabulary(const std::string& field, uint32_t id, int vocab_size) {
    if (id < static_cast<uint32_t>(vocab_size)) return;
    Add(field, absl::StrCat("is ", id, ", must be a token id in [0, ", vocab_size - 1, "]"));
  }
  // One of them is a prompt over the limit.
  void set_too_long() { too_long_ = true; }

  // OK, what Fail was told, or kInvalidArgument with all of them.
  absl::Status status() const {
    if (!failure_.ok()) return failure_;
    if (violations_.empty()) return absl::OkStatus();
    absl::Status status = InvalidFields(violations_, num_omitted_);
    if (too_long_) status.SetPayload(kTooLongPayload, absl::Cord());
    return status;
  }
  // Whether an error of status() says that the prompt is over the limit.
  static bool IsTooLong(const absl::Status& status) {
    return status.GetPayload(kTooLongPayload).has_value();
  }

 private:
  // Details travel in the trailers, for which clients allow 8 KB: beyond that the call would end
  // with RESOURCE_EXHAUSTED instead.
  static constexpr int kMaxViolations = 8;
  static constexpr char kTooLongPayload[] = "bst/prompt-too-long";

  absl::Status failure_;
  std::vector<FieldViolation> violations_;
  int num_omitted_ = 0;
  bool too_long_ = false;
};

}  // namespace bst
