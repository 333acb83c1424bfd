#include "engine/backend/cpu/thread_pool.h"

#include <atomic>
#include <vector>

#include "gtest/gtest.h"

namespace bst {
namespace {

TEST(ThreadPoolTest, RunsEveryTaskOnceAndReturnsAfterTheLast) {
  for (const int threads : {1, 2, 5}) {
    ThreadPool pool(threads);
    EXPECT_EQ(pool.num_threads(), threads);
    for (int round = 0; round < 2000; ++round) {
      const int tasks = round % 37;
      std::vector<std::atomic<int>> runs(static_cast<size_t>(tasks));
      pool.Run(tasks, [&](int index, int thread) {
        EXPECT_GE(thread, 0);
        EXPECT_LT(thread, threads);
        runs[static_cast<size_t>(index)].fetch_add(1, std::memory_order_relaxed);
      });
      for (const auto& count : runs) ASSERT_EQ(count.load(), 1);
    }
  }
}

TEST(ThreadPoolTest, WhatTasksWriteIsVisibleAfterRun) {
  ThreadPool pool(3);
  std::vector<int> values(500);  // plain ints: a missing barrier is a race that TSan reports
  for (int round = 1; round < 200; ++round) {
    pool.Run(500, [&](int index, int) { values[static_cast<size_t>(index)] += index; });
  }
  for (int i = 0; i < 500; ++i) EXPECT_EQ(values[static_cast<size_t>(i)], 199 * i);
}

TEST(ThreadPoolTest, AThreadHasOneTaskAtATime) {
  ThreadPool pool(4);
  std::vector<std::atomic<int>> inside(4);
  pool.Run(1000, [&](int, int thread) {
    EXPECT_EQ(inside[static_cast<size_t>(thread)].fetch_add(1), 0);
    inside[static_cast<size_t>(thread)].fetch_sub(1);
  });
}

}  // namespace
}  // namespace bst
