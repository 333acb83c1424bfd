// ServerMetrics: the server's own numbers, scraped from its Prometheus port.
//
// Threads     Values and free functions. ScrapeMetrics blocks up to five seconds.
// Tested by   tests/clients/stress/server_metrics_test.cc
#pragma once

#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace bst::stress {

struct ServerMetrics {
  std::map<std::string, std::string> types;  // family -> "counter", "gauge", "histogram"
  std::map<std::string, double> samples;     // "name{labels}", as it is written -> value
};

// Lines that are no sample are left out.
ServerMetrics ParseMetrics(std::string_view text);

// GET http://HOST:PORT/metrics. Throws ServerError that says why nothing came.
ServerMetrics ScrapeMetrics(const std::string& address);

// What one histogram family, summed over its labels, saw between two scrapes.
struct HistogramDelta {
  std::string family;
  double count = 0, mean = 0;
  // Interpolated within the bucket, as Prometheus' histogram_quantile does.
  double p50 = 0, p99 = 0;
};

// Those with observations in between, by name.
std::vector<HistogramDelta> HistogramDeltas(const ServerMetrics& before,
                                            const ServerMetrics& after);

struct SampleChange {
  std::string sample;
  double before = 0, after = 0;
};

// Counters that moved, and all gauges that are not constant descriptions (bst_build_info and the
// like), by name.
std::vector<SampleChange> CounterChanges(const ServerMetrics& before, const ServerMetrics& after);
std::vector<SampleChange> GaugeChanges(const ServerMetrics& before, const ServerMetrics& after);

}  // namespace bst::stress
