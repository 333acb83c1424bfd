// LoadRun: sends requests at their times until the run is over, and waits for the last of them.
//
// Open loop: requests are due at times drawn beforehand, whatever the server does; a concurrency
// holds back what is due, and its latency goes on counting. Closed loop: so many streams at any
// time, each request sent when another ends.
//
// Threads     Run() is the one thread that sends, cancels and retries; calls end on gRPC's threads.
// Tested by   tests/e2e/stress_test.py
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <queue>
#include <string>
#include <unordered_map>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "bst/v1/generation.grpc.pb.h"
#include "clients/stress/arrival_process.h"
#include "clients/stress/recorder.h"
#include "clients/stress/stream_call.h"
#include "clients/stress/traffic.h"

namespace bst::stress {

// At least one of rate and concurrency, and of duration and requests, is set.
struct LoadShape {
  std::optional<double> rate;  // requests per second
  Arrivals arrivals = Arrivals::kPoisson;
  double burstiness = 1;
  std::optional<uint32_t> concurrency;
  double warmup_seconds = 0;  // requests due in it count for throughput alone
  std::optional<double> duration_seconds;
  std::optional<uint64_t> requests;
  double probe_rate = 0;
  // After the last send, also of what a concurrency held back, or the end of the duration where
  // that is later; then what still runs is cut.
  double drain_seconds = 60;
  uint32_t max_retries = 0;  // of a refused request that says when to come again
};

// The channels, used in turn, and the key to show.
struct Stubs {
  std::vector<std::unique_ptr<v1::Generation::Stub>> stubs;
  std::string key;
};

class LoadRun : private StreamCall::Host {
 public:
  struct Hooks {
    // Every finished request, warm-up and probes included; on the thread of Run.
    std::function<void(RequestRecord&)> on_record = [](RequestRecord&) {};
    // About twice a second: seconds since the start, streams in flight.
    std::function<void(double, size_t)> on_progress = [](double, size_t) {};
    // Asked all the time; true ends the run now.
    std::function<bool()> is_interrupted = [] { return false; };
    bool keep_output = false;
  };

  // All but `shape` and `hooks` must outlive the run.
  LoadRun(LoadShape shape, uint64_t seed, const Traffic& traffic, const Stubs& stubs,
          Recorder& recorder, Hooks hooks);

  // Once.
  void Run() ABSL_LOCKS_EXCLUDED(mutex_);

  // After Run.
  size_t peak_in_flight() const { return peak_in_flight_; }

 private:
  struct Timer {
    double seconds;
    uint64_t order;  // timers of one moment run in the order in which they were set
    std::function<void()> action;
    bool operator>(const Timer& other) const {
      return seconds != other.seconds ? seconds > other.seconds : order > other.order;
    }
  };

  const RunClock& clock() const override { return clock_; }
  Recorder& recorder() override { return recorder_; }
  void At(double seconds, std::function<void()> action) override ABSL_LOCKS_EXCLUDED(mutex_);
  void Done(std::shared_ptr<StreamCall> call) override ABSL_LOCKS_EXCLUDED(mutex_);

  bool HasSentAll() const;
  double EndSeconds() const;
  bool MayStart(double due_seconds) const;
  bool MayProbe(double due_seconds) const;
  bool SendsAreOver(double now) const;
  void SendDue();
  void DropBacklog();
  void SendDueProbes();
  RequestRecord NextRecord(double intended_seconds);
  void SendRequest(double intended_seconds);
  void StartAttempt(std::shared_ptr<const RequestPlan> plan, RequestRecord record);
  void RunTimers() ABSL_LOCKS_EXCLUDED(mutex_);
  void TakeFinishedCalls() ABSL_LOCKS_EXCLUDED(mutex_);
  bool MayRetry(const RequestRecord& record) const;
  void Retry(StreamCall& call);
  void EndRequest(RequestRecord& record);
  void CutAll();
  void JudgeSilence(RequestRecord& record) const;
  void Wait() ABSL_LOCKS_EXCLUDED(mutex_);

  const LoadShape shape_;
  const Traffic& traffic_;
  const Stubs& stubs_;
  Recorder& recorder_;
  const Hooks hooks_;
  const RunClock clock_;

  // Of the thread of Run.
  ArrivalProcess arrivals_;
  double next_due_seconds_ = 0, next_probe_seconds_ = 0, next_progress_seconds_ = 0;
  uint64_t next_index_ = 0, next_probe_index_ = 0, measured_sent_ = 0;
  size_t next_stub_ = 0;
  size_t open_requests_ = 0;  // sent and not ended, those between two attempts included
  size_t open_probes_ = 0, peak_in_flight_ = 0;
  bool sends_are_over_ = false, is_cut_ = false;
  bool has_drained_ = false;  // cut because the time of the drain was up
  double cut_seconds_ = 0;
  std::unordered_map<StreamCall*, std::shared_ptr<StreamCall>> running_;

  absl::Mutex mutex_;
  std::priority_queue<Timer, std::vector<Timer>, std::greater<>> timers_ ABSL_GUARDED_BY(mutex_);
  uint64_t timers_set_ ABSL_GUARDED_BY(mutex_) = 0;
  std::vector<std::shared_ptr<StreamCall>> finished_ ABSL_GUARDED_BY(mutex_);
  double wake_seconds_ ABSL_GUARDED_BY(mutex_) = 0;  // when Wait returns at the latest
};

}  // namespace bst::stress
