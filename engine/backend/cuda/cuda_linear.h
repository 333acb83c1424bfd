// Linear layers: their weights, and what multiplies by them.
//
// The kernels of linear.cu define the bits and do any number of rows. In their place cuBLAS takes
// panels of a few fixed numbers of rows, as many as fit, where it gives the kernels' bits: for each
// shape of weights each algorithm that it proposes multiplies a whole panel by random weights, in
// every epilogue, and is compared with the kernels when the first weights of the shape are packed;
// among the rows are zeros, subnormal numbers, a NaN and an infinity. One that does not start is
// passed over. cuBLAS never sees another number of rows, nor outputs that are columns of a wider
// matrix, nor outputs or F32 inputs that do not begin at 256 bytes, so that nothing is left to its
// promises; the rows that remain are the kernels'. Of the algorithms that are right the fastest is
// taken, unless the kernels are faster: by measurements, which no bit hangs on. So neither does it
// matter that the search ends when its time is up.
//
// Ownership   CudaLinear owns device memory; CudaProducts outlives every call of Run.
// Threads     One.
// Errors      Pack: kResourceExhausted. That cuBLAS is missing or differs is none: Summary tells. A
//             product that was chosen and does not start sticks to the device's stream.
// Tested by   tests/engine/backend/cuda/linear_test.cc, and by it on GPUs
#pragma once

#include <chrono>
#include <cstddef>
#include <map>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "engine/backend/backend.h"
#include "engine/backend/cuda/blas.h"
#include "engine/backend/cuda/cuda_device.h"
#include "engine/backend/cuda/kernels.h"

namespace bst {

// As cuda::LinearTask has them: F32 transposed, BF16 as the checkpoint has them; padded with zeros.
class CudaLinear : public LinearWeights {
 public:
  static absl::StatusOr<std::unique_ptr<CudaLinear>> Pack(CudaDevice& device,
                                                          absl::Span<const TensorView> parts,
                                                          DType type);
  // Random numbers in place of the weights of `like`.
  static absl::StatusOr<std::unique_ptr<CudaLinear>> PackRandom(CudaDevice& device,
                                                                const CudaLinear& like);
  const Buffer& weights() const { return weights_; }
  DType type() const { return type_; }
  bool is_bf16() const { return type_ == DType::kBF16; }
  int padded_in() const { return Padded(in_features(), cuda::kLinearDepth); }
  int padded_out() const { return Padded(out_features(), cuda::kLinearColumns); }
  size_t bytes() const override { return weights_.bytes(); }

 private:
  CudaLinear(int in, int out, DType type) : LinearWeights(in, out), type_(type) {}
  static int Padded(int n, int to) { return (n + to - 1) / to * to; }
  Buffer weights_;
  DType type_;
};

class CudaProducts {
 public:
  // panel_rows: descending; empty: cuBLAS is not asked for. most_seconds: of Choose, for each of
  // them; the comparison that has begun then is the last.
  CudaProducts(CudaDevice& device, std::vector<int> panel_rows, double most_seconds);
  CudaProducts(const CudaProducts&) = delete;
  CudaProducts& operator=(const CudaProducts&) = delete;

  // Chooses for the shape of `weights`, unless it is known. Waits for the device.
  void Choose(const CudaLinear& weights);
  void Run(TensorView x, const CudaLinear& weights, const LinearOptions& options, TensorView out);

  // "cuBLAS for 5 of 6 shapes", "no cuBLAS: ...". Shapes that have been used for columns of wider
  // matrices alone do not count.
  std::string Summary() const;

 private:
  // What multiplies a panel: all segments but the last, and that one. Both are one product where
  // that is as long as the others.
  struct Panel {
    int rows = 0;
    cuda::Product* whole = nullptr;  // null: there is but one segment
    cuda::Product* last = nullptr;
    bool fuses_relu = false;
  };
  struct Choice {
    std::vector<Panel> panels;                 // descending in rows
    std::vector<cuda::ProductPtr> products;    // theirs
    bool is_whole = false, is_sliced = false;  // how outputs have come
  };
  using Shape = std::tuple<int, int, bool>;  // in, out, BF16

  struct Trial;  // what algorithms for a panel are tried on

  static Shape ShapeOf(const CudaLinear& weights);
  // A panel of so many rows, if there is one, joins those of `choice`.
  void Find(const CudaLinear& weights, int rows, Choice& choice);
  absl::StatusOr<Trial> MakeTrial(const CudaLinear& weights, int rows);
  using Clock = std::chrono::steady_clock;
  std::vector<double> Measure(const CudaLinear& weights, const Trial& trial,
                              const std::vector<cuda::ProductPtr>& products,
                              Clock::time_point start);
  bool SameBits(const CudaLinear& weights, const Trial& trial, Panel& panel);  // sets fuses_relu
  bool IsKernelFaster(const CudaLinear& weights, const Trial& trial, const Panel& panel);
  const std::byte* Inputs(const CudaLinear& weights, const cuda::Matrix& x, int rows);
  absl::Status RunPanel(const CudaLinear& weights, const Panel& panel, const LinearOptions& options,
                        const cuda::Matrix& x, const cuda::Matrix& out);
  void RunKernel(const CudaLinear& weights, const LinearOptions& options, const cuda::Matrix& x,
                 const cuda::Matrix& out, int rows);

  CudaDevice& device_;
  std::vector<int> panel_rows_;
  double most_seconds_;
  int shared_bytes_;     // of the kernels' blocks
  cuda::BlasPtr blas_;   // outlives the products
  std::string missing_;  // why blas_ is null
  std::map<Shape, Choice> chosen_;
};

}  // namespace bst
