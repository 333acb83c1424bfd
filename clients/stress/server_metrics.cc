#include "clients/stress/server_metrics.h"

#include <curl/curl.h>

#include <algorithm>
#include <charconv>
#include <limits>
#include <memory>

#include "clients/stress/server_facts.h"

namespace bst::stress {
namespace {

constexpr long kScrapeSeconds = 5;

std::string_view TakeLine(std::string_view& text) {
  const size_t end = std::min(text.find('\n'), text.size());
  const std::string_view line = text.substr(0, end);
  text.remove_prefix(std::min(end + 1, text.size()));
  return line;
}

bool ParseValue(std::string_view text, double& value) {
  if (!text.empty() && text.front() == '+') text.remove_prefix(1);
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() && end == text.data() + text.size();
}

std::string_view NameOf(std::string_view sample) { return sample.substr(0, sample.find('{')); }

double Value(const ServerMetrics& metrics, const std::string& sample) {
  const auto found = metrics.samples.find(sample);
  return found == metrics.samples.end() ? 0 : found->second;
}

// The upper bound in a bucket's le label.
bool BucketBound(std::string_view sample, double& bound) {
  const size_t start = sample.find("le=\"");
  if (start == std::string_view::npos) return false;
  const std::string_view rest = sample.substr(start + 4);
  const std::string_view text = rest.substr(0, rest.find('"'));
  if (text == "+Inf") {
    bound = std::numeric_limits<double>::infinity();
    return true;
  }
  return ParseValue(text, bound);
}

double Quantile(const std::map<double, double>& cumulative, double quantile) {
  const double rank = quantile * cumulative.rbegin()->second;
  double low = 0, below = 0;
  for (const auto& [bound, count] : cumulative) {
    if (count >= rank && count > below) {
      if (bound == std::numeric_limits<double>::infinity()) return low;
      return low + (bound - low) * (rank - below) / (count - below);
    }
    low = bound;
    below = count;
  }
  return low;
}

std::vector<SampleChange> Changes(const ServerMetrics& before, const ServerMetrics& after,
                                  std::string_view type) {
  std::vector<SampleChange> changes;
  for (const auto& [sample, value] : after.samples) {
    const auto family = after.types.find(std::string(NameOf(sample)));
    if (family == after.types.end() || family->second != type) continue;
    changes.push_back({sample, Value(before, sample), value});
  }
  return changes;
}

size_t Append(char* data, size_t size, size_t count, void* text) {
  static_cast<std::string*>(text)->append(data, size * count);
  return size * count;
}

}  // namespace

ServerMetrics ParseMetrics(std::string_view text) {
  ServerMetrics metrics;
  constexpr std::string_view kType = "# TYPE ";
  while (!text.empty()) {
    const std::string_view line = TakeLine(text);
    if (line.starts_with(kType)) {
      const std::string_view rest = line.substr(kType.size());
      const size_t space = rest.find(' ');
      if (space != std::string_view::npos)
        metrics.types[std::string(rest.substr(0, space))] = std::string(rest.substr(space + 1));
      continue;
    }
    if (line.empty() || line.front() == '#') continue;
    // A label's value may hold spaces; no timestamp follows the value.
    const size_t space = line.rfind(' ');
    double value = 0;
    if (space != std::string_view::npos && ParseValue(line.substr(space + 1), value))
      metrics.samples[std::string(line.substr(0, space))] = value;
  }
  return metrics;
}

ServerMetrics ScrapeMetrics(const std::string& address) {
  const std::unique_ptr<CURL, decltype(&curl_easy_cleanup)> curl(curl_easy_init(),
                                                                 &curl_easy_cleanup);
  if (curl == nullptr) throw ServerError("libcurl does not start");
  const std::string url = "http://" + address + "/metrics";
  std::string text;
  char error[CURL_ERROR_SIZE] = "";
  curl_easy_setopt(curl.get(), CURLOPT_URL, url.c_str());
  curl_easy_setopt(curl.get(), CURLOPT_PROTOCOLS_STR, "http");
  curl_easy_setopt(curl.get(), CURLOPT_NOPROXY, "*");
  curl_easy_setopt(curl.get(), CURLOPT_NOSIGNAL, 1L);
  curl_easy_setopt(curl.get(), CURLOPT_TIMEOUT, kScrapeSeconds);
  curl_easy_setopt(curl.get(), CURLOPT_FAILONERROR, 1L);
  curl_easy_setopt(curl.get(), CURLOPT_ERRORBUFFER, error);
  curl_easy_setopt(curl.get(), CURLOPT_WRITEFUNCTION, &Append);
  curl_easy_setopt(curl.get(), CURLOPT_WRITEDATA, &text);
  const CURLcode code = curl_easy_perform(curl.get());
  if (code != CURLE_OK) {
    throw ServerError("--metrics: " + url + ": " +
                      (error[0] != '\0' ? error : curl_easy_strerror(code)));
  }
  return ParseMetrics(text);
}

std::vector<HistogramDelta> HistogramDeltas(const ServerMetrics& before,
                                            const ServerMetrics& after) {
  std::vector<HistogramDelta> deltas;
  for (const auto& [family, type] : after.types) {
    if (type != "histogram") continue;
    HistogramDelta delta{family};
    double sum = 0;
    std::map<double, double> cumulative;
    for (auto it = after.samples.lower_bound(family);
         it != after.samples.end() && it->first.starts_with(family); ++it) {
      const std::string_view name = NameOf(it->first);
      const double change = it->second - Value(before, it->first);
      if (name == family + "_count") delta.count += change;
      if (name == family + "_sum") sum += change;
      double bound = 0;
      if (name == family + "_bucket" && BucketBound(it->first, bound)) cumulative[bound] += change;
    }
    if (delta.count <= 0 || cumulative.empty()) continue;
    delta.mean = sum / delta.count;
    delta.p50 = Quantile(cumulative, 0.5);
    delta.p99 = Quantile(cumulative, 0.99);
    deltas.push_back(delta);
  }
  return deltas;
}

std::vector<SampleChange> CounterChanges(const ServerMetrics& before, const ServerMetrics& after) {
  std::vector<SampleChange> changes = Changes(before, after, "counter");
  std::erase_if(changes, [](const SampleChange& c) { return c.before == c.after; });
  return changes;
}

std::vector<SampleChange> GaugeChanges(const ServerMetrics& before, const ServerMetrics& after) {
  std::vector<SampleChange> changes = Changes(before, after, "gauge");
  std::erase_if(changes, [](const SampleChange& c) {
    const std::string_view name = NameOf(c.sample);
    return name.ends_with("_info") || name.ends_with("timestamp_seconds") ||
           name.ends_with("start_time_seconds");
  });
  return changes;
}

}  // namespace bst::stress
