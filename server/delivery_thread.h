// DeliveryThread: carries events from the engine thread to their RPCs.
//
// The engine thread must not decode text, build messages or enter gRPC: a write runs the transport
// on the thread that starts it, a system call per token and stream. It posts the RPC here instead;
// one wake-up serves all streams of a step.
//
// Ownership   Shares a posted call until its Advance() returns.
// Threads     Thread-safe. Post never waits for an Advance.
// Tested by   tests/server/delivery_thread_test.cc
#pragma once

#include <memory>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

namespace bst {

// Something that has work to do away from the engine thread.
class Deliverable {
 public:
  virtual ~Deliverable() = default;
  virtual void Advance() = 0;
};

class DeliveryThread {
 public:
  DeliveryThread();
  // Runs what was posted, then joins.
  ~DeliveryThread();

  // Calls Advance() soon, on this thread.
  void Post(std::shared_ptr<Deliverable> call) ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  void Run();

  absl::Mutex mutex_;
  std::vector<std::shared_ptr<Deliverable>> posted_ ABSL_GUARDED_BY(mutex_);
  bool stop_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;  // last: it uses the others
};

}  // namespace bst
