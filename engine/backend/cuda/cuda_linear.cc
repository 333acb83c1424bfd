#include "engine/backend/cuda/cuda_linear.h"

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <limits>
#include <random>
#include <utility>

#include "absl/functional/function_ref.h"
#include "absl/strings/str_cat.h"
#include "engine/backend/cuda/call_list.h"
#include "engine/backend/cuda/cuda_weights.h"
#include "engine/base/status_macros.h"
#include "engine/tensor/host_convert.h"

namespace bst {
namespace {

// That cuBLAS is asked for, per shape; where two shapes make pairs of them, for each.
constexpr int kAlgorithms = 64;
constexpr int kAlgorithmsOfAPair = 8;
constexpr int kRuns = 5;  // of a product that may be the fastest
// Of the time for a panel, that in which products are measured; the library's code is loaded
// meanwhile too.
constexpr double kMeasuringShare = 0.125;
constexpr size_t kStagingBytes = size_t{4} << 20;  // of what products are tried on, on its way
// Of the operands that were compared: cuBLAS may go by their addresses.
constexpr uintptr_t kProductAlignment = 256;

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
  const absl::Status made = cuda::RunProduct(stream, *call.product, call.operands);
  if (!made.ok()) cuda::Fail(stream, made);
}

// Numbers in [-1.4, 1.4), without short fractions.
class RandomNumbers {
 public:
  explicit RandomNumbers(unsigned seed) : random_(seed) {}
  float Next() { return static_cast<float>(random_()) * 1.3e-9f - 1.4f; }

