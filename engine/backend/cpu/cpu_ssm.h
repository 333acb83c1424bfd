// The diagonal recurrence of ssm.h on the CPU.
//
// B is folded into C: the state kept is x / B, which grows by the bare input,
//   x' += E x' + u,   y = Re sum_m (2 B C)_m x'_m + d u
// and costs two products and two numbers less per mode. With N = 16 a token and feature then cost
// 64 operations where the linear layers of a BST layer cost 12 D or more.
//
// Threads   Engine thread only; tasks run on the threads of the CpuContext.
// Tested by tests/engine/backend/recurrence_test.cc
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "engine/backend/cpu/cpu_sequence.h"

namespace bst {

// See Backend::PackSsm.
absl::StatusOr<std::unique_ptr<SsmWeights>> PackCpuSsm(CpuContext& context,
                                                       const SsmParameters& parameters);

}  // namespace bst
