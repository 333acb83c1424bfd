#include "engine/backend/cuda/cuda_weights.h"

#include "engine/base/status_macros.h"
#include "engine/tensor/host_convert.h"

namespace bst {

absl::StatusOr<Buffer> UploadAs(CudaDevice& device, const std::vector<float>& values, DType type) {
  if (type == DType::kF32) return device.Upload(values.data(), values.size() * sizeof(float));
  std::vector<BFloat16> rounded(values.size());
  for (size_t i = 0; i < values.size(); ++i) rounded[i] = ToBFloat16(values[i]);
  return device.Upload(rounded.data(), rounded.size() * sizeof(BFloat16));
}

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
  BST_CHECK_SHAPE(a_minus_one, {a_minus_one.dim(0), 2});
  auto weights = std::make_unique<CudaScan>();
  BST_ASSIGN_OR_RETURN(weights->e_, UploadFloats(device, a_minus_one));
  weights->modes_ = static_cast<int>(a_minus_one.dim(0));
  return weights;
}

}  // namespace bst