 private:
  std::minstd_rand random_;
};

// value(row, column) of a [rows, columns] matrix, called in this order, as `type` on the device. It
// takes a few MB of the host's memory, however large the matrix is: choosing a product may not fail
// where loading the weights did not.
absl::StatusOr<Buffer> UploadMatrix(CudaDevice& device, int64_t rows, int64_t columns, DType type,
                                    absl::FunctionRef<float(int64_t, int64_t)> value) {
  const size_t size = SizeOf(type), bytes = static_cast<size_t>(rows * columns) * size;
  BST_ASSIGN_OR_RETURN(Buffer matrix, device.Allocate(bytes));
  BST_ASSIGN_OR_RETURN(const Buffer staging,
                       device.AllocateHostReadable(std::min(bytes, kStagingBytes)));
  int64_t row = 0, column = 0;
  for (size_t done = 0; done < bytes;) {
    const size_t piece = std::min(bytes - done, staging.bytes());
    for (size_t i = 0; i < piece / size; ++i) {
      const float x = value(row, column);
      if (type == DType::kBF16) {
        static_cast<BFloat16*>(staging.data())[i] = ToBFloat16(x);
      } else {
        static_cast<float*>(staging.data())[i] = x;
      }
      if (++column < columns) continue;
      column = 0;
      ++row;
    }
    cuda::Copy(device.stream(), static_cast<std::byte*>(matrix.data()) + done, staging.data(),
               piece);
    BST_RETURN_IF_ERROR(device.Sync());
    done += piece;
  }
  return matrix;
}

bool IsAligned(const void* data) {
  return reinterpret_cast<uintptr_t>(data) % kProductAlignment == 0;
}

double SecondsSince(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
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

absl::StatusOr<std::unique_ptr<CudaLinear>> CudaLinear::PackRandom(CudaDevice& device,
                                                                   const CudaLinear& like) {
  const int in = like.in_features(), out = like.out_features();
  auto weights = std::unique_ptr<CudaLinear>(new CudaLinear(in, out, like.type_));
  const bool transposed = like.type_ == DType::kF32;
  RandomNumbers random(1234567);
  BST_ASSIGN_OR_RETURN(weights->weights_,
                       UploadMatrix(device, transposed ? in : weights->padded_out(),
                                    transposed ? weights->padded_out() : weights->padded_in(),
                                    like.type_, [&](int64_t row, int64_t column) {
                                      const bool inside = row < (transposed ? in : out) &&
                                                          column < (transposed ? out : in);
                                      return inside ? random.Next() : 0.0f;
                                    }));
  return weights;
}

CudaProducts::CudaProducts(CudaDevice& device, std::vector<int> panel_rows, double most_seconds)
    : device_(device),
      panel_rows_(std::move(panel_rows)),
      most_seconds_(most_seconds),
      shared_bytes_(cuda::PrepareLinear(device.stream())) {
  if (panel_rows_.empty()) {
    missing_ = "no cuBLAS: not asked for";
    return;
  }
  absl::StatusOr<cuda::BlasPtr> blas = cuda::OpenBlas();
  if (blas.ok()) {
    blas_ = *std::move(blas);
  } else {
    missing_ = std::string(blas.status().message());
  }
}

CudaProducts::Shape CudaProducts::ShapeOf(const CudaLinear& weights) {
  return {weights.in_features(), weights.out_features(), weights.is_bf16()};
}

void CudaProducts::Choose(const CudaLinear& weights) {
  if (blas_ == nullptr || chosen_.count(ShapeOf(weights)) > 0) return;
  Choice& choice = chosen_[ShapeOf(weights)];
  // Not by the weights themselves: those of one layer may be zeros, for which all sums are alike.
  const absl::StatusOr<std::unique_ptr<CudaLinear>> random =
      CudaLinear::PackRandom(device_, weights);
  if (!random.ok()) return;
  for (const int rows : panel_rows_) {
    const size_t rounded =
        static_cast<size_t>(rows) * static_cast<size_t>(weights.padded_in()) * sizeof(BFloat16);
    if (weights.is_bf16() && !device_.ReserveScratch(rounded).ok()) continue;
    Find(**random, rows, choice);
  }
}

struct CudaProducts::Trial {
  cuda::Matrix x() const { return {static_cast<float*>(inputs.data()), in}; }
  cuda::Matrix expected() const { return {static_cast<float*>(kernels.data()), out}; }
  cuda::Matrix got() const { return {static_cast<float*>(products.data()), out}; }
  int rows;
  int64_t in, out;
  Buffer inputs = {}, kernels = {}, products = {};
};

// The fastest algorithms that have the kernels' bits, if the kernels themselves are not faster yet.
void CudaProducts::Find(const CudaLinear& weights, int rows, Choice& choice) {
  const absl::StatusOr<Trial> trial = MakeTrial(weights, rows);
  if (!trial.ok()) return;
  const int segments = NumSegments(weights);
  const bool bf16 = weights.is_bf16();
  cuda::ProductShape shape = {.rows = rows,
                              .in = cuda::kLinearSegment,
                              .out = weights.out_features(),
                              .bf16 = bf16,
                              .x_stride = bf16 ? weights.padded_in() : weights.in_features(),
                              .weights_stride = bf16 ? weights.padded_in() : weights.padded_out(),
                              .out_stride = weights.out_features()};
  const int last_in = static_cast<int>(shape.x_stride) - (segments - 1) * cuda::kLinearSegment;
  const bool is_pair = segments > 1 && last_in != cuda::kLinearSegment;
  std::vector<cuda::ProductPtr> whole;
  if (is_pair) whole = cuda::FindProducts(*blas_, shape, kAlgorithmsOfAPair);
  shape.in = last_in;
  std::vector<cuda::ProductPtr> last =
      cuda::FindProducts(*blas_, shape, is_pair ? kAlgorithmsOfAPair : kAlgorithms);
  const Clock::time_point start = Clock::now();
  const std::vector<double> whole_micros = Measure(weights, *trial, whole, start);
  const std::vector<double> last_micros = Measure(weights, *trial, last, start);

  std::vector<std::pair<double, Panel>> panels;
  for (size_t i = 0; i < last.size(); ++i) {
    Panel panel = {.rows = rows, .last = last[i].get()};
    if (!is_pair) {
      panel.whole = segments > 1 ? panel.last : nullptr;
      panels.emplace_back(last_micros[i], panel);
    }
    for (size_t j = 0; j < whole.size(); ++j) {
      panel.whole = whole[j].get();
      panels.emplace_back((segments - 1) * whole_micros[j] + last_micros[i], panel);
    }
  }
  std::stable_sort(panels.begin(), panels.end(),
                   [](const auto& a, const auto& b) { return a.first < b.first; });
  auto right = panels.begin();
  while (right != panels.end() && !SameBits(weights, *trial, right->second))
    right = SecondsSince(start) < most_seconds_ ? right + 1 : panels.end();
  if (right == panels.end() || IsKernelFaster(weights, *trial, right->second)) return;
  const Panel& found = right->second;
  for (std::vector<cuda::ProductPtr>* products : {&whole, &last}) {
    for (cuda::ProductPtr& product : *products) {
      if (product.get() == found.whole || product.get() == found.last)
        choice.products.push_back(std::move(product));
    }
  }
  choice.panels.push_back(found);
}

// A panel whose rows are 61 different ones, again and again: so a row's place in the panel may not
// show either. Among them is what only some sums are right for: zeros, subnormal numbers, a NaN, an
// infinity.
absl::StatusOr<CudaProducts::Trial> CudaProducts::MakeTrial(const CudaLinear& weights, int rows) {
  constexpr int kDifferent = 61;
  const int64_t in = weights.in_features(), out = weights.out_features();
  const auto bytes = [&](int64_t columns) {
    return static_cast<size_t>(rows * columns) * sizeof(float);
  };
  RandomNumbers random(1);
  const auto number = [&](int64_t row, int64_t k) {
    const float x = random.Next();
    if (row == 1) return 0.0f;
    if (row == 3) return x * 1e-39f;
    if (row == 5 && k == in / 2) return std::numeric_limits<float>::quiet_NaN();
    if (row == 7 && k == in / 3) return std::numeric_limits<float>::infinity();
    return x;
  };
  std::vector<int32_t> indices(static_cast<size_t>(rows));
  for (size_t i = 0; i < indices.size(); ++i) indices[i] = static_cast<int32_t>(i % kDifferent);
  BST_ASSIGN_OR_RETURN(const Buffer table,
                       UploadMatrix(device_, kDifferent, in, DType::kF32, number));
  Trial trial = {.rows = rows, .in = in, .out = out};
  BST_ASSIGN_OR_RETURN(trial.inputs, device_.Allocate(bytes(in)));
  BST_ASSIGN_OR_RETURN(trial.kernels, device_.Allocate(bytes(out)));
  BST_ASSIGN_OR_RETURN(trial.products, device_.Allocate(bytes(out)));
  cuda::Gather(device_.stream(), cuda::Element::kF32,
               {.table = table.data(),
                .table_stride = in,
                .indices = device_.Stage(absl::MakeConstSpan(indices)),
                .out = trial.x(),
                .rows = device_.Count(rows),
                .columns = static_cast<int>(in)});
  BST_RETURN_IF_ERROR(device_.Sync());
  return trial;
}

// What each takes for one segment, in microseconds; infinity where it does not start, or where
// those before it took all the time there is.
std::vector<double> CudaProducts::Measure(const CudaLinear& weights, const Trial& trial,
                                          const std::vector<cuda::ProductPtr>& products,
                                          Clock::time_point start) {
  constexpr double kNever = std::numeric_limits<double>::infinity();
  std::vector<double> micros(products.size(), kNever);
  if (products.size() < 2) return micros;
  const void* const x = Inputs(weights, trial.x(), trial.rows);
  const cuda::ProductOperands operands = {.x = x,
                                          .weights = weights.weights().data(),
                                          .out = trial.got().data,
                                          .scale = 1.0f,
                                          .epilogue = cuda::ProductEpilogue::kStore};
  double best = kNever;
  const double seconds = kMeasuringShare * most_seconds_;
  for (size_t i = 0; i < products.size() && SecondsSince(start) < seconds; ++i) {
    bool starts = true;
    const auto run = [&] {
      return cuda::Measure(device_.stream(), [&] {
        starts = cuda::RunProduct(device_.stream(), *products[i], operands).ok();
      });
    };
    run();  // brings its code to the device
    if (!starts) continue;
    std::vector<double> runs = {run()};
    while (runs.front() < 1.5 * best && runs.size() < kRuns) runs.push_back(run());
    std::nth_element(runs.begin(), runs.begin() + static_cast<long>(runs.size() / 2), runs.end());
    micros[i] = runs[runs.size() / 2];
    best = std::min(best, micros[i]);
  }
  return micros;
}

bool CudaProducts::IsKernelFaster(const CudaLinear& weights, const Trial& trial,
                                  const Panel& panel) {
  const double panel_micros = cuda::Measure(device_.stream(), [&] {
    (void)RunPanel(weights, panel, {}, trial.x(), trial.got());  // it has just run
  });
  const double kernel_micros = cuda::Measure(
      device_.stream(), [&] { RunKernel(weights, {}, trial.x(), trial.expected(), panel.rows); });
  return kernel_micros < panel_micros;
}

bool CudaProducts::SameBits(const CudaLinear& weights, const Trial& trial, Panel& panel) {
  const auto is_same = [&](const LinearOptions& options) {
    RunKernel(weights, options, trial.x(), trial.expected(), panel.rows);
    const absl::Status run = RunPanel(weights, panel, options, trial.x(), trial.got());
    std::vector<int32_t> differing(static_cast<size_t>(panel.rows));
    const int32_t* const counts = device_.Stage(absl::MakeConstSpan(differing));
    cuda::CountDifferences(device_.stream(), {.a = trial.expected(),
                                              .b = trial.got(),
                                              .counts = const_cast<int32_t*>(counts),
                                              .rows = panel.rows,
                                              .columns = weights.out_features()});
    device_.Download(counts, differing.data(), differing.size() * sizeof(int32_t));
    return device_.Sync().ok() && run.ok() &&
           std::all_of(differing.begin(), differing.end(), [](int32_t n) { return n == 0; });
  };
  const LinearOptions relu = {.epilogue = LinearEpilogue::kRelu};
  if (!is_same({.epilogue = LinearEpilogue::kStore}) ||
      !is_same({.epilogue = LinearEpilogue::kAdd}) ||
      (panel.whole == nullptr && !is_same({.scale = 0.37f})))
    return false;
  // cuBLAS's own may make a NaN 0, which the kernels' lets through.
  panel.fuses_relu = panel.whole == nullptr;
  if (panel.fuses_relu && is_same(relu)) return true;
  panel.fuses_relu = false;
  return is_same(relu);
}

// What products read of `x`.
const std::byte* CudaProducts::Inputs(const CudaLinear& weights, const cuda::Matrix& x, int rows) {
  if (!weights.is_bf16()) return reinterpret_cast<const std::byte*>(x.data);
  cuda::RoundRows(device_.stream(), {.x = x,
                                     .out = device_.scratch(),
                                     .rows = rows,
                                     .columns = weights.in_features(),
                                     .padded_columns = weights.padded_in()});
  return device_.scratch();
}

absl::Status CudaProducts::RunPanel(const CudaLinear& weights, const Panel& panel,
                                    const LinearOptions& options, const cuda::Matrix& x,
                                    const cuda::Matrix& out) {
  const bool bf16 = weights.is_bf16();
  const size_t size = bf16 ? sizeof(BFloat16) : sizeof(float);
  const std::byte* const inputs = Inputs(weights, x, panel.rows);
  const auto* matrix = static_cast<const std::byte*>(weights.weights().data());
  const int segments = NumSegments(weights);
  for (int s = 0; s < segments; ++s) {
    const bool is_last = s == segments - 1;
    const auto first = static_cast<size_t>(s) * cuda::kLinearSegment;
    const size_t weights_first = bf16 ? first : first * static_cast<size_t>(weights.padded_out());
    cuda::ProductEpilogue epilogue = cuda::ProductEpilogue::kStore;
    if (s > 0 || options.epilogue == LinearEpilogue::kAdd) epilogue = cuda::ProductEpilogue::kAdd;
    if (options.epilogue == LinearEpilogue::kRelu && panel.fuses_relu)
      epilogue = cuda::ProductEpilogue::kRelu;
    const ProductCall call = {
        is_last ? panel.last : panel.whole,
        {.x = inputs + first * size,
         .weights = matrix + weights_first * size,
         .out = out.data,
         .scale = options.epilogue == LinearEpilogue::kStore ? options.scale : 1.0f,
         .epilogue = epilogue}};
    if (cuda::Recording(device_.stream()) != nullptr) {
      cuda::CallOrKeep<MakeProduct>(device_.stream(), call);
    } else {
      BST_RETURN_IF_ERROR(cuda::RunProduct(device_.stream(), *call.product, call.operands));
    }
  }
  const bool is_relu = options.epilogue == LinearEpilogue::kRelu && !panel.fuses_relu;
  if (is_relu || options.epilogue == LinearEpilogue::kGelu) {
    cuda::Activate(device_.stream(), {.x = out,
                                      .activation = ToActivation(options.epilogue),
                                      .rows = panel.rows,
                                      .columns = weights.out_features()});
  }
  return absl::OkStatus();
}

void CudaProducts::RunKernel(const CudaLinear& weights, const LinearOptions& options,
                             const cuda::Matrix& x, const cuda::Matrix& out, int rows) {
  cuda::Linear(device_.stream(), ToElement(weights.type()),
               {.x = x,
                .weights = weights.weights().data(),
                .out = out,
                .rows = device_.Count(rows),
                .in = weights.in_features(),
                .out_features = weights.out_features(),
                .padded_in = weights.padded_in(),
                .padded_out = weights.padded_out(),
                .activation = ToActivation(options.epilogue),
                .scale = options.epilogue == LinearEpilogue::kStore ? options.scale : 1.0f,
                .add = options.epilogue == LinearEpilogue::kAdd,
                .shared_bytes = shared_bytes_});
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
  const bool is_whole = out.row_stride() == out.dim(1);
  if (chosen != chosen_.end())
    (is_whole ? chosen->second.is_whole : chosen->second.is_sliced) = true;
  // What was compared is what is used: rows that follow one another, a scale of one segment.
  const bool is_compared = chosen != chosen_.end() && is_whole &&
                           (weights.is_bf16() || x.row_stride() == x.dim(1)) &&
                           (options.scale == 1.0f || NumSegments(weights) == 1);
  if (is_compared) {
    // BF16 inputs are read from their rounded copy.
    const auto is_aligned = [&] {
      return IsAligned(from(out).data) && (weights.is_bf16() || IsAligned(from(x).data));
    };
    for (const Panel& panel : chosen->second.panels) {
      for (; rows - done >= panel.rows && is_aligned(); done += panel.rows) {
        const absl::Status run = RunPanel(weights, panel, options, from(x), from(out));
        if (!run.ok()) cuda::Fail(device_.stream(), run);
      }
    }
  }
  if (done < rows) RunKernel(weights, options, from(x), from(out), rows - done);
}

std::string CudaProducts::Summary() const {
  if (blas_ == nullptr) return missing_;
  int used = 0, all = 0;
  for (const auto& [shape, choice] : chosen_) {
    if (choice.is_sliced && !choice.is_whole) continue;
    ++all;
    used += !choice.panels.empty();
  }
  return absl::StrCat("cuBLAS for ", used, " of ", all, " shapes");
}

}  // namespace bst
