// The words of engine/backend/cuda/device.h for kernels that run on the CPU: each CUDA thread is a
// fiber, and what these functions do is the scheduler's affair (emulator.h).
#pragma once

#include <array>
#include <bit>
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
// Words that the lanes of a warp brought to an operation: word i of lane l is [i][l].
using WarpWords = std::array<std::array<uint64_t, 32>, 5>;
// Of this lane and fragments of a (two words), b (one) and c (two); returns the warp's words with
// c + a b in place of c, until its next operation.
const WarpWords& MultiplyTiles(const std::array<uint64_t, 5>& words, const char* file,
                               unsigned line);
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
  const auto word = [](auto low, auto high) {
    return std::bit_cast<uint32_t>(low) | uint64_t{std::bit_cast<uint32_t>(high)} << 32;
  };
  const cuda_on_cpu::WarpWords& words = cuda_on_cpu::MultiplyTiles(
      {word(a[0], a[1]), word(a[2], a[3]), word(b[0], b[1]), word(c[0], c[1]), word(c[2], c[3])},
      where.file_name(), where.line());
  const auto lane = static_cast<size_t>(cuda_on_cpu::Lane());
  std::memcpy(c, &words[3][lane], sizeof(words[3][lane]));
  std::memcpy(c + 2, &words[4][lane], sizeof(words[4][lane]));
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
