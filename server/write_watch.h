// WriteWatch: ends an RPC whose client does not take what is written to it.
//
// gRPC completes a write when the client has room for it. A client that never has any would keep
// the output that waits, long after its request has ended.
//
// One alarm per RPC is enough: it is set when a write begins and none is, and what it finds when it
// goes off may be a later write, for which it is set again. A write costs a look at the clock.
//
// Ownership   Shared by its RPC and, while that runs, the alarm's callback.
// Threads     Thread-safe.
// Tested by   tests/server/generation_service_test.cc, tests/server/score_service_test.cc
#pragma once

#include <grpcpp/alarm.h>

#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "server/active_requests.h"

namespace grpc {
class CallbackServerContext;
}

namespace bst {

// Why a client loses its call.
enum class Stall {
  kMessage,  // it took one for too long
  kOutput    // it took messages, but was long with all of them, and others were refused for that
};

class WriteWatch final : public UnreadCall, public std::enable_shared_from_this<WriteWatch> {
 public:
  // A write that takes longer than `limit`, or Cut, leads to `on_stall`, then to the end of the
  // call of `context`. Both are used until Close; `on_stall` runs under the watch's lock and must
  // not call it.
  WriteWatch(grpc::CallbackServerContext& context, absl::Duration limit,
             std::function<void(Stall)> on_stall)
      : context_(context),
        limit_(absl::ToChronoMilliseconds(limit)),
        on_stall_(std::move(on_stall)) {}

  // Around each write: before it is started, when it is done.
  void Begin() ABSL_LOCKS_EXCLUDED(mutex_);
  void End() ABSL_LOCKS_EXCLUDED(mutex_);
  // The RPC is done.
  void Close() ABSL_LOCKS_EXCLUDED(mutex_);
  void Cut() override ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  using Clock = std::chrono::steady_clock;

  void SetAlarm(Clock::duration delay) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void OnAlarm() ABSL_LOCKS_EXCLUDED(mutex_);
  void EndCall(Stall why) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  grpc::CallbackServerContext& context_;
  const std::chrono::milliseconds limit_;
  const std::function<void(Stall)> on_stall_;

  absl::Mutex mutex_;
  std::optional<Clock::time_point> begun_ ABSL_GUARDED_BY(mutex_);  // while a write is in flight
  bool alarm_is_set_ ABSL_GUARDED_BY(mutex_) = false;
  bool is_over_ ABSL_GUARDED_BY(mutex_) = false;  // closed, or the call was ended from here
  std::unique_ptr<grpc::Alarm> alarm_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace bst
