// Every instruction of AMX that kernels use, against its definition: on hardware that has it, else
// trapped.
#include "tests/support/trapped_tiles.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <utility>
#include <vector>

#include "engine/backend/cpu/cpu_isa.h"
#include "engine/tensor/dtype.h"
#include "gtest/gtest.h"

namespace bst {
namespace {

struct alignas(64) Config {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

struct Tile {
  alignas(64) uint8_t bytes[16][64] = {};
};

Tile RandomBytes(uint32_t seed) {
  Tile tile;
  std::mt19937 random(seed);
  for (auto& row : tile.bytes)
    std::generate(std::begin(row), std::end(row), [&] { return static_cast<uint8_t>(random()); });
  return tile;
}

template <typename T>
T At(const Tile& tile, int row, int column) {
  T value;
  std::memcpy(&value, tile.bytes[row] + column * static_cast<int>(sizeof(T)), sizeof(T));
  return value;
}

// Tiles 0 and 3 of sums, 1 of M rows of inputs, 2 of K rows of weights.
struct Sizes {
  int rows, groups, columns;
};

class TrappedTiles : public testing::TestWithParam<Sizes> {
 protected:
  static void SetUpTestSuite() {
    if (DetectCpuIsa() != CpuIsa::kAmx) TrapTileInstructions();
  }
  void SetUp() override {
    if (DetectCpuIsa() < CpuIsa::kAvx2) GTEST_SKIP() << "sums are emulated with AVX2";
    const auto [rows, groups, columns] = GetParam();
    SetTile(0, rows, columns), SetTile(1, rows, groups), SetTile(2, groups, columns);
    SetTile(3, rows, columns);
    asm volatile("ldtilecfg %0" : : "m"(config_));
  }
  void TearDown() override { asm volatile("tilerelease"); }

  void SetTile(int tile, int rows, int columns) {
    config_.rows[tile] = static_cast<uint8_t>(rows);
    config_.row_bytes[tile] = static_cast<uint16_t>(4 * columns);
  }
  void LoadOperands(const Tile& sums, const Tile& inputs, const Tile& weights) {
    const int64_t stride = 64;
    asm volatile("tileloadd (%0,%1,1), %%tmm0" : : "r"(&sums), "r"(stride) : "memory");
    asm volatile("tileloadd (%0,%1,1), %%tmm1" : : "r"(&inputs), "r"(stride) : "memory");
    asm volatile("tileloadd (%0,%1,1), %%tmm2" : : "r"(&weights), "r"(stride) : "memory");
  }
  Tile Sums() {
    Tile sums;
    const int64_t stride = 64;
    asm volatile("tilestored %%tmm0, (%0,%1,1)" : : "r"(&sums), "r"(stride) : "memory");
    return sums;
  }

  // `got` is what `Input` and `Weight` bytes multiplied have added to `sums`.
  template <typename Input, typename Weight>
  void ExpectByteProducts(const Tile& sums, const Tile& inputs, const Tile& weights,
                          const Tile& got) {
    const auto [rows, groups, columns] = GetParam();
    for (int m = 0; m < rows; ++m) {
      for (int n = 0; n < columns; ++n) {
        int64_t sum = At<int32_t>(sums, m, n);
        for (int k = 0; k < groups; ++k) {
          for (int i = 0; i < 4; ++i) {
            sum += int64_t{static_cast<Input>(inputs.bytes[m][4 * k + i])} *
                   static_cast<Weight>(weights.bytes[k][4 * n + i]);
          }
        }
        EXPECT_EQ(At<int32_t>(got, m, n), static_cast<int32_t>(sum)) << m << ' ' << n;
      }
    }
  }

