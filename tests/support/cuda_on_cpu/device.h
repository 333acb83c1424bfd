// The words of engine/backend/cuda/device.h for kernels that run on the CPU: each CUDA thread is a
// fiber, and what these functions do is the scheduler's affair (emulator.h).
#pragma once

#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <source_location>
#include <vector>

#define BST_KERNEL extern "C"
#define BST_DEVICE inline
#define BST_BOUNDS(threads, blocks)
#define BST_UNROLL
#define BST_NO_UNROLL
// The tag's address says which array of the kernel it is.
#define BST_SHARED(type, name, count)    \
  static const char name##_tag = 0;      \
  type* const name = static_cast<type*>( \
      ::bst::cuda_on_cpu::SharedArray(&name##_tag, #name, sizeof(type) * (count)))
#define BST_DYNAMIC_SHARED(type, name) \
  static const char name##_tag = 0;    \
  type* const name = static_cast<type*>(::bst::cuda_on_cpu::DynamicSharedArray(&name##_tag, #name))

namespace bst::cuda_on_cpu {

int ThreadX();
int BlockX();
int BlockY();
int NumThreads();
void* SharedArray(const void* tag, const char* name, size_t bytes);
void* DynamicSharedArray(const void* tag, const char* name);
void SyncThreads(const char* file, unsigned line);
// Every lane gives a value; returns what `from_lane` gave.
uint64_t Exchange(uint64_t value, int from_lane, const char* file, unsigned line);
uint32_t Ballot(bool value, const char* file, unsigned line);
// Every lane gives three values; returns those of all, [value][lane], until the warp's next
// operation.
using WarpValues = std::array<std::array<uint64_t, 32>, 3>;
const WarpValues& Gather(const std::array<uint64_t, 3>& values, const char* file, unsigned line);
int Lane();
// Of one thread, the oldest first, until they land; how many were started before each commit.
struct Copy {
  void* to;
  const void* from;
  size_t bytes, valid;
};
struct Copies {
  std::vector<Copy> started;
  std::vector<size_t> groups;
};
Copies& CopiesOfThread();
void NoteMisaligned();

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
// A copy lands when its thread waits for it; until then its place holds nothing.
template <int kBytes>
void StartCopy(void* shared, const void* global, int bytes) {
  const auto is_aligned = [](const void* at) {
    return reinterpret_cast<uintptr_t>(at) % kBytes == 0;
  };
  if (!is_aligned(shared) || !is_aligned(global)) cuda_on_cpu::NoteMisaligned();
  std::memset(shared, 0xff, kBytes);
  cuda_on_cpu::CopiesOfThread().started.push_back(
      {shared, global, kBytes, static_cast<size_t>(bytes)});
}
inline void CommitCopies() {
  cuda_on_cpu::Copies& copies = cuda_on_cpu::CopiesOfThread();
  copies.groups.push_back(copies.started.size());
}
inline void WaitForCopies(int but) {
  cuda_on_cpu::Copies& copies = cuda_on_cpu::CopiesOfThread();
  if (copies.groups.size() <= static_cast<size_t>(but)) return;
  const size_t landing = copies.groups.size() - static_cast<size_t>(but);
  const size_t landed = copies.groups[landing - 1];
  for (size_t i = 0; i < landed; ++i) {
    const cuda_on_cpu::Copy& copy = copies.started[i];
    std::memset(copy.to, 0, copy.bytes);
    std::memcpy(copy.to, copy.from, copy.valid);
  }
  copies.started.erase(copies.started.begin(), copies.started.begin() + static_cast<long>(landed));
  copies.groups.erase(copies.groups.begin(), copies.groups.begin() + static_cast<long>(landing));
  for (size_t& group : copies.groups) group -= landed;
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
// ftz of nvcc's: what would be subnormal is 0.
inline float Exp2(float x) { return x < -126.0f ? 0.0f : std::exp2(x); }
inline double InverseRoot(double x) { return 1.0 / std::sqrt(x); }
inline uint32_t LowHalves(uint32_t x, uint32_t y) { return (x & 0xffffu) | y << 16; }
inline uint32_t HighHalves(uint32_t x, uint32_t y) { return x >> 16 | (y & 0xffff0000u); }
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
