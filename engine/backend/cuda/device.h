// What kernels are written against: the few words of CUDA they need. nvcc gives them the real
// meaning; any other compiler takes <cuda_on_cpu/device.h>, an emulation of the same words, so that
// the same sources run on machines without a GPU.
//
//   BST_KERNEL void bst_x(XTask task)   an entry point; its name is the one in the PTX
//   BST_SHARED(type, name, count)       an array of the block, uninitialised
//   BST_DYNAMIC_SHARED(type, name)      one more, of the launch's `shared_bytes`; at 16 bytes
//   ThreadX, BlockX, BlockY             where this thread stands; NumThreads per block
//   SyncThreads                         all threads of the block, at one place in the source
//   ShuffleXor, Ballot                  all 32 lanes of the warp; a block is whole warps
//   StartCopy<n>(to, from, bytes)       n = 4 or 16 bytes to shared from global memory, both at
//                                       multiples of n; zeros beyond the first `bytes`. Lands at
//                                       any time before the thread has waited for it
//   CommitCopies, WaitForCopies(but)    those started since the last CommitCopies are a group;
//                                       until all groups of this thread but the newest `but` <= 6
//                                       have landed
//   Exp2                                2^x to 2 units in the last place, one instruction;
//                                       subnormal numbers are 0
//   InverseRoot                         1 / sqrt(x) to a unit in the last place, in a quarter of
//                                       the instructions
//   LowHalves, HighHalves               of x, and of y in the upper half; one instruction
//
// Arithmetic  A product and a sum are fused where the source says fmaf and nowhere else: both
//             compilers are told so (-fmad=false, -ffp-contract=off). Otherwise two kernels that
//             must agree to the bit could round differently.
// Threads     Runs on the device.
// Tested by   tests/support/cuda_on_cpu/emulator_test.cc (the emulation's side)
#pragma once

#ifdef __CUDACC__

#include <cuda_runtime.h>

#include <cstdint>

#define BST_KERNEL extern "C" __global__
#define BST_DEVICE __device__ __forceinline__
#define BST_SHARED(type, name, count) __shared__ type name[count]
#define BST_DYNAMIC_SHARED(type, name) extern __shared__ __align__(16) type name[]
// Launch bounds: the register allocator then keeps `blocks` of them on a multiprocessor.
#define BST_BOUNDS(threads, blocks) __launch_bounds__(threads, blocks)
// The loop that follows, whose count is a constant, becomes straight code: arrays that it indexes
// then lie in registers.
#define BST_UNROLL _Pragma("unroll")
// The loop that follows stays one, and takes no registers for several turns.
#define BST_NO_UNROLL _Pragma("unroll 1")

namespace bst::cuda {

BST_DEVICE int ThreadX() { return static_cast<int>(threadIdx.x); }
BST_DEVICE int BlockX() { return static_cast<int>(blockIdx.x); }
BST_DEVICE int BlockY() { return static_cast<int>(blockIdx.z * gridDim.y + blockIdx.y); }
BST_DEVICE int NumThreads() { return static_cast<int>(blockDim.x); }
BST_DEVICE void SyncThreads() { __syncthreads(); }
template <typename T>
BST_DEVICE T ShuffleXor(T value, int lane_mask) {
  return __shfl_xor_sync(0xffffffffu, value, lane_mask);
}
BST_DEVICE uint32_t Ballot(bool value) { return __ballot_sync(0xffffffffu, value); }
template <int kBytes>
BST_DEVICE void StartCopy(void* shared, const void* global, int bytes) {
  const auto to = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  if constexpr (kBytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(bytes)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(to), "l"(global),
                 "n"(kBytes), "r"(bytes)
                 : "memory");
  }
}
BST_DEVICE void CommitCopies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
BST_DEVICE void WaitForCopies(int but) {
  switch (but) {  // the instruction takes a constant
    case 0:
      asm volatile("cp.async.wait_group 0;" ::: "memory");
      break;
    case 1:
      asm volatile("cp.async.wait_group 1;" ::: "memory");
      break;
    case 2:
      asm volatile("cp.async.wait_group 2;" ::: "memory");
      break;
    case 3:
      asm volatile("cp.async.wait_group 3;" ::: "memory");
      break;
    case 4:
      asm volatile("cp.async.wait_group 4;" ::: "memory");
      break;
    case 5:
      asm volatile("cp.async.wait_group 5;" ::: "memory");
      break;
    default:
      asm volatile("cp.async.wait_group 6;" ::: "memory");
  }
}
BST_DEVICE float Exp2(float x) {
  float power;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
  return power;
}
BST_DEVICE double InverseRoot(double x) { return rsqrt(x); }
BST_DEVICE uint32_t LowHalves(uint32_t x, uint32_t y) { return __byte_perm(x, y, 0x5410); }
BST_DEVICE uint32_t HighHalves(uint32_t x, uint32_t y) { return __byte_perm(x, y, 0x7632); }
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
