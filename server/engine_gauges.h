// EngineGauges: what the engine is doing now and what it is, read when Prometheus asks.
//
// Threads     Thread-safe.
// Tested by   tests/server/metrics_exporter_test.cc
#pragma once

#include <prometheus/collectable.h>
#include <prometheus/metric_family.h>

#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "engine/engine.h"

namespace bst {

// One gauge family with one value per set of labels.
struct GaugeValue {
  std::vector<prometheus::ClientMetric::Label> labels;
  double value = 0;
};
prometheus::MetricFamily GaugeFamily(const std::string& name, const std::string& help,
                                     const std::vector<GaugeValue>& values);

class EngineGauges : public prometheus::Collectable {
 public:
  // Shows `engine` until Unpublish.
  void Publish(const Engine& engine) ABSL_LOCKS_EXCLUDED(mutex_);
  void Unpublish() ABSL_LOCKS_EXCLUDED(mutex_);

  std::vector<prometheus::MetricFamily> Collect() const override ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  mutable absl::Mutex mutex_;
  const Engine* engine_ ABSL_GUARDED_BY(mutex_) = nullptr;
};

}  // namespace bst
