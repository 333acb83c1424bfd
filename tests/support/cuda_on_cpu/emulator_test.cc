// The emulated device, and the test of the tests: bugs planted in kernels must be caught.
#include "tests/support/cuda_on_cpu/emulator.h"

#include <cmath>
#include <numeric>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/backend/cuda/device.h"
#include "engine/backend/cuda/launch.h"
#include "engine/backend/cuda/runtime.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/cuda_on_cpu/libraries.h"
#include "tests/support/cuda_on_cpu/planted_kernels.h"

#ifdef __SANITIZE_THREAD__
// A report ends the process.
extern "C" const char* __tsan_default_options() { return "halt_on_error=1"; }
#endif

namespace bst::cuda {
namespace {

using cuda_on_cpu::Order;
using cuda_on_cpu::SetOrder;
using testing::HasSubstr;

class EmulatorTest : public testing::Test {
 protected:
  void SetUp() override { stream_ = *CreateStream(); }
  void TearDown() override { SetOrder(Order::kForward); }

  // The results of a kernel that gets `blocks` x 64 floats.
  std::vector<float> Run(void (*kernel)(PlantedTask), const char* name, int blocks = 1,
                         int threads = 64, int shared_bytes = 512) {
    std::vector<float> data(static_cast<size_t>(blocks * threads));
    std::iota(data.begin(), data.end(), 1.0f);
    Launch(kernel, name, {.blocks_x = blocks, .threads = threads, .shared_bytes = shared_bytes},
           *stream_, PlantedTask{.data = data.data(), .n = threads});
    status_ = Synchronize(*stream_);
    return data;
  }
  std::vector<std::vector<float>> RunInEveryOrder(void (*kernel)(PlantedTask), const char* name) {
    std::vector<std::vector<float>> results;
    for (const Order order : {Order::kForward, Order::kReversed, Order::kShuffled}) {
      SetOrder(order, 7);
      results.push_back(Run(kernel, name));
      EXPECT_TRUE(status_.ok()) << status_;
    }
    return results;
  }

