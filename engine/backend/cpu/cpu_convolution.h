// The convolution with explicit taps on the CPU backend: sixteen features in the lanes, feature
// groups and rows over the threads.
//
// Symbols   T taps, W block, Q = ceil((T - 1) / W) partitions, C filters, D inputs; M the smallest
//           power of two >= W
// Tokens    Output i of block b adds, in this order: its base, then u[bW + j] k[i - j], j = 0 .. i.
//           The base is the contribution of blocks b-1 .. b-Q, made for all i when the block
//           starts: elements W + i of sum_p u_{b-p} g_p, g_p[m] = k[(p-1) W + m], m = 1 .. 2W - 1.
//           These products of polynomials are taken modulo t^2M + 1, which leaves elements
//           W .. 2W - 1 intact; and since all is real, modulo t^M - i: coefficients m and M + m
//           become one complex number, u_b has no imaginary parts, and M complex points do the work
//           of 2M.
// Ends      y = sum over 128 taps at a time of k[s] u[t - s], in order.
// The scratch of a thread holds Q + 1 spectra, or 8 C rows of sums and T + 7 W rows of inputs.
// Threads   Engine thread only; tasks run on the threads of the CpuContext.
// Tested by tests/engine/backend/convolution_test.cc
#pragma once

#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "engine/backend/backend.h"
#include "engine/backend/cpu/cpu_context.h"
#include "engine/backend/cpu/cpu_sequence.h"

namespace bst {

// See Backend::PackConvolution.
absl::StatusOr<std::unique_ptr<SsmWeights>> PackCpuConvolution(
    CpuContext& context, const ConvolutionParameters& parameters);

// An output for every token.
// State   [groups] x { ring [max(Q, 1) W][16] of raw inputs, row position mod (Q W);
//                      base [C][W][16] }
class CpuTokenConvolution : public CpuSequence {
 public:
  static absl::StatusOr<std::unique_ptr<CpuTokenConvolution>> Pack(
      CpuContext& context, const ConvolutionParameters& parameters);

  void Run(CpuContext& context, TensorView u, absl::Span<const Row> rows, PoolView state,
           TensorView y) const override;
  size_t state_bytes() const override;
  size_t bytes() const override { return packed_.bytes() + roots_.bytes(); }

 private:
  CpuTokenConvolution(const SsmSpec& spec, int num_taps);

  void RunRow(CpuContext& context, int thread, const Row& row, int group, TensorView u,
              PoolView state, TensorView y) const;
  // What `block` gets from the blocks before it. Scratch holds the spectra of those below
  // `transformed`, as far as they reach.
  void MakeBase(CpuContext& context, int thread, int group, int64_t block, int64_t transformed,
                const float* ring, float* base) const;

  int64_t BlockSize() const { return int64_t{spec().block} * kLanes; }
  int64_t SpectrumSize() const { return int64_t{2} * transform_size_ * kLanes; }
  int64_t RingBlocks() const { return num_partitions_ > 0 ? num_partitions_ : 1; }
  int64_t GroupState() const { return (RingBlocks() + spec().num_filters) * BlockSize(); }
  int64_t FilterSize() const { return BlockSize() + num_partitions_ * SpectrumSize(); }

  int num_partitions_;  // Q
  int transform_size_;  // M
  Buffer roots_;        // [M][2]
  Buffer packed_;  // [groups][C] x { newest taps [W][16], d in the first; spectra [Q][M][2][16] }
};

// Outputs at block ends only.
// State   [groups] x ring [T][16] of raw inputs, row position mod T
class CpuEndConvolution : public CpuSequence {
 public:
  static absl::StatusOr<std::unique_ptr<CpuEndConvolution>> Pack(
      CpuContext& context, const ConvolutionParameters& parameters);

  void Run(CpuContext& context, TensorView u, absl::Span<const Row> rows, PoolView state,
           TensorView y) const override;
  size_t state_bytes() const override;
  size_t bytes() const override { return packed_.bytes(); }

 private:
  CpuEndConvolution(const SsmSpec& spec, int num_taps);

  void RunRow(CpuContext& context, int thread, const Row& row, int first_output, int group,
              TensorView u, PoolView state, TensorView y) const;

  int num_taps_;
  Buffer packed_;                           // taps [groups][C][T][16], d in the first
  mutable std::vector<int> first_outputs_;  // scratch of Run: the rows' first rows of y
};

}  // namespace bst
