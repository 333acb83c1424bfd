#include "server/health_service.h"

#include <algorithm>
#include <utility>

#include "engine/base/clock.h"
#include "engine/base/log.h"

namespace bst {

using grpc::health::v1::HealthCheckRequest;
using grpc::health::v1::HealthCheckResponse;

// One Watch stream: writes the status when it differs from the last one written.
//
// Ownership   Shared by gRPC (until OnDone) and the service's list (likewise).
// Threads     Thread-safe.
class HealthService::Watcher final : public grpc::ServerWriteReactor<HealthCheckResponse> {
 public:
  Watcher(HealthService& service, std::string name) : service_(service), name_(std::move(name)) {}

  void SendIfChanged() ABSL_LOCKS_EXCLUDED(mutex_) {
    {
      absl::MutexLock lock(&mutex_);
      if (writing_ || finishing_) return;
      const Status status = service_.StatusOf(name_);
      if (sent_any_ && status == message_.status()) return;
      message_.set_status(status);
      sent_any_ = true;
      writing_ = true;
    }
    StartWrite(&message_);
  }

  void OnWriteDone(bool ok) override ABSL_LOCKS_EXCLUDED(mutex_) {
    bool finish;
    {
      absl::MutexLock lock(&mutex_);
      writing_ = false;
      finish = !ok || cancelled_;
      finishing_ |= finish;
    }
    if (finish) return Finish(grpc::Status::CANCELLED);
    SendIfChanged();
  }

  void OnCancel() override ABSL_LOCKS_EXCLUDED(mutex_) {
    {
      absl::MutexLock lock(&mutex_);
      cancelled_ = true;
      if (writing_ || finishing_) return;
      finishing_ = true;
    }
    Finish(grpc::Status::CANCELLED);
  }

  void OnDone() override { service_.Forget(this); }

 private:
  HealthService& service_;
  const std::string name_;
  absl::Mutex mutex_;
  HealthCheckResponse message_;  // being written while writing_
  bool sent_any_ ABSL_GUARDED_BY(mutex_) = false;
  bool writing_ ABSL_GUARDED_BY(mutex_) = false;
  bool cancelled_ ABSL_GUARDED_BY(mutex_) = false;
  bool finishing_ ABSL_GUARDED_BY(mutex_) = false;
};

HealthService::HealthService(std::vector<std::string> services) : services_(std::move(services)) {}

void HealthService::SetServing(bool serving) {
  std::vector<std::shared_ptr<Watcher>> watchers;
  {
    absl::MutexLock lock(&mutex_);
    serving_ = serving;
    watchers = watchers_;
  }
  for (const auto& watcher : watchers) watcher->SendIfChanged();
}

HealthService::Status HealthService::StatusOf(const std::string& service) const {
  if (!service.empty() &&
      std::find(services_.begin(), services_.end(), service) == services_.end()) {
    return HealthCheckResponse::SERVICE_UNKNOWN;
  }
  absl::MutexLock lock(&mutex_);
  return serving_ ? HealthCheckResponse::SERVING : HealthCheckResponse::NOT_SERVING;
}

void HealthService::Forget(const Watcher* watcher) {
  std::shared_ptr<Watcher> last;  // dies after the lock
  absl::MutexLock lock(&mutex_);
  const auto found = std::find_if(watchers_.begin(), watchers_.end(),
                                  [watcher](const auto& other) { return other.get() == watcher; });
  last = std::move(*found);
  watchers_.erase(found);
}

grpc::ServerUnaryReactor* HealthService::Check(grpc::CallbackServerContext* context,
                                               const HealthCheckRequest* request,
                                               HealthCheckResponse* response) {
  const Status status = StatusOf(request->service());
  response->set_status(status);
  grpc::ServerUnaryReactor* const reactor = context->DefaultReactor();
  reactor->Finish(status == HealthCheckResponse::SERVICE_UNKNOWN
                      ? grpc::Status(grpc::StatusCode::NOT_FOUND, "no such service")
                      : grpc::Status::OK);
  return reactor;
}

grpc::ServerWriteReactor<HealthCheckResponse>* HealthService::Watch(
    grpc::CallbackServerContext*, const HealthCheckRequest* request) {
  auto watcher = std::make_shared<Watcher>(*this, request->service());
  {
    absl::MutexLock lock(&mutex_);
    watchers_.push_back(watcher);
  }
  watcher->SendIfChanged();
  return watcher.get();
}

bool ProgressJudge::IsServing(const EngineLoad& load, absl::Time now) {
  // An engine that waits for its clients' prompts is not stuck.
  if (load.steps != steps_ || load.in_flight == 0 || load.awaiting_input) last_progress_ = now;
  steps_ = load.steps;
  return load.healthy && !load.draining && now - last_progress_ <= stall_limit_;
}

HealthMonitor::HealthMonitor(std::vector<HealthService*> services, absl::Duration stall_limit)
    : services_(std::move(services)), judge_(stall_limit), thread_([this] { Run(); }) {}

HealthMonitor::~HealthMonitor() {
  {
    absl::MutexLock lock(&mutex_);
    stop_ = true;
  }
  thread_.join();
}

void HealthMonitor::Watch(const Engine& engine) {
  absl::MutexLock lock(&mutex_);
  engine_ = &engine;
  RefreshLocked();
}

void HealthMonitor::Refresh() {
  absl::MutexLock lock(&mutex_);
  RefreshLocked();
}

void HealthMonitor::RefreshLocked() {
  if (engine_ == nullptr) return;
  const EngineLoad load = engine_->load();
  const bool serving = judge_.IsServing(load, MonotonicClock().Now());
  if (serving != was_serving_) {
    Log(serving ? LogLevel::kInfo : LogLevel::kWarning, "health",
        {{"serving", serving ? "true" : "false"},
         {"healthy", load.healthy ? "true" : "false"},
         {"draining", load.draining ? "true" : "false"},
         {"in_flight", load.in_flight},
         {"steps", load.steps}});
  }
  was_serving_ = serving;
  for (HealthService* const service : services_) service->SetServing(serving);
}

void HealthMonitor::Run() {
  absl::MutexLock lock(&mutex_);
  while (!mutex_.AwaitWithTimeout(absl::Condition(&stop_), kHealthInterval)) RefreshLocked();
}

}  // namespace bst
