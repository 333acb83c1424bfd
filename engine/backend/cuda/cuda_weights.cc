#include "engine/backend/cuda/cuda_weights.h"

#include <vector>

#include "engine/base/status_macros.h"
#include "engine/tensor/host_convert.h"

namespace bst {
namespace {

// `values` in `type`, on the device.
absl::StatusOr<Buffer> UploadAs(CudaDevice& device, const std::vector<float>& values, DType type) {
  if (type == DType::kF32) return device.Upload(values.data(), values.size() * sizeof(float));
  std::vector<BFloat16> rounded(values.size());
  for (size_t i = 0; i < values.size(); ++i) rounded[i] = ToBFloat16(values[i]);
  return device.Upload(rounded.data(), rounded.size() * sizeof(BFloat16));
}

}  // namespace

absl::StatusOr<Buffer> UploadFloats(CudaDevice& device, TensorView tensor) {
  return UploadAs(device, ToFloats(tensor), DType::kF32);
}

absl::StatusOr<std::unique_ptr<CudaEmbedding>> CudaEmbedding::Pack(CudaDevice& device,
                                                                   TensorView table, DType type) {
  auto weights = std::make_unique<CudaEmbedding>();
  BST_ASSIGN_OR_RETURN(weights->table_, UploadAs(device, ToFloats(table), type));
  weights->type_ = type;
  weights->dim_ = table.dim(1);
  return weights;
}

absl::StatusOr<std::unique_ptr<CudaLinear>> CudaLinear::Pack(CudaDevice& device,
                                                             absl::Span<const TensorView> parts,
                                                             DType type) {
  const int64_t in = parts[0].dim(1);
  int64_t out = 0;
  for (const TensorView& part : parts) {
    BST_CHECK(part.dim(1) == in, "stacked layers must share their inputs");
    out += part.dim(0);
  }
  auto weights = std::unique_ptr<CudaLinear>(
      new CudaLinear(static_cast<int>(in), static_cast<int>(out), type));
  const bool transposed = type == DType::kF32;
  const int64_t stride = transposed ? weights->padded_out() : weights->padded_in();
  std::vector<float> packed(
      static_cast<size_t>(stride * (transposed ? in : int64_t{weights->padded_out()})));
  int64_t feature = 0;
  for (const TensorView& part : parts) {
    for (int64_t row = 0; row < part.dim(0); ++row, ++feature) {
      for (int64_t k = 0; k < in; ++k) {
        packed[static_cast<size_t>(transposed ? k * stride + feature : feature * stride + k)] =
            ElementAsFloat(part, row * in + k);
      }
    }
  }
  BST_ASSIGN_OR_RETURN(weights->weights_, UploadAs(device, packed, type));
  return weights;
}

absl::StatusOr<std::unique_ptr<CudaAttention>> CudaAttention::Pack(
    CudaDevice& device, const AttentionParameters& parameters) {
  auto weights = std::unique_ptr<CudaAttention>(new CudaAttention(parameters.spec));
  BST_ASSIGN_OR_RETURN(weights->scale_, UploadFloats(device, parameters.scale));
  if (!parameters.bias.empty()) {
    BST_ASSIGN_OR_RETURN(weights->bias_, UploadFloats(device, parameters.bias));
  }
  return weights;
}

absl::StatusOr<std::unique_ptr<CudaContext>> CudaContext::Pack(
    CudaDevice& device, const ContextParameters& parameters) {
  auto weights = std::unique_ptr<CudaContext>(new CudaContext(parameters.spec));
  BST_ASSIGN_OR_RETURN(weights->scale_, UploadFloats(device, parameters.scale));
  return weights;
}

absl::StatusOr<std::unique_ptr<CudaScan>> CudaScan::Pack(CudaDevice& device,
                                                         TensorView a_minus_one) {
  auto weights = std::make_unique<CudaScan>();
  BST_ASSIGN_OR_RETURN(weights->e_, UploadFloats(device, a_minus_one));
  weights->modes_ = static_cast<int>(a_minus_one.dim(0));
  return weights;
}

}  // namespace bst
