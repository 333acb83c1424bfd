// What kernels are written against: the few words of CUDA they need. nvcc gives them the real
// meaning; any other compiler takes <cuda_on_cpu/device.h>, an emulation of the same words, so that
// the same sources run on machines without a GPU.
//
//   BST_KERNEL void bst_x(XTask task)   an entry point; its name is the one in the PTX
//   BST_SHARED(type, name, count)       an array of the block, uninitialised
//   BST_LAUNCHED_SHARED(type, name)     one as large as the launch says (launch.h)
//   ThreadX, BlockX, BlockY             where this thread stands; NumThreads per block
//   SyncThreads                         all threads of the block, at one place in the source
//   ShuffleXor, Ballot                  all 32 lanes of the warp; a block is whole warps
//
// Arithmetic  A product and a sum are fused where the source says fmaf and nowhere else: both
//             compilers are told so (-fmad=false, -ffp-contract=off). Otherwise two kernels that
//             must agree to the bit could round differently.
// Tested by   tests/support/cuda_on_cpu/emulator_test.cc (the emulation's side)
#pragma once

#ifdef __CUDACC__

#include <cuda_runtime.h>

#include <cstdint>

#define BST_KERNEL extern "C" __global__
#define BST_DEVICE __device__ __forceinline__
#define BST_SHARED(type, name, count) __shared__ type name[count]
#define BST_LAUNCHED_SHARED(type, name)                         \
  extern __shared__ __align__(16) unsigned char name##_bytes[]; \
  type* const name = reinterpret_cast<type*>(name##_bytes)
// Launch bounds: the register allocator then keeps `blocks` of them on a multiprocessor.
#define BST_BOUNDS(threads, blocks) __launch_bounds__(threads, blocks)
// The loop that follows, whose count is a constant, becomes straight code: arrays that it indexes
// then lie in registers.
#define BST_UNROLL _Pragma("unroll")

namespace bst::cuda {

BST_DEVICE int ThreadX() { return static_cast<int>(threadIdx.x); }
BST_DEVICE int BlockX() { return static_cast<int>(blockIdx.x); }
BST_DEVICE int BlockY() { return static_cast<int>(blockIdx.y); }
BST_DEVICE int NumThreads() { return static_cast<int>(blockDim.x); }
BST_DEVICE void SyncThreads() { __syncthreads(); }
template <typename T>
BST_DEVICE T ShuffleXor(T value, int lane_mask) {
  return __shfl_xor_sync(0xffffffffu, value, lane_mask);
}
BST_DEVICE uint32_t Ballot(bool value) { return __ballot_sync(0xffffffffu, value); }
BST_DEVICE uint32_t FloatBits(float x) { return __float_as_uint(x); }
BST_DEVICE float FloatFromBits(uint32_t bits) { return __uint_as_float(bits); }

}  // namespace bst::cuda

#else
#include <cuda_on_cpu/device.h>
#endif

namespace bst::cuda {

constexpr int kWarp = 32;

// The upper half of a float32, as bst::BFloat16.
struct Bf16 {
  uint16_t bits;
};

BST_DEVICE float Load(float x) { return x; }
BST_DEVICE float Load(Bf16 x) { return FloatFromBits(static_cast<uint32_t>(x.bits) << 16); }

// Round to nearest, ties to even; NaN stays NaN.
template <typename T>
BST_DEVICE T Store(float x);
template <>
BST_DEVICE float Store<float>(float x) {
  return x;
}
template <>
BST_DEVICE Bf16 Store<Bf16>(float x) {
  const uint32_t bits = FloatBits(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return {static_cast<uint16_t>((bits >> 16) | 0x40u)};
  return {static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}
template <typename T>
BST_DEVICE float Round(float x) {
  return Load(Store<T>(x));
}

// Over `lanes` neighbouring lanes, a power of two; every one of them gets the same bits.
template <typename T>
BST_DEVICE T SumLanes(T x, int lanes) {
  for (int mask = lanes / 2; mask > 0; mask /= 2) x += ShuffleXor(x, mask);
  return x;
}
BST_DEVICE float MaxLanes(float x) {
  for (int mask = kWarp / 2; mask > 0; mask /= 2) x = fmaxf(x, ShuffleXor(x, mask));
  return x;
}

}  // namespace bst::cuda
