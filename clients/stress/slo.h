// Slo: what latencies are promised, and whether a run or a request keeps the promise.
//
// Written `ttft:200ms,itl:50ms@p95,e2e:5s`: the metric, the bound with its unit, and the percentile
// that must hold it (p99 if not said).
//
// A run holds a clause if that share of what it measured is within the bound; a request that failed
// is beyond every bound. A request holds ttft, tpot and e2e if its own value is within the bound,
// and itl if that share of its own gaps is. Requests that hold all clauses are the goodput.
//
// Threads     Values and free functions.
// Tested by   tests/clients/stress/slo_test.cc
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace bst::stress {

// Time to first token; mean time per token after the first; gap between two messages with tokens;
// from the intended send to the end of the stream.
enum class Metric { kTtft, kTpot, kItl, kE2e };
inline constexpr std::array<Metric, 4> kMetrics = {Metric::kTtft, Metric::kTpot, Metric::kItl,
                                                   Metric::kE2e};
// "ttft"
std::string_view MetricName(Metric metric);

struct SloClause {
  Metric metric = Metric::kTtft;
  double bound_seconds = 0;
  double percent = 99;

  // "ttft p99 <= 200 ms"
  std::string ToString() const;
};

// At most one clause per metric.
using Slo = std::vector<SloClause>;

// Throws UsageError that says what is wrong.
Slo ParseSlo(std::string_view text);

// "200ms", "1.5s", "2m", "1h", "500us": seconds, above 0. Throws UsageError.
double ParseDuration(std::string_view text);

// Whether `within` of `total` is at least the clause's percentile. Nothing measured holds nothing.
bool Holds(const SloClause& clause, uint64_t within, uint64_t total);

}  // namespace bst::stress
