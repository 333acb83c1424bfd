// The words of engine/backend/cuda/device.h for kernels that run on the CPU: each CUDA thread is a
// fiber, and what these functions do is the scheduler's affair (emulator.h).
#pragma once

#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <source_location>

#define BST_KERNEL extern "C"
#define BST_DEVICE inline
#define BST_BOUNDS(threads, blocks)
#define BST_UNROLL
// The tag's address says which array of the kernel it is.
#define BST_SHARED(type, name, count)    \
  static const char name##_tag = 0;      \
  type* const name = static_cast<type*>( \
      ::bst::cuda_on_cpu::SharedArray(&name##_tag, #name, sizeof(type) * (count)))

#define BST_LAUNCHED_SHARED(type, name)  \
  static const char name##_tag = 0;      \
  type* const name = static_cast<type*>( \
      ::bst::cuda_on_cpu::SharedArray(&name##_tag, #name, ::bst::cuda_on_cpu::LaunchedShared()))

namespace bst::cuda_on_cpu {

int ThreadX();
int BlockX();
int BlockY();
int NumThreads();
size_t LaunchedShared();  // bytes
void* SharedArray(const void* tag, const char* name, size_t bytes);
void SyncThreads(const char* file, unsigned line);
// Every lane gives a value; returns what `from_lane` gave.
uint64_t Exchange(uint64_t value, int from_lane, const char* file, unsigned line);
uint32_t Ballot(bool value, const char* file, unsigned line);
// Every lane gives three values; returns those of all, [value][lane], until the warp's next
// operation.
using WarpValues = std::array<std::array<uint64_t, 32>, 3>;
const WarpValues& Gather(const std::array<uint64_t, 3>& values, const char* file, unsigned line);
int Lane();

}  // namespace bst::cuda_on_cpu

namespace bst::cuda {

using cuda_on_cpu::BlockX;
using cuda_on_cpu::BlockY;
using cuda_on_cpu::NumThreads;
using cuda_on_cpu::ThreadX;

inline void SyncThreads(std::source_location where = std::source_location::current()) {
  cuda_on_cpu::SyncThreads(where.file_name(), where.line());
}
template <typename T>
T ShuffleXor(T value, int lane_mask, std::source_location where = std::source_location::current()) {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits =
      cuda_on_cpu::Exchange(bits, cuda_on_cpu::Lane() ^ lane_mask, where.file_name(), where.line());
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}
inline uint32_t Ballot(bool value, std::source_location where = std::source_location::current()) {
  return cuda_on_cpu::Ballot(value, where.file_name(), where.line());
}
// mma.cuh: c += a b, in the order of k.
inline void MultiplyFragments(const uint32_t (&a)[4], const uint32_t (&b)[2], float (&c)[4],
                              const std::source_location& where) {
  const auto two = [](uint32_t low, uint32_t high) { return low | uint64_t{high} << 32; };
  const cuda_on_cpu::WarpValues& words = cuda_on_cpu::Gather(
      {two(a[0], a[1]), two(a[2], a[3]), two(b[0], b[1])}, where.file_name(), where.line());
  const auto number = [](uint64_t word, int half) {  // BF16 number `half` of a pair of words
    const uint32_t bits = static_cast<uint32_t>(word >> (16 * half) & 0xffff) << 16;
    float x;
    std::memcpy(&x, &bits, sizeof(x));
    return x;
  };
  const int g = cuda_on_cpu::Lane() / 4, t = cuda_on_cpu::Lane() % 4;
  float rows[2][16], columns[2][16];  // of A: g and g + 8; of B: 2 t and 2 t + 1
  for (size_t k = 0; k < 16; ++k) {
    const size_t from = k % 8 / 2;  // t of the lanes that hold this k
    const int half = static_cast<int>(k % 2);
    const uint64_t a_words = words[k / 8][static_cast<size_t>(g) * 4 + from];
    rows[0][k] = number(a_words, half);
    rows[1][k] = number(a_words, 2 + half);
    for (size_t j = 0; j < 2; ++j) {
      const uint64_t b_words = words[2][(static_cast<size_t>(t) * 2 + j) * 4 + from];
      columns[j][k] = number(b_words, static_cast<int>(k / 8) * 2 + half);
    }
  }
  for (int i = 0; i < 4; ++i) {
    for (int k = 0; k < 16; ++k) c[i] = std::fmaf(rows[i / 2][k], columns[i % 2][k], c[i]);
  }
}
inline uint32_t FloatBits(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return bits;
}
inline float FloatFromBits(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof(x));
  return x;
}

}  // namespace bst::cuda
