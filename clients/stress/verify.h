// --verify: whether an answer depends on the request alone. The same seeded requests are sent one
// by one and many at a time; tokens and the bits of their log-probabilities must be the same.
//
// Threads     Free functions and values.
// Tested by   tests/clients/stress/verify_test.cc, tests/e2e/stress_test.py
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "clients/stress/request_record.h"

namespace bst::stress {

struct Answer {
  grpc::StatusCode code = grpc::StatusCode::OK;
  std::string message;
  std::string defect;  // of the record; not empty: as good as failed
  std::vector<uint32_t> token_ids, logprob_bits;
};

using Answers = std::map<uint64_t, Answer>;  // by the request's index

// Moves the output out of `record`.
Answer TakeAnswer(RequestRecord& record);

// The first place where the two differ, for people; nothing if they do not. An answer that failed,
// has a defect or is missing is a difference, and so is that there is none at all.
std::optional<std::string> FirstDifference(const Answers& alone, const Answers& together);

}  // namespace bst::stress
