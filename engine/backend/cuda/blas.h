// cuBLASLt, as much as a linear layer needs of it: products of one fixed size each, by an algorithm
// that was chosen once. There are two implementations: blas.cc over the library, which is opened at
// run time, so that the backend works without it; and one with plain loops in
// tests/support/cuda_on_cpu.
//
// Product     out = epilogue(scale x W^T) or out += scale x W^T, with float32 sums: x [rows, in], W
//             [out, in] BF16, or F32 with W transposed and no TF32; out [rows, out] F32. Inputs are
//             split between no blocks (no split-K).
// Bits        This header promises none: the caller compares (cuda_linear.h).
// Ownership   Products die before the Blas they were found by.
// Threads     One.
// Errors      OpenBlas: kUnavailable, "no cuBLAS: ...". FindProducts: none found is an empty list.
//             RunProduct: kInternal where it was not enqueued; the stream is as before. What fails
//             on the device later sticks to the stream.
// Tested by   tests/engine/backend/cuda/linear_test.cc
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/backend/cuda/runtime.h"

namespace bst::cuda {

class Blas;
class Product;

enum class ProductEpilogue { kStore, kRelu, kAdd };

struct ProductShape {
  int rows, in, out;
  bool bf16;
  int64_t x_stride, weights_stride, out_stride;  // elements
};

struct BlasDeleter {
  void operator()(Blas* blas) const;
};
using BlasPtr = std::unique_ptr<Blas, BlasDeleter>;
absl::StatusOr<BlasPtr> OpenBlas();

struct ProductDeleter {
  void operator()(Product* product) const;
};
using ProductPtr = std::unique_ptr<Product, ProductDeleter>;
// Different algorithms for a shape, the most promising first, at most `count`.
std::vector<ProductPtr> FindProducts(Blas& blas, const ProductShape& shape, int count);

struct ProductOperands {
  const void* x;
  const void* weights;
  float* out;
  float scale;
  ProductEpilogue epilogue;
};
absl::Status RunProduct(Stream& stream, const Product& product, const ProductOperands& operands);

}  // namespace bst::cuda
