#include "tests/bench/machine_limits.h"

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

#include "engine/backend/cpu/cpu_isa.h"
#include "engine/base/check.h"
#include "engine/tensor/buffer.h"
#include "tests/support/statistics.h"

namespace bst {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kRuns = 5;

// Twelve independent sums hide the latency of any of these instructions. Assembly, so that the
// file needs no instruction set of its own and nothing is optimised away.
#define BST_SUMS(line)                                                                      \
  line("0") line("1") line("2") line("3") line("4") line("5") line("6") line("7") line("8") \
      line("9") line("10") line("11")
#define BST_FMA_YMM(n) "vfmadd231ps %%ymm14, %%ymm15, %%ymm" n "\n"
#define BST_FMA_ZMM(n) "vfmadd231ps %%zmm14, %%zmm15, %%zmm" n "\n"
#define BST_BF16_ZMM(n) "vdpbf16ps %%zmm14, %%zmm15, %%zmm" n "\n"
#define BST_INT8_ZMM(n) "vpdpbusd %%zmm14, %%zmm15, %%zmm" n "\n"
#define BST_INT16_YMM(n) \
  "vpmaddwd %%ymm14, %%ymm15, %%ymm13\n vpaddd %%ymm13, %%ymm" n ", %%ymm" n "\n"
#define BST_ZERO_YMM(n) "vpxor %%xmm" n ", %%xmm" n ", %%xmm" n "\n"
#define BST_REPEAT(line)                                                                         \
  asm volatile(BST_SUMS(BST_ZERO_YMM) BST_ZERO_YMM("14")                                         \
                   BST_ZERO_YMM("15") "1:\n" BST_SUMS(line) "dec %0\n jnz 1b\n vzeroupper\n"     \
               : "+r"(count)                                                                     \
               :                                                                                 \
               : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", \
                 "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15", "cc")

constexpr int kSums = 12;
void RepeatFmaYmm(int64_t count) { BST_REPEAT(BST_FMA_YMM); }
void RepeatFmaZmm(int64_t count) { BST_REPEAT(BST_FMA_ZMM); }
void RepeatBf16Zmm(int64_t count) { BST_REPEAT(BST_BF16_ZMM); }
void RepeatInt8Zmm(int64_t count) { BST_REPEAT(BST_INT8_ZMM); }
void RepeatInt16Ymm(int64_t count) { BST_REPEAT(BST_INT16_YMM); }

// Four sums in tiles, as the linear layers keep.
constexpr int kTileSums = 4;
struct TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
#define BST_REPEAT_TILES(op)                                                                     \
  const TileConfig config;                                                                       \
  asm volatile(                                                                                  \
      "ldtilecfg %1\n tilezero %%tmm0\n tilezero %%tmm1\n tilezero %%tmm2\n"                     \
      "tilezero %%tmm3\n tilezero %%tmm4\n tilezero %%tmm5\n tilezero %%tmm6\n"                  \
      "tilezero %%tmm7\n"                                                                        \
      "1:\n" op " %%tmm6, %%tmm4, %%tmm0\n" op " %%tmm7, %%tmm4, %%tmm1\n" op                    \
      " %%tmm6, %%tmm5, %%tmm2\n" op " %%tmm7, %%tmm5, %%tmm3\n dec %0\n jnz 1b\n tilerelease\n" \
      : "+r"(count)                                                                              \
      : "m"(config)                                                                              \
      : "cc", "memory")
void RepeatBf16Tiles(int64_t count) { BST_REPEAT_TILES("tdpbf16ps"); }
void RepeatInt8Tiles(int64_t count) { BST_REPEAT_TILES("tdpbusd"); }

// Tiles 4 to 7 are loaded anew for every four multiplications, from 16 KB. kFrees: they are set to
// zero where they were used last, as linear layers do, and the next ones loaded one multiplication
// before they are wanted; a tile of zeros takes no register that a load could have.
template <bool kFrees>
void RepeatLoadedTiles(int64_t count) {
  constexpr int64_t kBytes = 16 * 1024;
  alignas(64) thread_local char tiles[kBytes];
  std::memset(tiles, 0x3c, sizeof(tiles));
  const TileConfig config;
  const int64_t stride = 64;
  int64_t at = 0;
#define BST_REPEAT_LOADED_TILES(before, loop)                        \
  asm volatile(                                                      \
      "ldtilecfg %2\n tilezero %%tmm0\n tilezero %%tmm1\n"           \
      "tilezero %%tmm2\n tilezero %%tmm3\n" before                   \
      "1:\n add $4096, %1\n and %5, %1\n lea (%3, %1), %%rax\n" loop \
      "dec %0\n jnz 1b\n tilerelease\n"                              \
      : "+r"(count), "+r"(at)                                        \
      : "m"(config), "r"(&tiles[0]), "r"(stride), "i"(kBytes - 1)    \
      : "rax", "cc", "memory")
  if constexpr (kFrees) {
    BST_REPEAT_LOADED_TILES(
        "tileloadd (%3, %4), %%tmm4\n tileloadd 1024(%3, %4), %%tmm6\n"
        "tileloadd 2048(%3, %4), %%tmm7\n tileloadd 3072(%3, %4), %%tmm5\n",
        "tdpbf16ps %%tmm6, %%tmm4, %%tmm0\n tdpbf16ps %%tmm7, %%tmm4, %%tmm1\n"
        "tilezero %%tmm4\n tdpbf16ps %%tmm6, %%tmm5, %%tmm2\n tilezero %%tmm6\n"
        "tileloadd (%%rax, %4), %%tmm4\n tileloadd 1024(%%rax, %4), %%tmm6\n"
        "tdpbf16ps %%tmm7, %%tmm5, %%tmm3\n tilezero %%tmm5\n tilezero %%tmm7\n"
        "tileloadd 2048(%%rax, %4), %%tmm7\n tileloadd 3072(%%rax, %4), %%tmm5\n");
  } else {
    BST_REPEAT_LOADED_TILES("",
                            "tileloadd (%%rax, %4), %%tmm4\n"
                            "tileloadd 1024(%%rax, %4), %%tmm6\n tdpbf16ps %%tmm6, %%tmm4, %%tmm0\n"
                            "tileloadd 2048(%%rax, %4), %%tmm7\n tdpbf16ps %%tmm7, %%tmm4, %%tmm1\n"
                            "tileloadd 3072(%%rax, %4), %%tmm5\n tdpbf16ps %%tmm6, %%tmm5, %%tmm2\n"
                            "tdpbf16ps %%tmm7, %%tmm5, %%tmm3\n");
  }
#undef BST_REPEAT_LOADED_TILES
}

// The rates of runs in which every thread does `work(thread)` and counts `amount` each.
template <typename Work>
std::vector<double> Rates(int runs, int threads, double amount, const Work& work) {
  std::vector<double> rates;
  for (int run = 0; run < runs; ++run) {
    const auto start = Clock::now();
    std::vector<std::thread> others;
    for (int t = 1; t < threads; ++t) others.emplace_back([&work, t] { work(t); });
    work(0);
    for (std::thread& other : others) other.join();
    const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
    rates.push_back(threads * amount / seconds);
  }
  return rates;
}

template <typename Work>
double BestRate(int threads, double amount, const Work& work) {
  const std::vector<double> rates = Rates(kRuns, threads, amount, work);
  return *std::max_element(rates.begin(), rates.end());
}

double OperationRate(int threads, void (*repeat)(int64_t), double operations_each) {
  constexpr int64_t kCount = 4'000'000;  // some tens of milliseconds
  return BestRate(threads, static_cast<double>(kCount) * operations_each,
                  [repeat](int) { repeat(kCount); });
}

void Read(const std::byte* from, int64_t bytes) {
  constexpr int64_t kStep = 256;
  int64_t count = bytes / kStep;
  asm volatile(
      "1:\n vmovups (%0), %%ymm0\n vmovups 32(%0), %%ymm1\n vmovups 64(%0), %%ymm2\n"
      "vmovups 96(%0), %%ymm3\n vmovups 128(%0), %%ymm4\n vmovups 160(%0), %%ymm5\n"
      "vmovups 192(%0), %%ymm6\n vmovups 224(%0), %%ymm7\n add $256, %0\n dec %1\n jnz 1b\n"
      "vzeroupper\n"
      : "+r"(from), "+r"(count)
      :
      : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "cc", "memory");
}

}  // namespace

double MeasureReadRate(int threads, double bytes) {
  const int64_t each = std::max<int64_t>(1, static_cast<int64_t>(bytes) / threads / 4096) * 4096;
  absl::StatusOr<Buffer> buffer = Buffer::Allocate(static_cast<size_t>(each * threads));
  BST_CHECK(buffer.ok(), buffer.status().ToString());
  std::memset(buffer->data(), 1, buffer->bytes());
  const auto* base = static_cast<const std::byte*>(buffer->data());
  return BestRate(threads, static_cast<double>(each),
                  [base, each](int t) { Read(base + t * each, each); });
}

MachineLimits MeasureMachineLimits(int threads) {
  const CpuIsa isa = DetectCpuIsa();
  const bool wide = isa >= CpuIsa::kAvx512;
  MachineLimits limits = {};
  limits.f32_operations = wide ? OperationRate(threads, RepeatFmaZmm, kSums * 2.0 * 16)
                               : OperationRate(threads, RepeatFmaYmm, kSums * 2.0 * 8);
  if (isa == CpuIsa::kAmx) {
    limits.bf16_operations =
        OperationRate(threads, RepeatBf16Tiles, kTileSums * 2.0 * 16 * 16 * 32);
    limits.int8_operations =
        OperationRate(threads, RepeatInt8Tiles, kTileSums * 2.0 * 16 * 16 * 64);
    static constexpr int kLoadedRuns = 25, kLoadedCount = 500'000;
    const auto median = [&](void (*repeat)(int64_t)) {
      return Median(Rates(kLoadedRuns, threads, kLoadedCount * kTileSums * 2.0 * 16 * 16 * 32,
                          [repeat](int) { repeat(kLoadedCount); }));
    };
    limits.loaded_tile_operations = median(RepeatLoadedTiles<false>);
    limits.freed_tile_operations = median(RepeatLoadedTiles<true>);
  } else {
    limits.bf16_operations = isa == CpuIsa::kAvx512Bf16
                                 ? OperationRate(threads, RepeatBf16Zmm, kSums * 2.0 * 32)
                                 : limits.f32_operations;
    limits.int8_operations = isa >= CpuIsa::kAvx512Vnni
                                 ? OperationRate(threads, RepeatInt8Zmm, kSums * 2.0 * 64)
                                 : OperationRate(threads, RepeatInt16Ymm, kSums * 2.0 * 16);
  }
  limits.read_bytes = MeasureReadRate(threads, 512e6);
  return limits;
}

}  // namespace bst
