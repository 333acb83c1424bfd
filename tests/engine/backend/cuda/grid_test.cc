// Launches of more rows of blocks than a grid has in y: kernels run them all, and what lies beyond
// is nobody's.
#include <cstdint>
#include <vector>

#include "engine/backend/cuda/kernels.h"
#include "engine/backend/cuda/runtime.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/sanitized.h"

namespace bst::cuda {
namespace {

constexpr int kRowsOfAGrid = 65535;

class GridTest : public testing::Test {
 protected:
  void SetUp() override {
    stream_ = *CreateStream();
    if (kSanitized) GTEST_SKIP() << "millions of threads: cuda_emulator_test has the grids";
  }
  void TearDown() override {
    const absl::Status status = Synchronize(*stream_);
    EXPECT_TRUE(status.ok()) << status;
  }

  StreamPtr stream_;
};

// Every row a sequence of one token.
TEST_F(GridTest, ScanTakesMoreSequencesThanAGridHasRows) {
  constexpr int kRows = kRowsOfAGrid + 2;
  std::vector<float> v(2 * kRows, 1.0f), states(v.size()), e = {0.5f, 0.0f};
  std::vector<SequenceRow> rows;
  for (int i = 0; i < kRows; ++i) {
    states[2 * static_cast<size_t>(i)] = static_cast<float>(i);
    rows.push_back(
        {.state = &states[2 * static_cast<size_t>(i)], .position = 0, .begin = i, .end = i + 1});
  }
  rows.push_back({.state = nullptr, .position = 0, .begin = 0, .end = 1});  // of nobody
  Scan(*stream_, {.v = {v.data(), 2},
                  .rows = rows.data(),
                  .e = e.data(),
                  .num_rows = {kRows, nullptr},
                  .modes = 1});
  ASSERT_TRUE(Synchronize(*stream_).ok());
  for (size_t i = 0; i < kRows; ++i) {
    ASSERT_EQ(states[2 * i], 1.5f * static_cast<float>(i) + 1.0f) << i;
    ASSERT_EQ(v[2 * i], states[2 * i]) << i;
  }
}

// All but the first rows are beyond those that there are: a block of them costs little.
TEST_F(GridTest, LinearTakesMoreRowsThanAGridHasTilesOfThem) {
  for (const Element element : {Element::kF32, Element::kBf16}) {
    constexpr int kMostRows = 64 * (kRowsOfAGrid + 1) + 1;
    const int32_t rows = 65;
    std::vector<float> x(static_cast<size_t>(rows), 3.0f), out(x.size() + 1, 1.0f);
    // Element [0, 0] is 2, in BF16 in the first half of its word.
    std::vector<uint32_t> weights(kLinearColumns * kLinearDepth);
    weights[0] = element == Element::kBf16 ? 0x4000u : 0x40000000u;
    Linear(*stream_, element,
           {.x = {x.data(), 1},
            .weights = weights.data(),
            .out = {out.data(), 1},
            .rows = {kMostRows, &rows},
            .in = 1,
            .out_features = 1,
            .padded_in = kLinearDepth,
            .padded_out = kLinearColumns,
            .activation = Activation::kNone,
            .scale = 1.0f,
            .add = true,  // a row that two blocks take would show
            .shared_bytes = 0});
    ASSERT_TRUE(Synchronize(*stream_).ok());
    EXPECT_THAT(std::vector<float>(out.begin(), out.end() - 1), testing::Each(7.0f));
    EXPECT_EQ(out.back(), 1.0f);
  }
}

// X of one mode: real and imaginary part. Only the last row completes a chunk, whose S its state
// takes.
TEST_F(GridTest, RecurrencesTakeMoreRowsThanAGridHas) {
  constexpr int kRows = kRowsOfAGrid + 2;
  std::vector<float> from = {1.0f, 2.0f}, to = {0.0f, 0.0f}, places = {0.0f, 0.0f, 10.0f, 20.0f};
  std::vector<float> carry(2), others(6);
  std::vector<CarryRow> rows(
      kRows,
      {.from = others.data(), .to = others.data() + 2, .places = others.data() + 4, .chunks = 0});
  rows.back() = {.from = from.data(), .to = to.data(), .places = places.data(), .chunks = 1};
  rows.push_back({.from = nullptr, .to = nullptr, .places = nullptr, .chunks = 0});  // of nobody
  Carry(*stream_, Recurrence::kDiagonal,
        {.u = {},
         .y = {},
         .pieces = nullptr,
         .rows = rows.data(),
         .taps = nullptr,
         .out = nullptr,
         .in = nullptr,
         .carry = carry.data(),
         .num_pieces = {},
         .num_rows = {kRows, nullptr},
         .inputs = 1,
         .features = 1,
         .reals = 2,
         .chunk = kDiagonalChunk});
  ASSERT_TRUE(Synchronize(*stream_).ok());
  EXPECT_THAT(to, testing::ElementsAre(11.0f, 22.0f));
}

}  // namespace
}  // namespace bst::cuda
