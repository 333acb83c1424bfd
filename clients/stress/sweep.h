// The search for the highest load that holds the SLO.
//
// Threads     Free functions.
// Tested by   tests/clients/stress/sweep_test.cc
#pragma once

#include <functional>

#include "clients/stress/options.h"
#include "clients/stress/run_result.h"

namespace bst::stress {

// Runs one load and says whether it held and what was measured.
using RunLoad = std::function<SweepPoint(double load)>;

// With steps: each of them. Else doubles from `from` until the SLO fails, or halves until it holds,
// and bisects the interval; at most kMaxRuns loads. Ends early after a run that was interrupted.
inline constexpr int kMaxRuns = 30;
SweepResult Sweep(const SweepOptions& options, const RunLoad& run);

}  // namespace bst::stress