  Config config_;
};

// The first product's inputs and weights, and those of a second product onto its sums.
#define EXPECT_BYTE_PRODUCTS(instruction, Input, Weight)                                 \
  {                                                                                      \
    const Tile sums = RandomBytes(1), inputs = RandomBytes(2), weights = RandomBytes(3); \
    LoadOperands(sums, inputs, weights);                                                 \
    asm volatile(instruction " %%tmm2, %%tmm1, %%tmm0" : :);                             \
    const Tile once = Sums();                                                            \
    ExpectByteProducts<Input, Weight>(sums, inputs, weights, once);                      \
    asm volatile(instruction " %%tmm2, %%tmm1, %%tmm0" : :);                             \
    ExpectByteProducts<Input, Weight>(once, inputs, weights, Sums());                    \
  }

TEST_P(TrappedTiles, MultiplyBytes) {
  EXPECT_BYTE_PRODUCTS("tdpbssd", int8_t, int8_t);
  EXPECT_BYTE_PRODUCTS("tdpbsud", int8_t, uint8_t);
  EXPECT_BYTE_PRODUCTS("tdpbusd", uint8_t, int8_t);
  EXPECT_BYTE_PRODUCTS("tdpbuud", uint8_t, uint8_t);
}

TEST_P(TrappedTiles, MultiplyPairs) {
  const auto [rows, groups, columns] = GetParam();
  std::mt19937 random(4);
  std::normal_distribution<float> normal;
  Tile sums, inputs, weights;
  for (int row = 0; row < 16; ++row) {
    for (int i = 0; i < 32; ++i) {
      const BFloat16 x = ToBFloat16(normal(random)), w = ToBFloat16(normal(random));
      std::memcpy(inputs.bytes[row] + 2 * i, &x, 2), std::memcpy(weights.bytes[row] + 2 * i, &w, 2);
    }
    for (int i = 0; i < 16; ++i) {
      const float sum = normal(random);
      std::memcpy(sums.bytes[row] + 4 * i, &sum, 4);
    }
  }
  LoadOperands(sums, inputs, weights);
  asm volatile("tdpbf16ps %%tmm2, %%tmm1, %%tmm0" : :);
  const Tile got = Sums();
  for (int m = 0; m < rows; ++m) {
    for (int n = 0; n < columns; ++n) {
      float even = 0, odd = 0;
      for (int k = 0; k < groups; ++k) {
        even = std::fma(ToFloat(At<BFloat16>(inputs, m, 2 * k)),
                        ToFloat(At<BFloat16>(weights, k, 2 * n)), even);
        odd = std::fma(ToFloat(At<BFloat16>(inputs, m, 2 * k + 1)),
                       ToFloat(At<BFloat16>(weights, k, 2 * n + 1)), odd);
      }
      EXPECT_EQ(At<float>(got, m, n), At<float>(sums, m, n) + (even + odd)) << m << ' ' << n;
    }
  }
}

// 2^-130 counts as zero, and so does what would be as small.
TEST_P(TrappedTiles, PairsKnowNoSubnormals) {
  const auto fill = [](float value) {
    Tile tile;
    const BFloat16 number = ToBFloat16(value);
    for (auto& row : tile.bytes)
      for (int i = 0; i < 32; ++i) std::memcpy(row + 2 * i, &number, 2);
    return tile;
  };
  for (const auto& [x, w] :
       std::vector<std::pair<float, float>>{{std::ldexp(1.0f, -130), std::ldexp(1.0f, 20)},
                                            {std::ldexp(1.0f, -70), std::ldexp(1.0f, -65)}}) {
    LoadOperands({}, fill(x), fill(w));
    asm volatile("tdpbf16ps %%tmm2, %%tmm1, %%tmm0" : :);
    EXPECT_EQ(At<float>(Sums(), 0, 0), 0) << x << " * " << w;
  }
}

// Rows that lie apart, forwards and backwards, from several kinds of address.
TEST_P(TrappedTiles, LoadAndStore) {
  const auto [rows, groups, columns] = GetParam();
  const size_t row_bytes = static_cast<size_t>(columns) * 4;
  std::vector<uint8_t> from(16 * 200), to(16 * 200, 7);
  std::mt19937 random(5);
  for (uint8_t& byte : from) byte = static_cast<uint8_t>(random());
  const auto expect_copied = [&](size_t from_stride, size_t to_stride) {
    std::vector<uint8_t> expected(to.size(), 7);
    for (size_t r = 0; r < static_cast<size_t>(rows); ++r)
      std::memcpy(&expected[r * to_stride], &from[r * from_stride], row_bytes);
    EXPECT_EQ(to, expected);
    std::fill(to.begin(), to.end(), uint8_t{7});
  };
  int64_t stride = 200, narrow = 80;
  asm volatile("tileloadd (%0,%1,1), %%tmm0" : : "r"(from.data()), "r"(stride) : "memory");
  asm volatile("tilestored %%tmm0, (%0,%1,1)" : : "r"(to.data()), "r"(narrow) : "memory");
  expect_copied(200, 80);
  // The registers whose numbers need a bit of the prefix.
  asm volatile(
      "mov %0, %%r12\n mov %1, %%r13\n tileloaddt1 8(%%r12,%%r13,2), %%tmm3\n"
      "mov %2, %%r13\n mov %3, %%r12\n tilestored %%tmm3, -4096(%%r13,%%r12,4)"
      :
      : "r"(reinterpret_cast<uintptr_t>(from.data()) - 8), "r"(stride / 2),
        "r"(reinterpret_cast<uintptr_t>(to.data()) + 4096), "r"(narrow / 4)
      : "memory", "r12", "r13");
  expect_copied(200, 80);
  asm volatile("tileloadd (%0,%1,1), %%tmm0"
               :
               : "r"(from.data() + 200 * (rows - 1)), "r"(-stride)
               : "memory");
  asm volatile("tilestored %%tmm0, (%0,%1,1)"
               :
               : "r"(to.data() + 200 * (rows - 1)), "r"(-stride)
               : "memory");
  expect_copied(200, 200);
  asm volatile("tilezero %%tmm0" : :);
  std::fill(from.begin(), from.end(), uint8_t{0});
  asm volatile("tilestored %%tmm0, (%0,%1,1)" : : "r"(to.data()), "r"(stride) : "memory");
  expect_copied(200, 200);
}

INSTANTIATE_TEST_SUITE_P(All, TrappedTiles,
                         testing::Values(Sizes{16, 16, 16}, Sizes{1, 16, 16}, Sizes{5, 3, 7},
                                         Sizes{16, 1, 1}, Sizes{3, 16, 2}));

// What faults on hardware ends the process.
using TrappedTilesDeathTest = TrappedTiles;

TEST_P(TrappedTilesDeathTest, Faults) {
  testing::FLAGS_gtest_death_test_style = "threadsafe";
  EXPECT_DEATH(asm volatile("tilezero %%tmm4" : :), "");
  EXPECT_DEATH(asm volatile("tdpbusd %%tmm1, %%tmm2, %%tmm0" : :), "");
  EXPECT_DEATH(asm volatile("tilerelease\n tilezero %%tmm0" : :), "");
  EXPECT_DEATH(asm volatile("ud2" : :), "");
  config_.rows[7] = 17, config_.row_bytes[7] = 64;
  EXPECT_DEATH(asm volatile("ldtilecfg %0" : : "m"(config_)), "");
}

INSTANTIATE_TEST_SUITE_P(All, TrappedTilesDeathTest, testing::Values(Sizes{5, 3, 7}));

}  // namespace
}  // namespace bst
