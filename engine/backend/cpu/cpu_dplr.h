// The DPLR recurrence of ssm.h (S4) on the CPU: two passes over the modes per token.
//
// The sum s that a token starts from is formed while the token before updates the modes; only a
// row's first token reads the state for it, in the same order, so cuts do not show.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "engine/backend/cpu/cpu_sequence.h"

namespace bst {

// See Backend::PackDplr.
absl::StatusOr<std::unique_ptr<SsmWeights>> PackCpuDplr(CpuContext& context,
                                                        const DplrParameters& parameters);

}  // namespace bst
