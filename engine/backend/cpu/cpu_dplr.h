// The DPLR recurrence of ssm.h (S4) on the CPU, rearranged so that a token is one pass over the
// modes. Of ssm.h's terms let h = dt s + r, so that x += g (dt l x + dt b u - p h). Since
// r = 2 Re sum w v = 2 Re sum w (dt l x + dt b u) - dt s 2 Re sum w p, 2 Re sum w p = 1 - 1 / rho
// and 1 + g dt l / 2 = g, the sums over x become one without cancellation:
//   h = Re sum_m q_m x_m + kappa u         q = 4 w,  kappa = 2 Re sum w dt b
//   x += E x + B u - P h                   E = g dt l,  B = g dt b,  P = g p
// The sum that a token starts from is formed while the token before updates the modes; only a row's
// first token reads the state for it, in the same order, so cuts do not show.
//
// Threads   Engine thread only; tasks run on the threads of the CpuContext.
// Tested by tests/engine/backend/recurrence_test.cc
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "engine/backend/cpu/cpu_sequence.h"

namespace bst {

// See Backend::PackDplr.
absl::StatusOr<std::unique_ptr<SsmWeights>> PackCpuDplr(CpuContext& context,
                                                        const DplrParameters& parameters);

}  // namespace bst
