#include "clients/stress/run_result.h"

#include <cstdio>

namespace bst::stress {
namespace {

std::string Format(const char* format, auto... values) {
  char text[256];
  std::snprintf(text, sizeof(text), format, values...);
  return text;
}

}  // namespace

double RunResult::duration_seconds() const {
  return std::max(totals.last_end_seconds - load.warmup_seconds, 0.0);
}

double RunResult::PerSecond(uint64_t count) const {
  const double seconds = duration_seconds();
  return seconds > 0 ? static_cast<double>(count) / seconds : 0;
}

std::vector<std::string> RunResult::Complaints() const {
  std::vector<std::string> complaints = troubles;
  if (was_interrupted) complaints.push_back("interrupted");
  if (totals.unexpected > 0) {
    complaints.push_back(Format("%llu unexpected ends, the first: ",
                                static_cast<unsigned long long>(totals.unexpected)) +
                         totals.first_unexpected);
  }
  for (const ClauseCount& count : totals.slo) {
    if (Holds(count.clause, count.within, count.total)) continue;
    complaints.push_back("SLO " + count.clause.ToString() + " does not hold: " +
                         (count.total == 0 ? std::string("nothing was measured")
                                           : Format("%.2f %% are within it",
                                                    100 * static_cast<double>(count.within) /
                                                        static_cast<double>(count.total))));
  }
  if (was_interrupted) return complaints;
  // Streams that outlast the run have no end to judge, but their tokens were measured. Without any
  // the server did nothing of what it was asked.
  if (totals.requests == 0) {
    complaints.push_back("no request was measured");
  } else if (totals.completed == 0 && totals.output_tokens == 0) {
    complaints.push_back("no request completed, and none had a token");
  }
  return complaints;
}

std::string DescribeLoad(const LoadShape& load) {
  if (!load.rate.has_value())
    return Format("closed loop, %u streams at a time", load.concurrency.value_or(0));
  std::string text = Format("open loop, %g requests/s (", *load.rate);
  switch (load.arrivals) {
    case Arrivals::kConstant:
      text += "constant";
      break;
    case Arrivals::kPoisson:
      text += "poisson";
      break;
    case Arrivals::kGamma:
      text += Format("gamma, burstiness %g", load.burstiness);
      break;
  }
  text += ")";
  if (load.concurrency.has_value()) text += Format(", %u at a time at most", *load.concurrency);
  return text;
}

const SweepPoint* SweepResult::Highest() const {
  const SweepPoint* highest = nullptr;
  for (const SweepPoint& point : points) {
    if (!point.held) break;
    highest = &point;
  }
  return highest;
}

}  // namespace bst::stress
