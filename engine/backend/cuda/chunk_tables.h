// What a recurrence in chunks (kernels.h) multiplies by. From the float32 parameters of ssm.h in
// float64, each number rounded once; what is near 1 is kept as its distance from it, or slow modes
// would drift.
//
// Threads   Pure functions.
// Tested by tests/engine/backend/recurrence_test.cc
#pragma once

#include <vector>

#include "engine/backend/ssm.h"

namespace bst {

struct ChunkTables {
  std::vector<float> taps, out, in, carry;  // as in RecurrenceTask
};
ChunkTables DiagonalTables(const SsmParameters& parameters);
ChunkTables DplrTables(const DplrParameters& parameters);

}  // namespace bst
