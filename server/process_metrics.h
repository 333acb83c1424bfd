// ProcessMetrics: the usual process_* metrics of Prometheus clients, read from /proc.
//
// Threads     Immutable, thread-safe.
// Tested by   tests/server/metrics_exporter_test.cc
#pragma once

#include <prometheus/collectable.h>
#include <prometheus/metric_family.h>

#include <vector>

namespace bst {

class ProcessMetrics : public prometheus::Collectable {
 public:
  // What /proc does not tell is left out.
  std::vector<prometheus::MetricFamily> Collect() const override;
};

}  // namespace bst
