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

namespace bst::cuda_on_cpu {

int ThreadX();
int BlockX();
int BlockY();
int NumThreads();
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
  const auto number = [](uint64_t word, int half) {  // BF16 number `half` of a pair, 0 .. 3
    const uint32_t bits = static_cast<uint32_t>(word >> (16 * half) & 0xffff) << 16;
    float x;
    std::memcpy(&x, &bits, sizeof(x));
    return x;
  };
  const int lane = cuda_on_cpu::Lane();
  for (int i = 0; i < 4; ++i) {
    const int row = lane / 4, high_row = i / 2, column = lane % 4 * 2 + i % 2;
    for (int k = 0; k < 16; ++k) {
      const auto from = static_cast<size_t>(k % 8 / 2);  // t of the lanes that hold this k
      const uint64_t a_words =
          words[static_cast<size_t>(k / 8)][static_cast<size_t>(row) * 4 + from];
      const uint64_t b_words = words[2][static_cast<size_t>(column) * 4 + from];
      c[i] = std::fmaf(number(a_words, high_row * 2 + k % 2), number(b_words, k / 8 * 2 + k % 2),
                       c[i]);
    }
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
