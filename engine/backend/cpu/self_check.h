// What a CPU backend computes for a few small layers, to be compared with another backend's before
// it is trusted: hypervisors have been seen to report instructions that they do not deliver.
//
// Threads   Engine thread only, as the backends.
// Tested by tests/engine/backend/self_check_test.cc
#pragma once

#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "engine/backend/backend.h"

namespace bst {

// Linear layers of one row and of many, and attention of two blocks, whole and token by token, each
// in BF16 and INT8: the operators that have kernels of their own on AMX tiles.
absl::StatusOr<std::vector<float>> SelfCheckValues(Backend& backend);

// Whether they differ by no more than orders of summation make. Nothing is like a NaN.
bool AreAlike(absl::Span<const float> values, absl::Span<const float> expected);

}  // namespace bst
