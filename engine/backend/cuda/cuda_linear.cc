#include "engine/backend/cuda/cuda_linear.h"

#include <algorithm>
#include <random>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/backend/cuda/call_list.h"
#include "engine/backend/cuda/cuda_weights.h"
#include "engine/base/status_macros.h"
#include "engine/tensor/host_convert.h"

namespace bst {
namespace {

constexpr int kAlgorithms = 8;  // that cuBLAS is asked for, per shape

cuda::Activation ToActivation(LinearEpilogue epilogue) {
  if (epilogue == LinearEpilogue::kRelu) return cuda::Activation::kRelu;
  if (epilogue == LinearEpilogue::kGelu) return cuda::Activation::kGelu;
  return cuda::Activation::kNone;
}

struct ProductCall {
  const cuda::Product* product;
  cuda::ProductOperands operands;
};
void MakeProduct(cuda::Stream& stream, const ProductCall& call) {
  cuda::RunProduct(stream, *call.product, call.operands);
}

int NumSegments(const CudaLinear& weights) {
  return (weights.in_features() + cuda::kLinearSegment - 1) / cuda::kLinearSegment;
}

}  // namespace

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

CudaProducts::CudaProducts(CudaDevice& device, std::vector<int> panel_rows)
    : device_(device), panel_rows_(std::move(panel_rows)) {
  if (panel_rows_.empty()) {
    missing_ = "no cuBLAS: not asked for";
    return;
  }
  absl::StatusOr<cuda::Blas*> blas = cuda::OpenBlas();
  if (blas.ok()) {
    blas_ = *blas;
  } else {
    missing_ = std::string(blas.status().message());
  }
}

CudaProducts::~CudaProducts() {
  for (const auto& [shape, panels] : chosen_) {
    for (const Panel& panel : panels) {
      if (panel.whole != nullptr) cuda::DestroyProduct(panel.whole);
      cuda::DestroyProduct(panel.last);
    }
  }
  if (blas_ != nullptr) cuda::CloseBlas(blas_);
}

CudaProducts::Shape CudaProducts::ShapeOf(const CudaLinear& weights) {
  return {weights.in_features(), weights.out_features(), weights.is_bf16()};
}

void CudaProducts::Choose(const CudaLinear& weights) {
  if (blas_ == nullptr || chosen_.count(ShapeOf(weights)) > 0) return;
  std::vector<Panel>& panels = chosen_[ShapeOf(weights)];
  for (const int rows : panel_rows_) {
    const size_t rounded =
        static_cast<size_t>(rows) * static_cast<size_t>(weights.padded_in()) * sizeof(BFloat16);
    if (weights.is_bf16() && !device_.ReserveScratch(rounded).ok()) continue;
    Panel panel = {.rows = rows};
    if (Find(weights, panel)) panels.push_back(panel);
  }
}

// The first pair of algorithms that has the kernels' bits.
bool CudaProducts::Find(const CudaLinear& weights, Panel& panel) {
  const int segments = NumSegments(weights);
  const bool bf16 = weights.is_bf16();
  cuda::ProductShape shape = {.rows = panel.rows,
                              .in = cuda::kLinearSegment,
                              .out = weights.out_features(),
                              .bf16 = bf16,
                              .x_stride = bf16 ? weights.padded_in() : weights.in_features(),
                              .weights_stride = bf16 ? weights.padded_in() : weights.padded_out(),
                              .out_stride = weights.out_features()};
  std::vector<cuda::Product*> whole = {nullptr};
  if (segments > 1) whole = cuda::FindProducts(*blas_, shape, kAlgorithms);
  shape.in = static_cast<int>(shape.x_stride) - (segments - 1) * cuda::kLinearSegment;
  std::vector<cuda::Product*> last = cuda::FindProducts(*blas_, shape, kAlgorithms);
  bool found = false;
  for (cuda::Product*& first : whole) {
    for (cuda::Product*& second : last) {
      if (found) break;
      panel.whole = first;
      panel.last = second;
      found = SameBits(weights, panel);
      if (found) first = second = nullptr;
    }
  }
  for (const std::vector<cuda::Product*>& others : {whole, last}) {
    for (cuda::Product* other : others) {
      if (other != nullptr) cuda::DestroyProduct(other);
    }
  }
  return found;
}

// A panel whose rows are 61 different ones, again and again: so a row's place in the panel may not
// show either.
bool CudaProducts::SameBits(const CudaLinear& weights, const Panel& panel) {
  constexpr int kDifferent = 61;
  const int64_t in = weights.in_features(), out = weights.out_features();
  const auto bytes = [&](int64_t columns) {
    return static_cast<size_t>(panel.rows * columns) * sizeof(float);
  };
  std::vector<float> numbers(static_cast<size_t>(kDifferent * in));
  std::minstd_rand random(1);
  for (float& x : numbers) x = static_cast<float>(random()) * 1.3e-9f - 1.4f;  // no short fractions
  std::vector<int32_t> indices(static_cast<size_t>(panel.rows));
  for (size_t i = 0; i < indices.size(); ++i) indices[i] = static_cast<int32_t>(i % kDifferent);
  absl::StatusOr<Buffer> table = device_.Upload(numbers.data(), numbers.size() * sizeof(float));
  absl::StatusOr<Buffer> x = device_.Allocate(bytes(in));
  absl::StatusOr<Buffer> expected = device_.Allocate(bytes(out));
  absl::StatusOr<Buffer> got = device_.Allocate(bytes(out));
  if (!table.ok() || !x.ok() || !expected.ok() || !got.ok()) return false;
  const auto matrix = [](const Buffer& buffer, int64_t columns) {
    return cuda::Matrix{static_cast<float*>(buffer.data()), columns};
  };
  cuda::Gather(device_.stream(), /*bf16=*/false,
               {.table = table->data(),
                .table_stride = in,
                .indices = device_.Stage(absl::MakeConstSpan(indices)),
                .out = matrix(*x, in),
                .rows = panel.rows,
                .columns = static_cast<int>(in)});
  std::vector<LinearOptions> all = {{.epilogue = LinearEpilogue::kStore},
                                    {.epilogue = LinearEpilogue::kAdd},
                                    {.epilogue = LinearEpilogue::kRelu}};
  if (panel.whole == nullptr) all.push_back({.scale = 0.37f});
  for (const LinearOptions& options : all) {
    RunKernel(weights, options, matrix(*x, in), matrix(*expected, out), panel.rows);
    RunPanel(weights, panel, options, matrix(*x, in), matrix(*got, out));
    std::vector<int32_t> differing(static_cast<size_t>(panel.rows));
    const int32_t* const counts = device_.Stage(absl::MakeConstSpan(differing));
    cuda::CountDifferences(device_.stream(), {.a = matrix(*expected, out),
                                              .b = matrix(*got, out),
                                              .counts = const_cast<int32_t*>(counts),
                                              .rows = panel.rows,
                                              .columns = static_cast<int>(out)});
    device_.Download(counts, differing.data(), differing.size() * sizeof(int32_t));
    if (!device_.Sync().ok()) return false;
    if (std::any_of(differing.begin(), differing.end(), [](int32_t n) { return n != 0; }))
      return false;
  }
  return true;
}

void CudaProducts::RunPanel(const CudaLinear& weights, const Panel& panel,
                            const LinearOptions& options, const cuda::Matrix& x,
                            const cuda::Matrix& out) {
  const bool bf16 = weights.is_bf16();
  if (bf16) {
    cuda::RoundRows(device_.stream(), {.x = x,
                                       .out = device_.scratch(),
                                       .rows = panel.rows,
                                       .columns = weights.in_features(),
                                       .padded_columns = weights.padded_in()});
  }
  const size_t size = bf16 ? sizeof(BFloat16) : sizeof(float);
  const auto* inputs = bf16 ? device_.scratch() : reinterpret_cast<const std::byte*>(x.data);
  const auto* matrix = static_cast<const std::byte*>(weights.weights().data());
  const int segments = NumSegments(weights);
  for (int s = 0; s < segments; ++s) {
    const bool is_last = s == segments - 1;
    const auto first = static_cast<size_t>(s) * cuda::kLinearSegment;
    const size_t weights_first = bf16 ? first : first * static_cast<size_t>(weights.padded_out());
    cuda::ProductEpilogue epilogue = cuda::ProductEpilogue::kStore;
    if (s > 0 || options.epilogue == LinearEpilogue::kAdd) epilogue = cuda::ProductEpilogue::kAdd;
    if (segments == 1 && options.epilogue == LinearEpilogue::kRelu)
      epilogue = cuda::ProductEpilogue::kRelu;
    cuda::CallOrKeep<MakeProduct>(
        device_.stream(),
        ProductCall{is_last ? panel.last : panel.whole,
                    {.x = inputs + first * size,
                     .weights = matrix + weights_first * size,
                     .out = out.data,
                     .scale = options.epilogue == LinearEpilogue::kStore ? options.scale : 1.0f,
                     .epilogue = epilogue}});
  }
  const bool is_relu = options.epilogue == LinearEpilogue::kRelu && segments > 1;
  if (is_relu || options.epilogue == LinearEpilogue::kGelu) {
    cuda::Activate(device_.stream(), {.x = out,
                                      .activation = ToActivation(options.epilogue),
                                      .rows = panel.rows,
                                      .columns = weights.out_features()});
  }
}

void CudaProducts::RunKernel(const CudaLinear& weights, const LinearOptions& options,
                             const cuda::Matrix& x, const cuda::Matrix& out, int rows) {
  cuda::Linear(device_.stream(), weights.is_bf16(),
               {.x = x,
                .weights = weights.weights().data(),
                .out = out,
                .rows = rows,
                .in = weights.in_features(),
                .out_features = weights.out_features(),
                .padded_in = weights.padded_in(),
                .padded_out = weights.padded_out(),
                .activation = ToActivation(options.epilogue),
                .scale = options.epilogue == LinearEpilogue::kStore ? options.scale : 1.0f,
                .add = options.epilogue == LinearEpilogue::kAdd});
}

void CudaProducts::Run(TensorView x, const CudaLinear& weights, const LinearOptions& options,
                       TensorView out) {
  BST_CHECK(x.dim(1) == weights.in_features(), "inputs ", x.dim(1), ", weights take ",
            weights.in_features());
  BST_CHECK_SHAPE(out, {x.dim(0), weights.out_features()});
  const auto rows = static_cast<int>(x.dim(0));
  int done = 0;
  const auto from = [&](const TensorView& view) {
    return cuda::Matrix{view.row<float>(done), view.row_stride()};
  };
  const auto chosen = chosen_.find(ShapeOf(weights));
  // What was compared is what is used: rows that follow one another, a scale of one segment.
  const bool is_compared = chosen != chosen_.end() && out.row_stride() == out.dim(1) &&
                           (weights.is_bf16() || x.row_stride() == x.dim(1)) &&
                           (options.scale == 1.0f || NumSegments(weights) == 1);
  if (is_compared) {
    for (const Panel& panel : chosen->second) {
      for (; rows - done >= panel.rows; done += panel.rows)
        RunPanel(weights, panel, options, from(x), from(out));
    }
  }
  if (done < rows) RunKernel(weights, options, from(x), from(out), rows - done);
}

std::string CudaProducts::Summary() const {
  if (blas_ == nullptr) return missing_;
  const auto used = std::count_if(chosen_.begin(), chosen_.end(),
                                  [](const auto& entry) { return !entry.second.empty(); });
  return absl::StrCat("cuBLAS for ", used, " of ", chosen_.size(), " shapes");
}

}  // namespace bst
