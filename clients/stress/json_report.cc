#include "clients/stress/json_report.h"

#include <array>
#include <cmath>
#include <ctime>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>

#include "clients/common/connection.h"

namespace bst::stress {
namespace {

constexpr double kMs = 1e3;

// Six significant digits: more than a histogram has.
double Round(double value) {
  if (value == 0 || !std::isfinite(value)) return 0;
  const double scale = std::pow(10.0, 5 - std::floor(std::log10(std::abs(value))));
  return std::round(value * scale) / scale;
}

std::string UtcDate() {
  const std::time_t now = std::time(nullptr);
  std::tm utc = {};
  gmtime_r(&now, &utc);
  char text[32];
  std::strftime(text, sizeof(text), "%Y-%m-%dT%H:%M:%SZ", &utc);
  return text;
}

void AddLatency(Json& json, const std::string& name, const Histogram& histogram) {
  json["mean_" + name + "_ms"] = Round(histogram.mean() * kMs);
  json["median_" + name + "_ms"] = Round(histogram.Percentile(50) * kMs);
  json["std_" + name + "_ms"] = Round(histogram.standard_deviation() * kMs);
  constexpr std::array<std::pair<const char*, double>, 5> kPercentiles = {
      {{"p50", 50}, {"p90", 90}, {"p95", 95}, {"p99", 99}, {"p99.9", 99.9}}};
  for (const auto& [label, percent] : kPercentiles)
    json[std::string(label) + "_" + name + "_ms"] = Round(histogram.Percentile(percent) * kMs);
  json["max_" + name + "_ms"] = Round(histogram.max() * kMs);
}

Json CodesJson(const std::map<grpc::StatusCode, uint64_t>& codes) {
  Json json = Json::object();
  for (const auto& [code, count] : codes) json[client::CodeName(code)] = count;
  return json;
}

// [percent, milliseconds], finer towards the top as far as there are enough requests to tell.
Json QuantilesJson(const Histogram& histogram) {
  Json points = Json::array();
  if (histogram.count() == 0) return points;
  constexpr int kPointsPerDecade = 12;
  const double last = std::log10(static_cast<double>(histogram.count()));
  for (int i = 0; i <= 6 * kPointsPerDecade; ++i) {
    const double nines = static_cast<double>(i) / kPointsPerDecade;  // 2: 99 %
    if (nines > last) break;
    const double percent = 100 * (1 - std::pow(10.0, -nines));
    points.push_back({percent, Round(histogram.Percentile(percent) * kMs)});
  }
  points.push_back({100, Round(histogram.max() * kMs)});
  return points;
}

Json TimelineJson(const Timeline& timeline) {
  Json sent = Json::array(), ended = Json::array(), failed = Json::array(), tokens = Json::array(),
       in_flight = Json::array(), ttft_p50 = Json::array(), ttft_p99 = Json::array(),
       itl_p50 = Json::array(), itl_p99 = Json::array();
  const auto percentile = [](const Histogram& histogram, double percent) {
    return histogram.count() == 0 ? Json() : Json(Round(histogram.Percentile(percent) * kMs));
  };
  int64_t open = 0;
  for (const Timeline::Bin& bin : timeline.bins()) {
    open += static_cast<int64_t>(bin.sent) - static_cast<int64_t>(bin.ended);
    sent.push_back(bin.sent);
    ended.push_back(bin.ended);
    failed.push_back(bin.failed);
    tokens.push_back(bin.output_tokens);
    in_flight.push_back(open);
    ttft_p50.push_back(percentile(bin.ttft, 50));
    ttft_p99.push_back(percentile(bin.ttft, 99));
    itl_p50.push_back(percentile(bin.itl, 50));
    itl_p99.push_back(percentile(bin.itl, 99));
  }
  return {{"bin_seconds", timeline.bin_seconds()},
          {"sent", sent},
          {"ended", ended},
          {"failed", failed},
          {"output_tokens", tokens},
          {"in_flight", in_flight},
          {"ttft_p50_ms", ttft_p50},
          {"ttft_p99_ms", ttft_p99},
          {"itl_p50_ms", itl_p50},
          {"itl_p99_ms", itl_p99}};
}

Json SloJson(const RunTotals& totals) {
  Json slo = Json::array();
  for (const ClauseCount& count : totals.slo) {
    slo.push_back({{"metric", MetricName(count.clause.metric)},
                   {"percent", count.clause.percent},
                   {"bound_ms", Round(count.clause.bound_seconds * kMs)},
                   {"within", count.within},
                   {"total", count.total},
                   {"held", Holds(count.clause, count.within, count.total)}});
  }
  return slo;
}

Json SamplesJson(const ServerMetrics& metrics) {
  Json samples = Json::object();
  for (const auto& [sample, value] : metrics.samples) {
    if (sample.find("_bucket{") == std::string::npos && std::isfinite(value))
      samples[sample] = value;
  }
  return samples;
}

Json ServerMetricsJson(const RunResult& result) {
  Json histograms = Json::object();
  for (const HistogramDelta& delta : HistogramDeltas(*result.before, *result.after)) {
    histograms[delta.family] = {{"count", delta.count},
                                {"mean", Round(delta.mean)},
                                {"p50", Round(delta.p50)},
                                {"p99", Round(delta.p99)}};
  }
  Json counters = Json::object();
  for (const SampleChange& change : CounterChanges(*result.before, *result.after))
    counters[change.sample] = change.after - change.before;  // exact: counts are compared
  return {{"counters", counters},
          {"histograms", histograms},
          {"before", SamplesJson(*result.before)},
          {"after", SamplesJson(*result.after)}};
}

// vLLM's names, in its order.
void AddVllmFields(Json& json, const Subject& subject, const RunResult& result) {
  const RunTotals& totals = result.totals;
  json["date"] = UtcDate();
  json["backend"] = "bst";
  json["model_id"] = subject.model;
  json["num_prompts"] = totals.requests;
  json["request_rate"] = result.load.rate.has_value() ? Json(*result.load.rate) : Json("inf");
  json["burstiness"] = result.load.burstiness;
  json["max_concurrency"] =
      result.load.concurrency.has_value() ? Json(*result.load.concurrency) : Json();
  json["duration"] = Round(result.duration_seconds());
  json["completed"] = totals.completed;
  json["failed"] = totals.failed;
  json["total_input_tokens"] = totals.prompt_tokens;
  json["total_output_tokens"] = totals.output_tokens;
  json["request_throughput"] = Round(result.PerSecond(totals.work.completed));
  json["request_goodput"] =
      result.has_slo ? Json(Round(result.PerSecond(totals.work.good))) : Json();
  json["output_throughput"] = Round(result.PerSecond(totals.work.output_tokens));
  json["total_token_throughput"] =
      Round(result.PerSecond(totals.work.prompt_tokens + totals.work.output_tokens));
  json["max_concurrent_requests"] = result.peak_in_flight;
  AddLatency(json, "ttft", totals.ttft);
  AddLatency(json, "tpot", totals.tpot);
  AddLatency(json, "itl", totals.itl);
  AddLatency(json, "e2el", totals.e2e);
}

}  // namespace

Json RunJson(const Subject& subject, const RunResult& result) {
  const RunTotals& totals = result.totals;
  Json json;
  AddVllmFields(json, subject, result);
  json["server"] = {{"address", subject.server}, {"backend", subject.backend}};
  json["load"] = DescribeLoad(result.load);
  json["connections"] = subject.num_connections;
  json["seed"] = subject.seed;
  json["warmup_seconds"] = result.load.warmup_seconds;
  const std::vector<std::string> complaints = result.Complaints();
  json["ok"] = complaints.empty();
  json["complaints"] = complaints;
  json["status_codes"] = CodesJson(totals.codes);
  Json messages = Json::object();
  for (const auto& [code, message] : totals.first_message)
    messages[client::CodeName(code)] = message;
  json["first_messages"] = messages;
  json["finish_reasons"] = totals.finish_reasons;
  json["unexpected"] = totals.unexpected;
  json["refusals"] = {{"count", totals.refusals},
                      {"with_retry_info", totals.refusals_with_retry_info},
                      {"with_pushback", totals.refusals_with_pushback},
                      {"retries", totals.retries}};
  json["longest_stall_ms"] = Round(totals.longest_stall_seconds * kMs);
  json["slo"] = SloJson(totals);
  Json probes = {{"count", totals.probes}, {"status_codes", CodesJson(totals.probe_codes)}};
  AddLatency(probes, "e2el", totals.probe_e2e);
  json["probes"] = probes;
  json["client"] = {{"cpu_cores", Round(result.client_cpu_cores)},
                    {"send_lag_p50_ms", Round(totals.send_lag.Percentile(50) * kMs)},
                    {"send_lag_p99_ms", Round(totals.send_lag.Percentile(99) * kMs)},
                    {"send_lag_max_ms", Round(totals.send_lag.max() * kMs)}};
  json["quantiles"] = {{"ttft", QuantilesJson(totals.ttft)},
                       {"tpot", QuantilesJson(totals.tpot)},
                       {"itl", QuantilesJson(totals.itl)},
                       {"e2el", QuantilesJson(totals.e2e)},
                       {"probe", QuantilesJson(totals.probe_e2e)}};
  json["timeline"] = TimelineJson(totals.timeline);
  if (result.before.has_value() && result.after.has_value())
    json["server_metrics"] = ServerMetricsJson(result);
  return json;
}

Json SweepJson(const Subject& subject, const SweepResult& sweep) {
  const SweepPoint* const highest = sweep.Highest();
  Json json = RunJson(subject, highest != nullptr ? highest->result : sweep.points.front().result);
  Json points = Json::array();
  for (const SweepPoint& point : sweep.points) {
    Json run = RunJson(subject, point.result);
    for (const char* const field : {"timeline", "quantiles", "server_metrics"}) run.erase(field);
    points.push_back({{"load", point.load}, {"held", point.held}, {"run", std::move(run)}});
  }
  json["ok"] = highest != nullptr;
  json["sweep"] = {{"variable", sweep.is_rate ? "rate" : "concurrency"},
                   {"highest", highest != nullptr ? Json(highest->load) : Json()},
                   {"points", points}};
  return json;
}

Json RequestJson(const RequestRecord& record) {
  const auto milliseconds = [](const std::optional<double>& seconds) {
    return seconds.has_value() ? Json(Round(*seconds * kMs)) : Json();
  };
  Json json = {{"index", record.index},
               {"kind", record.is_probe ? "probe" : "request"},
               {"request_id", record.request_id},
               {"measured", record.is_measured},
               {"status", client::CodeName(record.code)},
               {"finish_reason", v1::FinishReason_Name(record.finish_reason)},
               {"prompt_tokens", record.prompt_tokens},
               {"output_tokens", record.output_tokens},
               {"intended_seconds", record.intended_seconds},
               {"sent_seconds", record.sent_seconds},
               {"end_seconds", record.end_seconds},
               {"ttft_ms", milliseconds(record.ttft_seconds)},
               {"tpot_ms", milliseconds(record.tpot_seconds)},
               {"e2el_ms", Round(record.e2e_seconds * kMs)},
               {"longest_gap_ms", Round(record.longest_gap_seconds * kMs)},
               {"cancelled_by_client", record.was_cancelled || record.was_cut},
               {"slow_reader", record.is_slow_reader},
               {"retries", record.retries}};
  if (!record.message.empty()) json["message"] = record.message;
  if (!record.defect.empty()) json["defect"] = record.defect;
  if (record.pushback_ms.has_value()) json["pushback_ms"] = *record.pushback_ms;
  if (record.has_retry_info) json["retry_delay_seconds"] = record.retry_delay_seconds;
  return json;
}

}  // namespace bst::stress
