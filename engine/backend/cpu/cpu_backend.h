// The CPU backend: threads and vector instructions (AVX2, AVX-512 or AMX), chosen once when it is
// made.
//
// Activations are float32. Linear layers take F32, BF16 or INT8 weights; with BF16 the inputs are
// rounded to BF16 and products summed in float32, with INT8 both are as int8.h says. Rings hold
// F32, BF16 or INT8 in the layout of kernels.h.
//
// The README beside this file holds the decisions and the measurements.
//
// Threads   Engine thread only; workers of its own.
// Tested by tests/engine/backend/agreement_test.cc, tests/engine/model/model_test.cc (every
//           instruction set that the machine has, and AMX)
#pragma once

#include <memory>
#include <optional>

#include "absl/status/statusor.h"
#include "engine/backend/backend.h"
#include "engine/backend/cpu/cpu_isa.h"

namespace bst {

struct CpuOptions {
  int threads = 0;            // 0: all processors this process may run on
  std::optional<CpuIsa> isa;  // unset: the best there is; tests ask for each
  // For tests. AMX tiles in plain code, on AVX-512.
  bool emulate_amx = false;
  // For tests. The kernels of `isa` even if the processor lacks it: something traps what it lacks.
  bool assume_isa = false;
  // False for tests: AMX without the self-check at start.
  bool self_check = true;
};

// Errors: kUnimplemented when the processor lacks AVX2 and FMA, or the instruction set asked for
//         and not assumed; kInvalidArgument for a negative number of threads; kResourceExhausted
//         when the system starts no more threads.
absl::StatusOr<std::unique_ptr<Backend>> MakeCpuBackend(const CpuOptions& options = {});

}  // namespace bst
