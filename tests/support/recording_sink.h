// RecordingSink: keeps what the engine pushes and lets a test wait for the end of it.
//
// It also holds the engine to the contract of token_sink.h: Accepted first and once, Finished last
// and once, SequenceEnded last and once of its sequence, all from one thread. `violation()` says
// what was broken.
//
// Threads   Thread-safe. The hook runs on the engine thread, within Push, outside the lock.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <variant>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "engine/base/check.h"
#include "engine/token_sink.h"

namespace bst {

class RecordingSink final : public TokenSink {
 public:
  using Hook = std::function<void(const SequenceEvent&)>;

  RecordingSink() = default;
  explicit RecordingSink(Hook hook) : hook_(std::move(hook)) {}

  void Push(SequenceEvent event) override {
    if (hook_) hook_(event);
    absl::MutexLock lock(&mutex_);
    if (finished_) violation_ = "an event after Finished";
    if (thread_.has_value() && *thread_ != std::this_thread::get_id())
      violation_ = "two threads push";
    thread_ = std::this_thread::get_id();
    const bool is_accepted = std::holds_alternative<AcceptedEvent>(event);
    if (is_accepted != events_.empty()) violation_ = "Accepted is not first, or not once";
    finished_ = std::holds_alternative<FinishedEvent>(event);
    if (const auto* generated = std::get_if<GeneratedEvent>(&event)) {
      if (ended_.contains(generated->sequence_index)) violation_ = "a token after SequenceEnded";
    } else if (const auto* ended = std::get_if<SequenceEndedEvent>(&event)) {
      if (!ended_.insert(ended->sequence_index).second) violation_ = "SequenceEnded twice";
    }
    events_.push_back(std::move(event));
  }

  // The last event. Dies after a minute: then the engine hangs.
  FinishedEvent WaitFinished() const {
    absl::MutexLock lock(&mutex_);
    const bool in_time = mutex_.AwaitWithTimeout(absl::Condition(&finished_), absl::Minutes(1));
    BST_CHECK(in_time, "no FinishedEvent within a minute");
    return std::get<FinishedEvent>(events_.back());
  }
  // Until this many events are here, or the last one.
  void WaitEvents(size_t count) const {
    absl::MutexLock lock(&mutex_);
    const auto enough = [this, count]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
      return finished_ || events_.size() >= count;
    };
    const bool in_time = mutex_.AwaitWithTimeout(absl::Condition(&enough), absl::Minutes(1));
    BST_CHECK(in_time, "only ", events_.size(), " of ", count, " events within a minute");
  }

  bool finished() const {
    absl::MutexLock lock(&mutex_);
    return finished_;
  }
  std::string violation() const {
    absl::MutexLock lock(&mutex_);
    return violation_;
  }
  // Those of one kind, in order.
  template <typename Event>
  std::vector<Event> Events() const {
    absl::MutexLock lock(&mutex_);
    std::vector<Event> events;
    for (const SequenceEvent& event : events_) {
      if (const auto* one = std::get_if<Event>(&event)) events.push_back(*one);
    }
    return events;
  }

 private:
  const Hook hook_;
  mutable absl::Mutex mutex_;
  std::vector<SequenceEvent> events_ ABSL_GUARDED_BY(mutex_);
  bool finished_ ABSL_GUARDED_BY(mutex_) = false;
  std::set<int> ended_ ABSL_GUARDED_BY(mutex_);  // sequence indices
  std::optional<std::thread::id> thread_ ABSL_GUARDED_BY(mutex_);
  std::string violation_ ABSL_GUARDED_BY(mutex_);
};

// Holds the engine thread in a hook until the test lets it go. Not counted as a wait: the test
// decides.
class Gate {
 public:
  void Open() {
    absl::MutexLock lock(&mutex_);
    open_ = true;
  }
  void Pass() {
    absl::MutexLock lock(&mutex_);
    mutex_.Await(absl::Condition(&open_));
  }

 private:
  absl::Mutex mutex_;
  bool open_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace bst
