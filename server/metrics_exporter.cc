#include "server/metrics_exporter.h"

#include <prometheus/text_serializer.h>

#include <algorithm>
#include <exception>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/engine_gauges.h"
#include "server/grpc_status.h"
#include "server/process_metrics.h"
#include "server/server_config.h"

namespace bst {
namespace {

using Buckets = prometheus::Histogram::BucketBoundaries;

const Buckets& FirstTokenBuckets() {
  static const Buckets buckets = {.001, .005, .01, .02, .04, .06, .08, .1, .25, .5,  .75,
                                  1,    2.5,  5,   7.5, 10,  20,  40,  80, 160, 640, 2560};
  return buckets;
}

const Buckets& InterTokenBuckets() {
  static const Buckets buckets = {.0005, .001, .002, .003, .005, .0075, .01, .025, .05, .075, .1,
                                  .15,   .2,   .3,   .4,   .5,   .75,   1,   2.5,  5,   10};
  return buckets;
}

const Buckets& RequestBuckets() {
  static const Buckets buckets = {.001, .01, .05, .1,  .3,  .5,  1,   2.5,  5,
                                  10,   30,  60,  120, 240, 480, 960, 1920, 7680};
  return buckets;
}

// 1, 2, 5, 10, ... 5,000,000
Buckets TokenCountBuckets() {
  Buckets buckets;
  for (double decade = 1; decade <= 1e6; decade *= 10) {
    for (const double step : {1, 2, 5}) buckets.push_back(step * decade);
  }
  return buckets;
}

// 1, 2, 4, ... 65,536
Buckets PowersOfTwo() {
  Buckets buckets;
  for (double power = 1; power <= 65536; power *= 2) buckets.push_back(power);
  return buckets;
}

constexpr std::array<const char*, 3> kPhaseNames = {"prefill", "decode", "mixed"};
constexpr std::array<const char*, 3> kStageNames = {"queued", "prefill", "decode"};
constexpr std::array<const char*, 3> kCauseNames = {"client", "deadline", "abort"};
constexpr std::array<const char*, 5> kRejectNames = {"queue_requests", "queue_tokens", "too_long",
                                                     "draining", "invalid"};

prometheus::Family<prometheus::Histogram>& HistogramFamily(prometheus::Registry& registry,
                                                           const char* name, const char* help) {
  return prometheus::BuildHistogram().Name(name).Help(help).Register(registry);
}

prometheus::Histogram* Histogram(prometheus::Registry& registry, const char* name, const char* help,
                                 const Buckets& buckets) {
  return &HistogramFamily(registry, name, help).Add({}, buckets);
}

prometheus::Gauge* Gauge(prometheus::Registry& registry, const char* name, const char* help) {
  return &prometheus::BuildGauge().Name(name).Help(help).Register(registry).Add({});
}

prometheus::Counter* Counter(prometheus::Registry& registry, const char* name, const char* help) {
  return &prometheus::BuildCounter().Name(name).Help(help).Register(registry).Add({});
}

// Of a request that ended early, by whom: an index into kCauseNames, or -1 when it was not
// cancelled.
int CauseIndex(const FinishedEvent& finished, CancelCause cause) {
  if (finished.status.code() == absl::StatusCode::kDeadlineExceeded) return 1;
  if (finished.status.code() != absl::StatusCode::kCancelled) return -1;
  switch (cause) {
    case CancelCause::kClient:
    case CancelCause::kOutboxFull:
    case CancelCause::kWriteTimeout:
      return 0;
    case CancelCause::kDeadline:
      return 1;
    case CancelCause::kAbort:
      return 2;
    case CancelCause::kNone:
    case CancelCause::kRefused:
      return -1;
  }
  return -1;
}

}  // namespace

MetricsExporter::MetricsExporter(const ActiveRequests& active)
    : active_(active),
      registry_(std::make_shared<prometheus::Registry>()),
      gauges_(std::make_shared<EngineGauges>()),
      process_(std::make_shared<ProcessMetrics>()) {
  BuildRequestMetrics();
  BuildLatencyMetrics();
  BuildStepMetrics();
}

MetricsExporter::~MetricsExporter() = default;

void MetricsExporter::BuildRequestMetrics() {
  requests_ =
      &prometheus::BuildCounter()
           .Name("bst_requests_total")
           .Help(
               "Finished RPCs by RPC, status code and, where the engine took them, finish reason.")
           .Register(*registry_);
  auto& rejected = prometheus::BuildCounter()
                       .Name("bst_requests_rejected_total")
                       .Help(
                           "Requests refused, before they were queued or for a later part of an "
                           "upload, by reason.")
                       .Register(*registry_);
  for (size_t i = 0; i < rejected_.size(); ++i)
    rejected_[i] = &rejected.Add({{"reason", kRejectNames[i]}});
  auto& cancelled =
      prometheus::BuildCounter()
          .Name("bst_requests_cancelled_total")
          .Help("Requests ended before their time, by where they were and who ended them.")
          .Register(*registry_);
  for (size_t stage = 0; stage < cancelled_.size(); ++stage) {
    for (size_t cause = 0; cause < cancelled_[stage].size(); ++cause) {
      cancelled_[stage][cause] =
          &cancelled.Add({{"stage", kStageNames[stage]}, {"cause", kCauseNames[cause]}});
    }
  }
  messages_to_read_ = Gauge(*registry_, "bst_messages_to_read",
                            "Large messages whose text waits to be tokenised, or is: the requests "
                            "among them are not queued yet.");
  bytes_to_read_ = Gauge(*registry_, "bst_messages_to_read_bytes", "Bytes of them.");
  prompt_tokens_ =
      Counter(*registry_, "bst_prompt_tokens_total", "Prompt tokens that were computed.");
  generation_tokens_ =
      Counter(*registry_, "bst_generation_tokens_total", "Tokens that were generated.");
  request_prompt_tokens_ = Histogram(*registry_, "bst_request_prompt_tokens",
                                     "Prompt tokens of a finished request.", TokenCountBuckets());
  request_generation_tokens_ =
      Histogram(*registry_, "bst_request_generation_tokens",
                "Generated tokens of a finished request.", TokenCountBuckets());
}

void MetricsExporter::BuildLatencyMetrics() {
  prometheus::Registry& registry = *registry_;
  time_to_first_token_ =
      Histogram(registry, "bst_time_to_first_token_seconds",
                "From arrival to the first token of a request.", FirstTokenBuckets());
  inter_token_latency_ =
      Histogram(registry, "bst_inter_token_latency_seconds",
                "Between two tokens of a stream, each gap.", InterTokenBuckets());
  time_per_output_token_ =
      Histogram(registry, "bst_time_per_output_token_seconds",
                "Mean gap between the tokens of a finished request's longest continuation.",
                InterTokenBuckets());
  queue_time_ =
      Histogram(registry, "bst_request_queue_seconds",
                "From arrival to the first step, or to the end without one.", RequestBuckets());
  prefill_time_ = Histogram(registry, "bst_request_prefill_seconds",
                            "From the first step to the end of the prompt.", RequestBuckets());
  decode_time_ = Histogram(registry, "bst_request_decode_seconds",
                           "From the first token to the last.", RequestBuckets());
  end_to_end_ = Histogram(registry, "bst_e2e_request_latency_seconds", "From arrival to the end.",
                          RequestBuckets());
  decode_stall_ = Histogram(registry, "bst_decode_stall_seconds",
                            "Gap that a decoding stream saw while a prompt chunk shared its step.",
                            InterTokenBuckets());
}

void MetricsExporter::BuildStepMetrics() {
  auto& sequences =
      HistogramFamily(*registry_, "bst_batch_sequences", "Sequences of a step, by phase.");
  auto& tokens = HistogramFamily(*registry_, "bst_iteration_tokens", "Tokens of a step, by phase.");
  auto& seconds = HistogramFamily(*registry_, "bst_step_seconds", "Duration of a step, by phase.");
  for (size_t phase = 0; phase < kPhaseNames.size(); ++phase) {
    const prometheus::Labels labels = {{"phase", kPhaseNames[phase]}};
    batch_sequences_[phase] = &sequences.Add(labels, PowersOfTwo());
    iteration_tokens_[phase] = &tokens.Add(labels, PowersOfTwo());
    step_time_[phase] = &seconds.Add(labels, InterTokenBuckets());
  }
}

absl::StatusOr<std::string> MetricsExporter::Listen(const std::string& address) {
  // Each connection holds a thread until its request has come: by default 30 s, so that one client
  // which says nothing would keep Prometheus out.
  const std::vector<std::string> options = {"listening_ports",    address, "num_threads", "8",
                                            "request_timeout_ms", "1000"};
  try {
    exposer_ = std::make_unique<prometheus::Exposer>(options);
  } catch (const std::exception& error) {  // civetweb's, which does not name the address
    return absl::UnavailableError(
        absl::StrCat("cannot serve metrics at ", address, ": ", error.what()));
  }
  exposer_->RegisterCollectable(registry_);
  exposer_->RegisterCollectable(gauges_);
  exposer_->RegisterCollectable(process_);
  return absl::StrCat(ParseHostPort(address)->host, ":", exposer_->GetListeningPorts().front());
}

void MetricsExporter::Publish(const Engine& engine) {
  gauges_->Publish(engine);
  published_.store(true, std::memory_order_release);
}

void MetricsExporter::Unpublish() { gauges_->Unpublish(); }

void MetricsExporter::CountRequest(const std::string& rpc, absl::StatusCode code,
                                   const std::string& finish_reason) {
  requests_->Add({{"rpc", rpc}, {"code", CodeName(code)}, {"finish_reason", finish_reason}})
      .Increment();
}

void MetricsExporter::CountRejected(RejectReason reason) {
  rejected_[static_cast<size_t>(reason)]->Increment();
}

void MetricsExporter::SetReadersLoad(MessageReaders::Load load) {
  messages_to_read_->Set(static_cast<double>(load.messages));
  bytes_to_read_->Set(static_cast<double>(load.bytes));
}

std::string MetricsExporter::Render() const {
  std::vector<prometheus::MetricFamily> families = registry_->Collect();
  for (const prometheus::Collectable* source :
       {static_cast<const prometheus::Collectable*>(gauges_.get()),
        static_cast<const prometheus::Collectable*>(process_.get())}) {
    const std::vector<prometheus::MetricFamily> more = source->Collect();
    families.insert(families.end(), more.begin(), more.end());
  }
  return prometheus::TextSerializer().Serialize(families);
}

void MetricsExporter::OnStep(const StepStats& step) {
  if (!published_.load(std::memory_order_acquire)) return;
  const auto phase = static_cast<size_t>(step.phase);
  const double seconds = absl::ToDoubleSeconds(step.duration);
  batch_sequences_[phase]->Observe(step.sequences);
  iteration_tokens_[phase]->Observe(step.tokens);
  step_time_[phase]->Observe(seconds);
  prompt_tokens_->Increment(step.prompt_tokens);
  if (step.phase == StepStats::Phase::kMixed) {
    for (int stream = 0; stream < step.tokens - step.prompt_tokens; ++stream)
      decode_stall_->Observe(seconds);
  }
}

void MetricsExporter::OnToken(SequenceId, std::optional<absl::Duration> since_previous) {
  if (!published_.load(std::memory_order_acquire)) return;
  generation_tokens_->Increment();
  if (!since_previous.has_value()) return;
  inter_token_latency_->Observe(absl::ToDoubleSeconds(*since_previous));
}

void MetricsExporter::OnFirstToken(SequenceId, absl::Duration since_arrival) {
  if (!published_.load(std::memory_order_acquire)) return;
  time_to_first_token_->Observe(absl::ToDoubleSeconds(since_arrival));
}

void MetricsExporter::OnFinished(const std::string& request_id, const RequestStats& request) {
  if (!published_.load(std::memory_order_acquire)) return;
  const FinishedEvent& finished = request.finished;
  const auto stage = static_cast<size_t>(request.stage);
  if (const int cause = CauseIndex(finished, active_.CauseOf(request_id)); cause >= 0) {
    cancelled_[stage][static_cast<size_t>(cause)]->Increment();
  }
  queue_time_->Observe(absl::ToDoubleSeconds(finished.timings.queue));
  end_to_end_->Observe(absl::ToDoubleSeconds(request.total));
  request_prompt_tokens_->Observe(static_cast<double>(finished.prompt_tokens));
  if (request.stage != RequestStats::Stage::kDecode) return;  // the prompt was not read to its end
  prefill_time_->Observe(absl::ToDoubleSeconds(finished.timings.prefill));
  if (request.kind == RequestStats::Kind::kScore || finished.generated_tokens == 0) return;
  request_generation_tokens_->Observe(static_cast<double>(finished.generated_tokens));
  decode_time_->Observe(absl::ToDoubleSeconds(finished.timings.decode));
  if (request.longest_tokens > 1) {
    time_per_output_token_->Observe(absl::ToDoubleSeconds(finished.timings.decode) /
                                    static_cast<double>(request.longest_tokens - 1));
  }
}

}  // namespace bst
