// engine/backend/cuda/blas.h with plain loops.
#include "engine/backend/cuda/blas.h"

#include <cmath>
#include <cstring>

#include "engine/tensor/dtype.h"
#include "tests/support/cuda_on_cpu/libraries.h"

namespace bst::cuda {

class Blas {};

class Product {
 public:
  ProductShape shape;
  enum { kInOrder, kInHalves, kFails } kind;
  bool relu_keeps_nan = true;
};

namespace {

cuda_on_cpu::BlasKind kind = cuda_on_cpu::BlasKind::kAsTheKernels;
int products = 0;

float Number(const ProductShape& shape, const void* data, int64_t index) {
  if (!shape.bf16) return static_cast<const float*>(data)[index];
  return ToFloat(static_cast<const BFloat16*>(data)[index]);
}

float Sum(const Product& product, const ProductOperands& operands, int row, int feature, int first,
          int end) {
  const ProductShape& s = product.shape;
  float sum = 0.0f;
  for (int k = first; k < end; ++k) {
    const int64_t weight = s.bf16 ? feature * s.weights_stride + k : k * s.weights_stride + feature;
    sum = std::fmaf(Number(s, operands.x, row * s.x_stride + k),
                    Number(s, operands.weights, weight), sum);
  }
  return sum;
}

void Multiply(const Product& product, const ProductOperands& operands) {
  const ProductShape& s = product.shape;
  for (int row = 0; row < s.rows; ++row) {
    for (int feature = 0; feature < s.out; ++feature) {
      float sum = 0.0f;
      if (product.kind == Product::kInHalves) {
        sum = Sum(product, operands, row, feature, 0, s.in / 2) +
              Sum(product, operands, row, feature, s.in / 2, s.in);
      } else {
        sum = Sum(product, operands, row, feature, 0, s.in);
      }
      sum *= operands.scale;
      float& out = operands.out[row * s.out_stride + feature];
      if (operands.epilogue == ProductEpilogue::kAdd) sum += out;
      if (operands.epilogue == ProductEpilogue::kRelu) {
        const bool is_dropped = std::isnan(sum) && !product.relu_keeps_nan;
        sum = sum < 0.0f || is_dropped ? 0.0f : sum;
      }
      out = sum;
    }
  }
}

}  // namespace

void BlasDeleter::operator()(Blas* blas) const { delete blas; }
absl::StatusOr<BlasPtr> OpenBlas() {
  if (kind == cuda_on_cpu::BlasKind::kMissing)
    return absl::UnavailableError("no cuBLAS: a test took it away");
  return BlasPtr(new Blas());
}

void ProductDeleter::operator()(Product* product) const { delete product; }
std::vector<ProductPtr> FindProducts(Blas& /*blas*/, const ProductShape& shape, int /*count*/) {
  const auto first = kind == cuda_on_cpu::BlasKind::kFails ? Product::kFails : Product::kInHalves;
  std::vector<ProductPtr> found;
  found.emplace_back(new Product{.shape = shape, .kind = first});
  if (kind != cuda_on_cpu::BlasKind::kOtherBits)
    found.emplace_back(new Product{.shape = shape,
                                   .kind = Product::kInOrder,
                                   .relu_keeps_nan = kind != cuda_on_cpu::BlasKind::kFails});
  return found;
}

absl::Status RunProduct(Stream& stream, const Product& product, const ProductOperands& operands) {
  if (product.kind == Product::kFails) return absl::InternalError("does not start");
  ++products;
  cuda_on_cpu::EnqueueOnHost(stream, [product, operands] { Multiply(product, operands); });
  return absl::OkStatus();
}

}  // namespace bst::cuda

namespace bst::cuda_on_cpu {

void SetBlas(BlasKind kind) { cuda::kind = kind; }
int NumProducts() { return cuda::products; }

}  // namespace bst::cuda_on_cpu
