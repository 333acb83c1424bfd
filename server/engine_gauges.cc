#include "server/engine_gauges.h"

#include <algorithm>
#include <optional>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "server/version.h"

namespace bst {

prometheus::MetricFamily GaugeFamily(const std::string& name, const std::string& help,
                                     const std::vector<GaugeValue>& values) {
  prometheus::MetricFamily family;
  family.name = name;
  family.help = help;
  family.type = prometheus::MetricType::Gauge;
  for (const GaugeValue& value : values) {
    prometheus::ClientMetric metric;
    metric.label = value.labels;
    metric.gauge.value = value.value;
    family.metric.push_back(metric);
  }
  return family;
}

void EngineGauges::Publish(const Engine& engine) {
  absl::MutexLock lock(&mutex_);
  engine_ = &engine;
}

void EngineGauges::Unpublish() {
  absl::MutexLock lock(&mutex_);
  engine_ = nullptr;
}

std::vector<prometheus::MetricFamily> EngineGauges::Collect() const {
  std::vector<prometheus::MetricFamily> families;
  families.push_back(GaugeFamily("bst_build_info", "Always 1; the version is a label.",
                                 {{{{"version", kVersion}}, 1}}));
  absl::MutexLock lock(&mutex_);
  if (engine_ == nullptr) return families;
  const EngineLoad load = engine_->load();
  const ModelInfo& info = engine_->info();
  const double used = load.slots_used, unused = load.slots_total - load.slots_used;
  const auto slot_bytes = static_cast<double>(info.state_bytes_per_sequence);
  const auto single = [&families](const char* name, const char* help, double value) {
    families.push_back(GaugeFamily(name, help, {{{}, value}}));
  };
  single("bst_requests_running", "Requests that hold a slot.", load.running);
  single("bst_requests_waiting", "Requests that wait for a slot.", load.waiting);
  single("bst_awaiting_input",
         "1 while nothing can run: all requests wait for more of their prompts, or for slots that "
         "such ones hold. Else 0.",
         load.awaiting_input ? 1 : 0);
  single("bst_draining", "1 from Drain or SIGTERM on: new requests are refused. Else 0.",
         load.draining ? 1 : 0);
  single("bst_engine_healthy",
         "0 after its device has failed: the server must be restarted. Else 1.",
         load.healthy ? 1 : 0);
  single("bst_queue_tokens", "Prompt tokens of waiting requests.",
         static_cast<double>(load.queue_tokens));
  // The engine keeps no state of a finished sequence, and knows one tier: its backend's memory.
  const auto by_state = [&families](const char* name, const char* help, double in_use,
                                    double available) {
    const auto labels = [](const char* state) -> std::vector<prometheus::ClientMetric::Label> {
      return {{"state", state}, {"tier", "device"}};
    };
    families.push_back(GaugeFamily(
        name, help,
        {{labels("used"), in_use}, {labels("cached"), 0}, {labels("free"), available}}));
  };
  by_state("bst_state_slots", "Slots for sequence states.", used, unused);
  by_state("bst_state_bytes", "Memory of the slots for sequence states.", used * slot_bytes,
           unused * slot_bytes);
  if (const std::optional<DeviceMemory> memory = engine_->device_memory(); memory.has_value()) {
    const auto weights = static_cast<double>(info.weight_bytes);
    const double state = load.slots_total * slot_bytes;
    const auto free = static_cast<double>(memory->free_bytes);
    const double rest = static_cast<double>(memory->total_bytes) - free - weights - state;
    families.push_back(GaugeFamily("bst_gpu_memory_bytes",
                                   "Memory of the GPU; workspace: all that is taken and is neither "
                                   "weights nor slots, by other processes too.",
                                   {{{{"kind", "weights"}}, weights},
                                    {{{"kind", "state"}}, state},
                                    {{{"kind", "workspace"}}, std::max(rest, 0.0)},
                                    {{{"kind", "free"}}, free}}));
  }
  single("bst_last_step_timestamp_seconds",
         "When the last step ended, seconds since the epoch; 0: none yet.",
         load.steps == 0 ? 0 : absl::ToDoubleSeconds(load.last_step - absl::UnixEpoch()));
  single("bst_model_load_seconds", "How long it took to load the model.", info.load_seconds);
  families.push_back(GaugeFamily("bst_model_info", "Always 1; what is served is in the labels.",
                                 {{{{"name", info.name},
                                    {"backend", info.backend},
                                    {"weights", info.weights},
                                    {"kv", info.kv},
                                    {"parameters", absl::StrCat(info.num_parameters)}},
                                   1}}));
  return families;
}

}  // namespace bst
