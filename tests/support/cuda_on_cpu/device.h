// The words of engine/backend/cuda/device.h for kernels that run on the CPU: each CUDA thread is a
// fiber, and what these functions do is the scheduler's affair (emulator.h).
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <source_location>

#define BST_KERNEL extern "C"
#define BST_DEVICE inline
#define BST_BOUNDS(threads, blocks)
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
