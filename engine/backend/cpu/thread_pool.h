// ThreadPool: runs the tasks of one operator on all threads of the backend.
//
// An operator is short (a few microseconds in decode), and the next follows at once; so workers
// spin for a moment before they sleep. They sleep soon, because a machine is often shared.
//
// Invariants  Run returns when every task has run, not when every worker has looked: one that the
//             system has put aside costs nothing but the task it holds. Tasks are handed out in
//             order, one at a time. Results must not depend on which thread runs a task.
// Threads     Run is called by one thread at a time, which takes part as thread 0.
// Tested by   tests/engine/backend/thread_pool_test.cc
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

#include "absl/functional/function_ref.h"

namespace bst {

class ThreadPool {
 public:
  // `num_threads` >= 1, the caller included. Throws std::system_error, as std::thread does, when
  // the system has no more threads to give.
  explicit ThreadPool(int num_threads);
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;
  ~ThreadPool();

  int num_threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls task(index, thread) for each index in [0, num_tasks); thread is in [0, num_threads()).
  void Run(int num_tasks, absl::FunctionRef<void(int index, int thread)> task);

 private:
  void Stop();  // Ends and joins the workers.
  void Work(int thread);
  void TakeTasks(int thread);

  std::vector<std::thread> workers_;
  // The current run's task; written before tickets_, read after a ticket below the number of tasks
  // was drawn, which keeps Run from returning.
  std::atomic<const absl::FunctionRef<void(int, int)>*> task_{nullptr};
  // Each on a cache line of its own: all threads write them.
  // Number of tasks in the upper half, next task in the lower: one fetch_add draws a ticket and
  // tells whether it counts, also to a worker that comes a run late.
  alignas(64) std::atomic<uint64_t> tickets_{0};
  alignas(64) std::atomic<int> done_{0};        // tasks of this run that are finished
  alignas(64) std::atomic<uint32_t> epoch_{0};  // runs so far; workers sleep on it
  alignas(64) std::atomic<bool> stop_{false};
};

}  // namespace bst
