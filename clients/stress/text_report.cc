#include "clients/stress/text_report.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdarg>
#include <cstdint>

#include "clients/common/connection.h"

namespace bst::stress {
namespace {

constexpr double kMs = 1e3;

__attribute__((format(printf, 2, 3))) void Append(std::string& text, const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  char line[512];
  std::vsnprintf(line, sizeof(line), format, arguments);
  va_end(arguments);
  text += line;
}

using ULong = unsigned long long;

void AppendLatency(std::string& text, const char* name, const Histogram& h) {
  if (h.count() == 0) return;
  Append(text, "%-9s", name);
  for (const double percent : {50.0, 90.0, 95.0, 99.0, 99.9})
    Append(text, "%10.2f", h.Percentile(percent) * kMs);
  Append(text, "%10.2f%10.2f%10llu\n", h.max() * kMs, h.mean() * kMs,
         static_cast<ULong>(h.count()));
}

void AppendCodes(std::string& text, const RunTotals& totals) {
  Append(text, "\n%-22s%8s\n", "status", "requests");
  for (const auto& [code, count] : totals.codes) {
    Append(text, "%-22s%8llu", client::CodeName(code).c_str(), static_cast<ULong>(count));
    const auto message = totals.first_message.find(code);
    if (message != totals.first_message.end()) Append(text, "   %.200s", message->second.c_str());
    text += '\n';
  }
  if (totals.probes > 0) {
    for (const auto& [code, count] : totals.probe_codes)
      Append(text, "%-22s%8llu\n", ("probe " + client::CodeName(code)).c_str(),
             static_cast<ULong>(count));
  }
  std::string reasons;
  for (const auto& [reason, count] : totals.finish_reasons)
    Append(reasons, "  %s %llu", reason.c_str(), static_cast<ULong>(count));
  if (!reasons.empty()) Append(text, "finished:%s\n", reasons.c_str());
  if (totals.refusals > 0) {
    Append(text,
           "refusals: %llu RESOURCE_EXHAUSTED, %llu with RetryInfo, %llu with "
           "grpc-retry-pushback-ms; sent again %llu times\n",
           static_cast<ULong>(totals.refusals), static_cast<ULong>(totals.refusals_with_retry_info),
           static_cast<ULong>(totals.refusals_with_pushback), static_cast<ULong>(totals.retries));
  }
}

void AppendServer(std::string& text, const RunResult& result) {
  if (!result.before.has_value() || !result.after.has_value()) return;
  text += "\nthe server's own numbers over the run (its metrics before and after)\n";
  for (const SampleChange& c : CounterChanges(*result.before, *result.after)) {
    if (c.sample.starts_with("bst_") || c.sample.starts_with("process_cpu"))
      Append(text, "  %-84s %+14.6g\n", c.sample.c_str(), c.after - c.before);
  }
  const std::vector<HistogramDelta> histograms = HistogramDeltas(*result.before, *result.after);
  Append(text, "  %-48s%10s%12s%12s%12s\n", "histogram", "count", "mean", "p50 about", "p99 about");
  for (const HistogramDelta& h : histograms)
    Append(text, "  %-48s%10.0f%12.5g%12.5g%12.5g\n", h.family.c_str(), h.count, h.mean, h.p50,
           h.p99);
  Append(text, "  %-48s%16s%16s\n", "gauge", "before", "after");
  for (const SampleChange& c : GaugeChanges(*result.before, *result.after)) {
    if (c.sample.starts_with("bst_requests") || c.sample.starts_with("bst_queue") ||
        c.sample.starts_with("bst_state_slots") || c.sample.starts_with("process_resident") ||
        c.sample.starts_with("process_open"))
      Append(text, "  %-48s%16.10g%16.10g\n", c.sample.c_str(), c.before, c.after);
  }
}

}  // namespace

std::string RunText(const Subject& subject, const RunResult& result) {
  const RunTotals& totals = result.totals;
  std::string text;
  Append(text, "%s (%s, %s), %u connection%s, seed %llu\n", subject.server.c_str(),
         subject.model.c_str(), subject.backend.c_str(), subject.num_connections,
         subject.num_connections == 1 ? "" : "s", static_cast<ULong>(subject.seed));
  Append(text, "%s: %llu requests in %.2f s", DescribeLoad(result.load).c_str(),
         static_cast<ULong>(totals.requests), result.duration_seconds());
  if (result.load.warmup_seconds > 0)
    Append(text, " after %g s of warm-up", result.load.warmup_seconds);
  Append(text, "\n\n%-9s%10s%10s%10s%10s%10s%10s%10s%10s\n", "ms", "p50", "p90", "p95", "p99",
         "p99.9", "max", "mean", "samples");
  AppendLatency(text, "TTFT", totals.ttft);
  AppendLatency(text, "TPOT", totals.tpot);
  AppendLatency(text, "ITL", totals.itl);
  AppendLatency(text, "E2E", totals.e2e);
  AppendLatency(text, "probe E2E", totals.probe_e2e);
  Append(text, "longest stall of a stream: %.2f ms\n\n", totals.longest_stall_seconds * kMs);

  Append(text, "%-32s%12.2f\n", "completed requests/s", result.PerSecond(totals.work.completed));
  if (result.has_slo)
    Append(text, "%-32s%12.2f\n", "goodput, requests/s within SLO",
           result.PerSecond(totals.work.good));
  Append(text, "%-32s%12.2f\n", "output tokens/s", result.PerSecond(totals.work.output_tokens));
  Append(text, "%-32s%12.2f\n", "prompt and output tokens/s",
         result.PerSecond(totals.work.prompt_tokens + totals.work.output_tokens));
  Append(text, "%-32s%12llu\n", "most streams in flight",
         static_cast<ULong>(result.peak_in_flight));
  Append(text, "%-32s%12.2f cores; sends late by p99 %.2f ms, at most %.2f ms\n", "this client",
         result.client_cpu_cores, totals.send_lag.Percentile(99) * kMs,
         totals.send_lag.max() * kMs);
  AppendCodes(text, totals);
  AppendServer(text, result);

  text += '\n';
  for (const ClauseCount& count : totals.slo) {
    if (Holds(count.clause, count.within, count.total))
      Append(text, "SLO %s holds: %.2f %% are within it\n", count.clause.ToString().c_str(),
             100 * static_cast<double>(count.within) / static_cast<double>(count.total));
  }
  const std::vector<std::string> complaints = result.Complaints();
  for (const std::string& complaint : complaints) text += "FAILED: " + complaint + "\n";
  if (complaints.empty()) text += "passed\n";
  return text;
}

std::string SweepHeadText(bool is_rate) {
  std::string text;
  Append(text, "%12s%12s%12s%12s%12s%12s%12s%12s  %s\n", is_rate ? "requests/s" : "streams",
         "completed/s", "goodput/s", "output tok/s", "TTFT p50", "TTFT p99", "ITL p99", "E2E p99",
         "SLO");
  return text;
}

std::string SweepRowText(const SweepPoint& point) {
  const RunTotals& totals = point.result.totals;
  std::string text;
  Append(text, "%12.6g%12.2f%12.2f%12.1f%12.2f%12.2f%12.2f%12.2f  ", point.load,
         point.result.PerSecond(totals.work.completed), point.result.PerSecond(totals.work.good),
         point.result.PerSecond(totals.work.output_tokens), totals.ttft.Percentile(50) * kMs,
         totals.ttft.Percentile(99) * kMs, totals.itl.Percentile(99) * kMs,
         totals.e2e.Percentile(99) * kMs);
  const std::vector<std::string> complaints = point.result.Complaints();
  text += point.held ? "holds" : complaints.empty() ? "fails" : complaints.front();
  text += '\n';
  return text;
}

std::string ProgressText(double seconds, size_t running, const Recorder::Live& live,
                         double tokens_per_second) {
  std::string text;
  Append(text,
         "%7.1f s  sent %llu  running %llu  OK %llu  other %llu  %.0f tok/s  TTFT p50 %.1f ms p99 "
         "%.1f ms",
         seconds, static_cast<ULong>(live.sent), static_cast<ULong>(running),
         static_cast<ULong>(live.completed), static_cast<ULong>(live.other), tokens_per_second,
         live.ttft_p50 * kMs, live.ttft_p99 * kMs);
  return text;
}

LiveLine::LiveLine() : is_terminal_(isatty(STDERR_FILENO) == 1) {}

void LiveLine::Show(double seconds, size_t running, const Recorder::Live& live) {
  if (!is_terminal_) return;
  const double elapsed = std::max(seconds - last_seconds_, 1e-3);
  const double rate = static_cast<double>(live.output_tokens - last_tokens_) / elapsed;
  std::string text = ProgressText(seconds, running, live, rate);
  winsize size = {};
  // A line that wraps could not be wiped.
  if (ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0)
    text.resize(std::min<size_t>(text.size(), size.ws_col - 1u));
  std::fprintf(stderr, "\r\033[K%s", text.c_str());
  std::fflush(stderr);
  is_shown_ = true;
  last_seconds_ = seconds;
  last_tokens_ = live.output_tokens;
}

void LiveLine::Clear() {
  if (!is_shown_) return;
  std::fputs("\r\033[K", stderr);
  is_shown_ = false;
}

}  // namespace bst::stress
