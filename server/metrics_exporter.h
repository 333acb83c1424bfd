// MetricsExporter: what the engine and the RPCs count -> Prometheus. The only code that names
// metrics.
//
// Counters and histograms are fed by events; gauges are read from the engine when Prometheus asks.
// Events before Publish (the warm-up) do not count.
//
// Names  docs of every metric are its HELP text, see metrics_exporter.cc and engine_gauges.cc.
// Threads     Thread-safe. EngineObserver's methods are called by the engine thread: they take only
//             locks that are held for an addition.
// Tested by   tests/server/metrics_exporter_test.cc
#pragma once

#include <prometheus/counter.h>
#include <prometheus/exposer.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>

#include <array>
#include <atomic>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/engine.h"
#include "server/active_requests.h"
#include "server/message_readers.h"

namespace bst {

class EngineGauges;
class ProcessMetrics;

enum class RejectReason { kQueueRequests, kQueueTokens, kTooLong, kDraining, kInvalid };

class MetricsExporter : public EngineObserver {
 public:
  // `active` tells why a request was cancelled; it outlives the exporter.
  explicit MetricsExporter(const ActiveRequests& active);
  ~MetricsExporter() override;

  // Serves /metrics over HTTP at `address` (HOST:PORT, port 0 picks one); returns HOST:PORT.
  // Errors: kUnavailable when the address cannot be bound.
  absl::StatusOr<std::string> Listen(const std::string& address);

  // From now on gauges show `engine`, and events count. `engine` outlives the exporter's use:
  // Unpublish first. REQUIRES: once.
  void Publish(const Engine& engine);
  // The gauges of the engine are gone; returns when nobody reads them.
  void Unpublish();

  // One finished RPC; `finish_reason` is empty for those that generate nothing.
  void CountRequest(const std::string& rpc, absl::StatusCode code,
                    const std::string& finish_reason);
  void CountRejected(RejectReason reason);
  void SetReadersLoad(MessageReaders::Load load);

  // The text that /metrics answers.
  std::string Render() const;

  void OnStep(const StepStats& step) override;
  void OnToken(SequenceId id, std::optional<absl::Duration> since_previous) override;
  void OnFirstToken(SequenceId id, absl::Duration since_arrival) override;
  void OnFinished(const std::string& request_id, const RequestStats& request) override;

 private:
  static constexpr int kPhases = 3, kStages = 3, kCauses = 3, kRejectReasons = 5;

  void BuildRequestMetrics();
  void BuildLatencyMetrics();
  void BuildStepMetrics();

  const ActiveRequests& active_;
  std::atomic<bool> published_{false};
  const std::shared_ptr<prometheus::Registry> registry_;  // shared with the HTTP server, by its API
  const std::shared_ptr<EngineGauges> gauges_;            // likewise
  const std::shared_ptr<ProcessMetrics> process_;         // likewise

  // Owned by the registry.
  prometheus::Family<prometheus::Counter>* requests_;
  std::array<prometheus::Counter*, kRejectReasons> rejected_;
  std::array<std::array<prometheus::Counter*, kCauses>, kStages> cancelled_;
  prometheus::Gauge* messages_to_read_;
  prometheus::Gauge* bytes_to_read_;
  prometheus::Counter* prompt_tokens_;
  prometheus::Counter* generation_tokens_;
  prometheus::Histogram* time_to_first_token_;
  prometheus::Histogram* inter_token_latency_;
  prometheus::Histogram* time_per_output_token_;
  prometheus::Histogram* queue_time_;
  prometheus::Histogram* prefill_time_;
  prometheus::Histogram* decode_time_;
  prometheus::Histogram* end_to_end_;
  prometheus::Histogram* request_prompt_tokens_;
  prometheus::Histogram* request_generation_tokens_;
  prometheus::Histogram* decode_stall_;
  std::array<prometheus::Histogram*, kPhases> batch_sequences_;
  std::array<prometheus::Histogram*, kPhases> iteration_tokens_;
  std::array<prometheus::Histogram*, kPhases> step_time_;

  std::unique_ptr<prometheus::Exposer> exposer_;  // last: it reads the others
};

}  // namespace bst
