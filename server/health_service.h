// grpc.health.v1: whether the server takes requests and gets on with them.
//
//   HealthService   answers Check and Watch; NOT_SERVING until told otherwise
//   ProgressJudge   EngineLoad over time -> serving or not; pure
//   HealthMonitor   asks the engine every kHealthInterval and tells the services
//
// The server does not use gRPC's built-in health service: that one says SERVING from the moment the
// port is open, which is before the model is loaded.
//
// Threads     HealthService, HealthMonitor: thread-safe. ProgressJudge: thread-compatible.
// Tested by   tests/server/health_service_test.cc, tests/server/progress_judge_test.cc
#pragma once

#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "engine/engine.h"
#include "grpc/health/v1/health.grpc.pb.h"

namespace bst {

inline constexpr absl::Duration kHealthInterval = absl::Milliseconds(250);

class HealthService final : public grpc::health::v1::Health::CallbackService {
 public:
  // Answers for `services` and for "", the server as a whole; all have one status.
  explicit HealthService(std::vector<std::string> services);

  void SetServing(bool serving) ABSL_LOCKS_EXCLUDED(mutex_);

  grpc::ServerUnaryReactor* Check(grpc::CallbackServerContext* context,
                                  const grpc::health::v1::HealthCheckRequest* request,
                                  grpc::health::v1::HealthCheckResponse* response) override;
  grpc::ServerWriteReactor<grpc::health::v1::HealthCheckResponse>* Watch(
      grpc::CallbackServerContext* context,
      const grpc::health::v1::HealthCheckRequest* request) override;

 private:
  class Watcher;
  using Status = grpc::health::v1::HealthCheckResponse::ServingStatus;

  Status StatusOf(const std::string& service) const ABSL_LOCKS_EXCLUDED(mutex_);
  void Forget(const Watcher* watcher) ABSL_LOCKS_EXCLUDED(mutex_);

  const std::vector<std::string> services_;
  mutable absl::Mutex mutex_;
  bool serving_ ABSL_GUARDED_BY(mutex_) = false;
  std::vector<std::shared_ptr<Watcher>> watchers_
      ABSL_GUARDED_BY(mutex_);  // shared with gRPC until OnDone
};

class ProgressJudge {
 public:
  explicit ProgressJudge(absl::Duration stall_limit) : stall_limit_(stall_limit) {}

  // False while the engine drains or is unhealthy, and when something has been running or waiting
  // for longer than the limit without a step. `now` never goes back.
  bool IsServing(const EngineLoad& load, absl::Time now);

 private:
  const absl::Duration stall_limit_;
  int64_t steps_ = -1;
  absl::Time last_progress_;  // a step, or nothing to do
};

class HealthMonitor {
 public:
  HealthMonitor(std::vector<HealthService*> services, absl::Duration stall_limit);
  // Stops watching; the services keep their status.
  ~HealthMonitor();

  // Watches `engine`, which outlives the monitor. REQUIRES: once.
  void Watch(const Engine& engine);
  // Tells the services the state of now. No-op before Watch.
  void Refresh() ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  void Run();
  void RefreshLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const std::vector<HealthService*> services_;
  absl::Mutex mutex_;
  const Engine* engine_ ABSL_GUARDED_BY(mutex_) = nullptr;
  ProgressJudge judge_ ABSL_GUARDED_BY(mutex_);
  bool was_serving_ ABSL_GUARDED_BY(mutex_) = false;
  bool stop_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;  // last: it uses the others
};

}  // namespace bst
