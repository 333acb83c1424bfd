// What a recurrence in chunks (kernels.h) multiplies by. From the float32 parameters of ssm.h in
// float64, each number rounded once; what is near 1 is kept as its distance from it, or slow modes
// would drift.
//
// Memory    A few rows at a time and one state of each feature: about as much as the parameters.
// Threads   Pure functions.
// Errors    kFailedPrecondition, naming the feature: a weight lies beyond float32. (Times an input
//           of 0 it would be NaN.)
// Tested by tests/engine/backend/cuda/chunk_tables_test.cc
#pragma once

#include <cstddef>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/types/span.h"
#include "engine/backend/cuda/kernels.h"
#include "engine/backend/ssm.h"

namespace bst {

// As in RecurrenceTask: rows of one number per feature.
enum class ChunkTable { kTaps, kOut, kIn, kCarry };
size_t ChunkTableRows(ChunkTable table, int chunk, int reals, cuda::Recurrence kind);

// Takes each row of each table once, in any order; `values` dies with the call.
using ChunkRowSink =
    absl::FunctionRef<absl::Status(ChunkTable table, size_t row, absl::Span<const float> values)>;
absl::Status MakeDiagonalTables(const SsmParameters& parameters, ChunkRowSink sink);
absl::Status MakeDplrTables(const DplrParameters& parameters, ChunkRowSink sink);

}  // namespace bst
