// RunResult: what one run has measured, the rates that follow from it, and the verdict.
//
// Threads     A value.
// Tested by   tests/clients/stress/report_test.cc
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "clients/stress/load_run.h"
#include "clients/stress/recorder.h"
#include "clients/stress/server_metrics.h"

namespace bst::stress {

struct RunResult {
  LoadShape load;
  RunTotals totals;
  bool has_slo = false;
  bool was_interrupted = false;
  size_t peak_in_flight = 0;
  double client_cpu_cores = 0;  // of this process, on average
  std::optional<ServerMetrics> before, after;
  std::vector<std::string> troubles;  // what went wrong beside the requests

  // From the end of the warm-up to the end of the last request: what `totals.work` took.
  double duration_seconds() const;
  double PerSecond(uint64_t count) const;

  // Why the run is no success; empty: it is one.
  std::vector<std::string> Complaints() const;
};

// What was loaded, for the head of a report.
struct Subject {
  std::string server, model, backend;
  uint32_t num_connections = 1;
  uint64_t seed = 1;
};

// "open loop, 10 requests/s (poisson)"
std::string DescribeLoad(const LoadShape& load);

struct SweepPoint {
  double load = 0;  // requests per second, or streams
  bool held = false;
  RunResult result;
};

struct SweepResult {
  bool is_rate = true;
  std::vector<SweepPoint> points;  // in the order of the load
  // The highest load that held such that no lower one failed.
  const SweepPoint* Highest() const;
};

}  // namespace bst::stress
