#include "clients/stress/sweep.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <utility>

namespace bst::stress {
namespace {

// The next load to try, given the highest that held and the lowest that failed.
std::optional<double> NextLoad(const SweepOptions& options, std::optional<double> held,
                               std::optional<double> failed) {
  const bool is_whole = options.variable == SweepOptions::Variable::kConcurrency;
  if (!held.has_value() && !failed.has_value()) return options.from;
  if (!failed.has_value()) {
    if (*held >= options.to) return std::nullopt;
    return std::min(2 * *held, options.to);
  }
  if (!held.has_value()) {
    const double half = is_whole ? std::floor(*failed / 2) : *failed / 2;
    // A thousandth of where the search began: nothing holds.
    if (half < (is_whole ? 1 : options.from * 1e-3)) return std::nullopt;
    return half;
  }
  if (*failed - *held <= options.precision * *failed) return std::nullopt;
  const double middle = (*held + *failed) / 2;
  if (!is_whole) return middle;
  return *failed - *held <= 1 ? std::nullopt : std::optional<double>(std::floor(middle));
}

}  // namespace

SweepResult Sweep(const SweepOptions& options, const RunLoad& run) {
  SweepResult sweep;
  sweep.is_rate = options.variable == SweepOptions::Variable::kRate;
  std::optional<double> held, failed;
  for (size_t i = 0; i < kMaxRuns; ++i) {
    std::optional<double> load;
    if (options.steps.empty()) {
      load = NextLoad(options, held, failed);
    } else if (i < options.steps.size()) {
      load = options.steps[i];
    }
    if (!load.has_value()) break;
    SweepPoint point = run(*load);
    std::optional<double>& bound = point.held ? held : failed;
    bound = !bound.has_value() ? *load
            : point.held       ? std::max(*bound, *load)
                               : std::min(*bound, *load);
    const bool was_interrupted = point.result.was_interrupted;
    sweep.points.push_back(std::move(point));
    if (was_interrupted) break;
  }
  std::sort(sweep.points.begin(), sweep.points.end(),
            [](const SweepPoint& a, const SweepPoint& b) { return a.load < b.load; });
  return sweep;
}

}  // namespace bst::stress
