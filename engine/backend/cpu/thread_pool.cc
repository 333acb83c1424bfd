#include "engine/backend/cpu/thread_pool.h"

#include <immintrin.h>

#include <system_error>

#include "engine/base/check.h"

namespace bst {
namespace {

// About 10 microseconds on a 2.5 GHz machine: longer than the gap between two operators of a decode
// step, shorter than anybody else on the machine would mind.
constexpr int kSpinRounds = 300;

// Waits until `value` is no longer `old`: a short spin, then sleep.
template <typename T>
void AwaitChange(const std::atomic<T>& value, T old) {
  for (int i = 0; i < kSpinRounds; ++i) {
    if (value.load(std::memory_order_acquire) != old) return;
    _mm_pause();
  }
  value.wait(old, std::memory_order_acquire);
}

}  // namespace

ThreadPool::ThreadPool(int num_threads) {
  BST_CHECK(num_threads >= 1, "num_threads is ", num_threads);
  try {
    for (int thread = 1; thread < num_threads; ++thread) {
      workers_.emplace_back([this, thread] { Work(thread); });
    }
  } catch (const std::system_error&) {
    Stop();
    throw;
  }
}

ThreadPool::~ThreadPool() { Stop(); }

void ThreadPool::Stop() {
  stop_.store(true, std::memory_order_relaxed);
  epoch_.fetch_add(1, std::memory_order_release);
  epoch_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::Run(int num_tasks, absl::FunctionRef<void(int, int)> task) {
  if (num_tasks <= 1 || workers_.empty()) {
    for (int i = 0; i < num_tasks; ++i) task(i, 0);
    return;
  }
  task_.store(&task, std::memory_order_relaxed);
  done_.store(0, std::memory_order_relaxed);
  tickets_.store(static_cast<uint64_t>(num_tasks) << 32, std::memory_order_release);
  epoch_.fetch_add(1, std::memory_order_release);
  epoch_.notify_all();
  TakeTasks(0);
  for (int done = done_.load(std::memory_order_acquire); done != num_tasks;
       done = done_.load(std::memory_order_acquire)) {
    AwaitChange(done_, done);
  }
}

void ThreadPool::TakeTasks(int thread) {
  for (;;) {
    const uint64_t ticket = tickets_.fetch_add(1, std::memory_order_acq_rel);
    const auto index = static_cast<uint32_t>(ticket);
    if (index >= ticket >> 32) return;
    (*task_.load(std::memory_order_relaxed))(static_cast<int>(index), thread);
    done_.fetch_add(1, std::memory_order_release);
    done_.notify_one();
  }
}

void ThreadPool::Work(int thread) {
  uint32_t seen = 0;
  for (;;) {
    AwaitChange(epoch_, seen);
    seen = epoch_.load(std::memory_order_acquire);
    if (stop_.load(std::memory_order_relaxed)) return;
    TakeTasks(thread);
  }
}

}  // namespace bst
