// Every instruction that is emulated, against its definition: on hardware that has AMX, else trapped.
#include "tests/support/trapped_tiles.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <thread>
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

// The largest and the least sums.
Tile Extremes() {
  Tile tile;
  for (auto& row : tile.bytes) {
    for (int i = 0; i < 16; ++i) {
      const int32_t sum =
          i % 2 == 0 ? std::numeric_limits<int32_t>::max() : std::numeric_limits<int32_t>::min();
      std::memcpy(row + 4 * i, &sum, 4);
    }
  }
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

// Onto sums of which some wrap around, and again onto what that gave.
#define EXPECT_BYTE_PRODUCTS(instruction, Input, Weight)              \
  for (const Tile& sums : {RandomBytes(1), Extremes()}) {             \
    const Tile inputs = RandomBytes(2), weights = RandomBytes(3);     \
    LoadOperands(sums, inputs, weights);                              \
    asm volatile(instruction " %%tmm2, %%tmm1, %%tmm0" : :);          \
    const Tile once = Sums();                                         \
    ExpectByteProducts<Input, Weight>(sums, inputs, weights, once);   \
    asm volatile(instruction " %%tmm2, %%tmm1, %%tmm0" : :);          \
    ExpectByteProducts<Input, Weight>(once, inputs, weights, Sums()); \
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

// Subnormal numbers count as zero where they are read, and a sum as small becomes zero.
TEST_P(TrappedTiles, PairsKnowNoSubnormals) {
  const auto in_first_pair = [](float value) {
    Tile tile;
    const BFloat16 number = ToBFloat16(value);
    std::memcpy(tile.bytes[0], &number, sizeof(number));
    return tile;
  };
  const auto expect_zero = [&](float sum, float x, float w) {
    Tile sums;
    std::memcpy(sums.bytes[0], &sum, sizeof(sum));
    LoadOperands(sums, in_first_pair(x), in_first_pair(w));
    asm volatile("tdpbf16ps %%tmm2, %%tmm1, %%tmm0" : :);
    EXPECT_EQ(At<float>(Sums(), 0, 0), 0) << sum << " + " << x << " * " << w;
  };
  expect_zero(0, std::ldexp(1.0f, -130), std::ldexp(1.0f, 20));
  expect_zero(std::ldexp(1.0f, -130), 0, 0);
  expect_zero(std::ldexp(1.5f, -126), std::ldexp(-1.0f, -63), std::ldexp(1.0f, -63));
}

// Rows that lie apart, forwards and backwards, from several kinds of address.
TEST_P(TrappedTiles, LoadAndStore) {
  const int rows = GetParam().rows;  // clang 14 captures no structured bindings
  const size_t row_bytes = static_cast<size_t>(GetParam().columns) * 4;
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

// From every kind of address, and it clears the tiles.
TEST_P(TrappedTiles, Configure) {
  static const Config fixed = {.row_bytes = {4}, .rows = {1}};
  const Tile sums = RandomBytes(6);
  const auto expect_cleared = [&] {
    const Tile got = Sums();
    EXPECT_EQ(At<int32_t>(got, 0, 0), 0);
    LoadOperands(sums, sums, sums);
  };
  LoadOperands(sums, sums, sums);
  EXPECT_EQ(At<int32_t>(Sums(), 0, 0), At<int32_t>(sums, 0, 0));
  const auto at = reinterpret_cast<uintptr_t>(&config_);
  asm volatile("ldtilecfg (%0)" : : "r"(at) : "memory");
  expect_cleared();
  asm volatile("ldtilecfg -8(%0)" : : "r"(at + 8) : "memory");
  expect_cleared();
  asm volatile("ldtilecfg 4096(%0)" : : "r"(at - 4096) : "memory");
  expect_cleared();
  asm volatile("mov %0, %%r13\n ldtilecfg (%%r13)" : : "r"(at) : "memory", "r13");
  expect_cleared();
  asm volatile("mov %0, %%r12\n ldtilecfg (%%r12)" : : "r"(at) : "memory", "r12");
  expect_cleared();
  asm volatile("ldtilecfg 64(,%0,2)" : : "r"((at - 64) / 2) : "memory");  // it is even
  expect_cleared();
  asm volatile("ldtilecfg %0" : : "m"(fixed));  // relative to the instruction
  const Tile got = Sums();
  EXPECT_EQ(got.bytes[0][4], 0) << "of one column";
}

// Another thread's registers are others.
TEST_P(TrappedTiles, EachThreadHasItsOwn) {
  const Tile sums = RandomBytes(7);
  LoadOperands(sums, sums, sums);
  std::thread([this] {
    asm volatile("ldtilecfg %0\n tilezero %%tmm0\n tilerelease" : : "m"(config_));
  }).join();
  EXPECT_EQ(At<int32_t>(Sums(), 0, 0), At<int32_t>(sums, 0, 0));
}

INSTANTIATE_TEST_SUITE_P(All, TrappedTiles,
                         testing::Values(Sizes{16, 16, 16}, Sizes{1, 16, 16}, Sizes{5, 3, 7},
                                         Sizes{16, 1, 1}, Sizes{3, 16, 2}));

// What faults on hardware ends the process; trapped, it says why. Each case breaks one condition.
using TrappedTilesDeathTest = TrappedTiles;

const char* Why(const char* why) { return DetectCpuIsa() == CpuIsa::kAmx ? "" : why; }

TEST_P(TrappedTilesDeathTest, Products) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");  // a fork would inherit tiles in use
  SetTile(4, 4, 3), SetTile(5, 3, 4);
  config_.rows[6] = 3, config_.row_bytes[6] = 13;
  asm volatile("ldtilecfg %0" : : "m"(config_));
  asm volatile("tdpbusd %%tmm2, %%tmm1, %%tmm0" : :);  // as it should be
  EXPECT_DEATH(asm volatile("tdpbusd %%tmm2, %%tmm4, %%tmm0" : :), Why("rows of sums and"));
  EXPECT_DEATH(asm volatile("tdpbusd %%tmm5, %%tmm1, %%tmm0" : :), Why("columns of sums and"));
  EXPECT_DEATH(asm volatile("tdpbusd %%tmm2, %%tmm5, %%tmm0" : :), Why("the weights' rows"));
  EXPECT_DEATH(asm volatile("tdpbusd %%tmm6, %%tmm1, %%tmm0" : :), Why("multiple of four"));
  // What no assembler takes: tile 1 twice,
  EXPECT_DEATH(asm volatile(".byte 0xC4, 0xE2, 0x71, 0x5E, 0xC1" : :), Why("are the same"));
  // TILEZERO of tile 8, TILELOADD from an address without an index.
  EXPECT_DEATH(asm volatile(".byte 0xC4, 0x62, 0x7B, 0x49, 0xC0" : :), Why("no such tile"));
  EXPECT_DEATH(asm volatile(".byte 0xC4, 0xE2, 0x7B, 0x4B, 0x00" : :), Why("base and an index"));
  EXPECT_DEATH(asm volatile("tilezero %%tmm7" : :), Why("TILEZERO would fault: the tile has no"));
  EXPECT_DEATH(asm volatile("tilerelease\n tilezero %%tmm0" : :), Why("are not configured"));
  EXPECT_DEATH(asm volatile("ud2" : :), "");
}

TEST_P(TrappedTilesDeathTest, Configurations) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  const auto expect_death = [&](const char* why, const auto& change) {
    Config config = config_;
    change(config);
    EXPECT_DEATH(asm volatile("ldtilecfg %0" : : "m"(config)), Why(why));
  };
  expect_death("palettes are", [](Config& config) { config.palette = 2; });
  expect_death("reserved", [](Config& config) { config.reserved[13] = 1; });
  expect_death("reserved", [](Config& config) { config.row_bytes[8] = 1; });
  expect_death("reserved", [](Config& config) { config.rows[15] = 1; });
  expect_death("16 rows", [](Config& config) { config.rows[0] = 17; });
  expect_death("64 bytes", [](Config& config) { config.row_bytes[0] = 65; });
  expect_death("bytes without rows", [](Config& config) { config.rows[0] = 0; });
  config_.palette = 0, config_.rows[0] = 17;  // nothing is read of the rest
  asm volatile("ldtilecfg %0" : : "m"(config_));
}

INSTANTIATE_TEST_SUITE_P(All, TrappedTilesDeathTest, testing::Values(Sizes{3, 3, 3}));

}  // namespace
}  // namespace bst
