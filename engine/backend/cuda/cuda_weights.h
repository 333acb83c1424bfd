// The weights of the CUDA backend as its kernels read them. Host tensors go in, device buffers come
// out; each value is rounded once, from the checkpoint's type.
//
// Ownership   Each owns its device memory.
// Threads     Engine thread only: some keep lists that a step fills.
// Errors      Pack: kResourceExhausted; PackCudaSsm and PackCudaDplr also as in chunk_tables.h.
// Tested by   tests/engine/backend (emulated)
#pragma once

#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "engine/backend/backend.h"
#include "engine/backend/cuda/cuda_device.h"
#include "engine/backend/cuda/kernels.h"

namespace bst {

// [V, D], float or bf16.
class CudaEmbedding : public EmbeddingWeights {
 public:
  static absl::StatusOr<std::unique_ptr<CudaEmbedding>> Pack(CudaDevice& device, TensorView table,
                                                             DType type);
  const Buffer& table() const { return table_; }
  DType type() const { return type_; }
  int64_t dim() const { return dim_; }
  size_t bytes() const override { return table_.bytes(); }

 private:
  Buffer table_;
  DType type_ = DType::kF32;
  int64_t dim_ = 0;
};

class CudaAttention : public AttentionWeights {
 public:
  static absl::StatusOr<std::unique_ptr<CudaAttention>> Pack(CudaDevice& device,
                                                             const AttentionParameters& parameters);
  const float* scale() const { return static_cast<const float*>(scale_.data()); }
  const float* bias() const { return static_cast<const float*>(bias_.data()); }  // null: none
  size_t bytes() const override { return scale_.bytes() + bias_.bytes(); }

 private:
  using AttentionWeights::AttentionWeights;
  Buffer scale_, bias_;
};

class CudaContext : public ContextWeights {
 public:
  static absl::StatusOr<std::unique_ptr<CudaContext>> Pack(CudaDevice& device,
                                                           const ContextParameters& parameters);
  const float* scale() const { return static_cast<const float*>(scale_.data()); }
  size_t bytes() const override { return scale_.bytes(); }

 private:
  using ContextWeights::ContextWeights;
  Buffer scale_;
};

// What Backend::Ssm runs, whatever the kind of weights. State of the recurrences: cuda_sequence.cc;
// of convolutions: cuda_convolution.cc.
class CudaSequence : public SsmWeights {
 public:
  using SsmWeights::SsmWeights;
  virtual void Run(CudaDevice& device, TensorView u, absl::Span<const Row> rows, PoolView state,
                   TensorView y) const = 0;
  virtual size_t state_bytes() const = 0;
};
// most_places: CudaOptions::most_chunk_places.
absl::StatusOr<std::unique_ptr<SsmWeights>> PackCudaSsm(CudaDevice& device,
                                                        const SsmParameters& parameters,
                                                        int most_places);
absl::StatusOr<std::unique_ptr<SsmWeights>> PackCudaDplr(CudaDevice& device,
                                                         const DplrParameters& parameters,
                                                         int most_places);
absl::StatusOr<std::unique_ptr<SsmWeights>> PackCudaConvolution(
    CudaDevice& device, const ConvolutionParameters& parameters);

// State: [modes, 2].
class CudaScan : public ScanWeights {
 public:
  static absl::StatusOr<std::unique_ptr<CudaScan>> Pack(CudaDevice& device, TensorView a_minus_one);
  void Run(CudaDevice& device, TensorView v, absl::Span<const Row> rows, PoolView state) const;
  size_t state_bytes() const { return e_.bytes(); }
  size_t bytes() const override { return e_.bytes(); }

 private:
  Buffer e_;
  int modes_ = 0;
  mutable std::vector<cuda::SequenceRow> places_;  // of the step; keeps its capacity
};

// A float32 matrix as kernels take it.
inline cuda::Matrix ToMatrix(const TensorView& view) {
  return {view.as<float>(), view.row_stride()};
}
inline cuda::Element ToElement(DType type) {
  return type == DType::kBF16 ? cuda::Element::kBf16 : cuda::Element::kF32;
}
// A host tensor of any floating type as float32 on the device.
absl::StatusOr<Buffer> UploadFloats(CudaDevice& device, TensorView tensor);
// `values` as F32 or BF16 on the device.
absl::StatusOr<Buffer> UploadAs(CudaDevice& device, const std::vector<float>& values, DType type);

}  // namespace bst