  StreamPtr stream_;
  absl::Status status_;
};

#define RUN(kernel, ...) Run(kernel, #kernel, ##__VA_ARGS__)

TEST_F(EmulatorTest, EveryThreadOfEveryBlockRunsOnce) {
  const std::vector<float> data = RUN(bst_test_indices, 5);
  ASSERT_TRUE(status_.ok()) << status_;
  for (size_t i = 0; i < data.size(); ++i)
    EXPECT_EQ(data[i], static_cast<float>(1 + i + 1000 * (i / 64) + i % 64)) << i;
}

TEST_F(EmulatorTest, SharedMemoryIsSeenAcrossTheBarrierInEveryOrder) {
  for (const std::vector<float>& data : RunInEveryOrder(bst_test_reverse, "bst_test_reverse")) {
    for (size_t i = 0; i < data.size(); ++i) EXPECT_EQ(data[i], static_cast<float>(64 - i));
  }
}

TEST_F(EmulatorTest, LanesExchangeValuesInEveryOrder) {
  for (const std::vector<float>& data : RunInEveryOrder(bst_test_warp, "bst_test_warp")) {
    for (size_t i = 0; i < data.size(); ++i) {
      const float sum = i < 32 ? 528.0f : 1552.0f;  // 1 .. 32, 33 .. 64
      EXPECT_EQ(data[i], sum + 0xaaaaaaaau % 1024) << i;
    }
  }
}

TEST_F(EmulatorTest, TensorCoresMultiplyFragmentsAsThePtxManualLaysThemOut) {
  const std::vector<float> data = RUN(bst_test_fragments, 2);
  ASSERT_TRUE(status_.ok()) << status_;
  for (int i = 0; i < 16; ++i) {
    for (int j = 0; j < 8; ++j) {
      int sum = 0;  // of integers that BF16 and float32 hold exactly
      for (int k = 0; k < 16; ++k) sum += (i + 16 * k) * (k - 2 * j);
      EXPECT_EQ(data[static_cast<size_t>(i * 8 + j)], static_cast<float>(sum)) << i << ", " << j;
    }
  }
}

TEST_F(EmulatorTest, CopiesToSharedMemoryLandGroupAfterGroup) {
  for (const std::vector<float>& data : RunInEveryOrder(bst_test_copies, "bst_test_copies")) {
    for (int i = 0; i < 64; ++i) {
      const int first = i % 2 == 1 ? 64 - i : 0, second = i % 4 < 3 ? i + 1 : 0;
      EXPECT_EQ(data[static_cast<size_t>(i)], static_cast<float>(first + 1000 * second)) << i;
    }
  }
}

TEST_F(EmulatorTest, MoreSharedMemoryIsThereWhenItWasAskedFor) {
  RUN(bst_test_copies, 1, 64, 50000);
  EXPECT_THAT(status_.ToString(),
              HasSubstr("bst_test_copies: a launch with 50000 bytes of shared"));
  stream_ = *CreateStream();
  EXPECT_EQ(BST_ALLOW_SHARED(bst_test_copies, 50000, *stream_), 50000);
  EXPECT_LT(BST_ALLOW_SHARED(bst_test_reverse, 1000000, *stream_), 1000000);
  RUN(bst_test_copies, 1, 64, 50000);
  EXPECT_TRUE(status_.ok()) << status_;
}

TEST_F(EmulatorTest, SharedMemoryBeginsAsNan) {
  const std::vector<float> data = RUN(bst_test_uninitialised);
#ifndef __SANITIZE_THREAD__
  for (const float x : data) EXPECT_TRUE(std::isnan(x));
#endif
}

// A stream runs when somebody waits for it, and not before.
TEST_F(EmulatorTest, AMissingSynchronizeShows) {
  std::vector<float> data(64, 1.0f);
  Launch(bst_test_indices, "bst_test_indices", {.threads = 64}, *stream_,
         PlantedTask{.data = data.data(), .n = 64});
  EXPECT_EQ(data[63], 1.0f);
  ASSERT_TRUE(Synchronize(*stream_).ok());
  EXPECT_EQ(data[63], 64.0f);
}

// What two streams do without waiting for each other comes out in the order of a seed; what one
// does, in its own order.
TEST_F(EmulatorTest, AMissingSynchronizeBetweenStreamsShows) {
  const StreamPtr other = *CreateStream();
  std::set<float> results;
  for (uint32_t seed = 1; seed <= 16; ++seed) {
    cuda_on_cpu::SetStreamOrder(seed);
    std::vector<float> data(1, 0.0f);
    const std::vector<float> values = {1.0f, 2.0f, 3.0f};
    Copy(*stream_, data.data(), &values[0], sizeof(float));
    Copy(*stream_, data.data(), &values[1], sizeof(float));
    Copy(*other, data.data(), &values[2], sizeof(float));
    ASSERT_TRUE(Synchronize(*stream_).ok() && Synchronize(*other).ok());
    results.insert(data[0]);
  }
  EXPECT_EQ(results, (std::set<float>{2.0f, 3.0f}));
}

TEST_F(EmulatorTest, ALaunchThatNoDeviceTakesIsAnError) {
  RUN(bst_test_indices, 1, 48);
  EXPECT_THAT(status_.ToString(),
              HasSubstr("bst_test_indices: a launch of 1 x 1 x 1 blocks of 48"));
  for (const LaunchShape& shape :
       {LaunchShape{.threads = 1056}, LaunchShape{.blocks_x = 0, .threads = 32},
        LaunchShape{.blocks_y = 0, .threads = 32}, LaunchShape{.blocks_y = -1, .threads = 32}}) {
    stream_ = *CreateStream();
    Launch(bst_test_indices, "bst_test_indices", shape, *stream_, PlantedTask{});
    EXPECT_THAT(Synchronize(*stream_).ToString(), HasSubstr("bst_test_indices: a launch of "));
  }
}

// In layers of as many each: there may be a few more.
TEST_F(EmulatorTest, RowsOfBlocksAreAsManyAsTheyNeedBe) {
  for (const auto& [blocks, launched] :
       {std::pair(65535, 65535), {65536, 65536}, {131071, 131073}}) {
    std::vector<float> data(static_cast<size_t>(launched));
    Launch(bst_test_rows, "bst_test_rows", {.blocks_y = blocks, .threads = 32}, *stream_,
           PlantedTask{.data = data.data(), .n = launched});
    ASSERT_TRUE(Synchronize(*stream_).ok());
    EXPECT_THAT(data, testing::Each(1.0f)) << blocks;
  }
}

TEST_F(EmulatorTest, AfterAnErrorNothingRuns) {
  RUN(bst_test_indices, 1, 48);
  const std::vector<float> data = RUN(bst_test_indices);
  EXPECT_EQ(data[63], 64.0f);
  EXPECT_FALSE(status_.ok());
}

// ---- planted bugs

TEST_F(EmulatorTest, ABarrierThatSomeThreadsDoNotReachIsReported) {
  RUN(bst_planted_divergent_barrier);
  EXPECT_THAT(status_.ToString(),
              HasSubstr("bst_planted_divergent_barrier, block (0, 0): of 64 threads 40 wait at a "
                        "barrier, 0 in a warp operation, and 24 have returned"));
  stream_ = *CreateStream();
  RUN(bst_test_reverse);  // the device still works
  EXPECT_TRUE(status_.ok()) << status_;
}

TEST_F(EmulatorTest, TwoBarriersThatMeetAreReported) {
  RUN(bst_planted_two_barriers);
  EXPECT_THAT(status_.ToString(), HasSubstr("threads meet at two barriers, planted_kernels.cc:"));
}

TEST_F(EmulatorTest, AWarpOperationThatSomeLanesDoNotReachIsReported) {
  RUN(bst_planted_divergent_warp);
  EXPECT_THAT(status_.ToString(), HasSubstr("in a warp operation"));
}

TEST_F(EmulatorTest, ACopyThatIsReadBeforeItLandsShows) {
  for (const float x : RUN(bst_planted_early_read)) EXPECT_TRUE(std::isnan(x));
}

TEST_F(EmulatorTest, ACopyThatNobodyWaitsForIsReported) {
  RUN(bst_planted_forgotten_copy);
  EXPECT_THAT(status_.ToString(), HasSubstr("a copy that its thread has not waited for"));
}

TEST_F(EmulatorTest, ACopyThatIsNotAlignedIsReported) {
  RUN(bst_planted_misaligned_copy);
  EXPECT_THAT(status_.ToString(), HasSubstr("a copy that is not aligned"));
}

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)

// A missing barrier gives other results in another order.
TEST_F(EmulatorTest, ASharedMemoryRaceChangesResults) {
  const auto results = RunInEveryOrder(bst_planted_race, "bst_planted_race");
  EXPECT_FALSE(std::equal(results[0].begin(), results[0].end(), results[1].begin(),
                          [](float a, float b) { return a == b; }));
}

TEST_F(EmulatorTest, AWriteBeyondASharedArrayIsReported) {
  RUN(bst_planted_shared_overrun);
  EXPECT_THAT(status_.ToString(),
              HasSubstr("bst_planted_shared_overrun, block (0, 0): a write beyond the shared array "
                        "values"));
}

#elif defined(__SANITIZE_ADDRESS__)

TEST_F(EmulatorTest, AWriteBeyondASharedArrayIsReported) {
  EXPECT_DEATH(RUN(bst_planted_shared_overrun), "use-after-poison");
}
TEST_F(EmulatorTest, AReadBeyondASharedArrayIsReported) {
  EXPECT_DEATH(RUN(bst_planted_shared_overread), "use-after-poison");
}
TEST_F(EmulatorTest, AWriteBeyondGlobalMemoryIsReported) {
  EXPECT_DEATH(RUN(bst_planted_global_overrun), "heap-buffer-overflow");
}

#else

TEST_F(EmulatorTest, ASharedMemoryRaceIsReportedInItsHarmlessOrderToo) {
  EXPECT_DEATH(RUN(bst_planted_race), "data race");
}
TEST_F(EmulatorTest, ARaceBetweenBlocksIsReported) {
  EXPECT_DEATH(RUN(bst_planted_block_race, 2), "data race");
}

#endif

}  // namespace
}  // namespace bst::cuda
