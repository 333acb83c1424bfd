#include "clients/stress/slo.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>

#include "clients/common/connection.h"

namespace bst::stress {
namespace {

using client::UsageError;

// Reads a number at the start of `text` and removes it.
bool TakeNumber(std::string_view& text, double& number) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc() || !std::isfinite(number)) return false;
  text.remove_prefix(static_cast<size_t>(end - text.data()));
  return true;
}

double UnitSeconds(std::string_view unit) {
  if (unit == "us") return 1e-6;
  if (unit == "ms") return 1e-3;
  if (unit == "s") return 1;
  if (unit == "m") return 60;
  if (unit == "h") return 3600;
  return 0;
}

SloClause ParseClause(std::string_view text) {
  const auto fail = [text](const std::string& why) -> UsageError {
    return UsageError("--slo: '" + std::string(text) + "' " + why);
  };
  const size_t colon = text.find(':');
  if (colon == std::string_view::npos)
    throw fail("is not METRIC:BOUND, for instance ttft:200ms or itl:50ms@p95");
  SloClause clause;
  const std::string_view name = text.substr(0, colon);
  const auto metric = std::find_if(kMetrics.begin(), kMetrics.end(),
                                   [name](Metric m) { return MetricName(m) == name; });
  if (metric == kMetrics.end()) throw fail("names no metric; there are ttft, tpot, itl and e2e");
  clause.metric = *metric;
  std::string_view bound = text.substr(colon + 1);
  if (const size_t at = bound.find('@'); at != std::string_view::npos) {
    std::string_view percentile = bound.substr(at + 1);
    bound = bound.substr(0, at);
    const bool has_p = !percentile.empty() && percentile.front() == 'p';
    if (has_p) percentile.remove_prefix(1);
    if (!has_p || !TakeNumber(percentile, clause.percent) || !percentile.empty() ||
        clause.percent <= 0 || clause.percent > 100)
      throw fail("has no percentile after @, for instance @p95 (above p0, up to p100)");
  }
  clause.bound_seconds = ParseDuration(bound);
  return clause;
}

}  // namespace

std::string_view MetricName(Metric metric) {
  switch (metric) {
    case Metric::kTtft:
      return "ttft";
    case Metric::kTpot:
      return "tpot";
    case Metric::kItl:
      return "itl";
    case Metric::kE2e:
      return "e2e";
  }
  return "";
}

std::string SloClause::ToString() const {
  char text[64];
  std::snprintf(text, sizeof(text), "%s p%g <= %g ms", std::string(MetricName(metric)).c_str(),
                percent, bound_seconds * 1e3);
  return text;
}

Slo ParseSlo(std::string_view text) {
  Slo slo;
  while (true) {
    const size_t comma = std::min(text.find(','), text.size());
    const SloClause clause = ParseClause(text.substr(0, comma));
    if (std::any_of(slo.begin(), slo.end(),
                    [&clause](const SloClause& c) { return c.metric == clause.metric; }))
      throw UsageError("--slo: " + std::string(MetricName(clause.metric)) + " is there twice");
    slo.push_back(clause);
    if (comma == text.size()) return slo;
    text.remove_prefix(comma + 1);
  }
}

double ParseDuration(std::string_view text) {
  std::string_view rest = text;
  double number = 0;
  const bool is_number = TakeNumber(rest, number);
  const double unit = UnitSeconds(rest);
  if (!is_number || unit == 0 || number <= 0)
    throw UsageError("'" + std::string(text) +
                     "' is no duration: a number above 0 with its unit (us, ms, s, m, h), for "
                     "instance 200ms");
  return number * unit;
}

bool Holds(const SloClause& clause, uint64_t within, uint64_t total) {
  return total > 0 &&
         static_cast<double>(within) >= clause.percent / 100 * static_cast<double>(total) - 1e-9;
}

}  // namespace bst::stress
