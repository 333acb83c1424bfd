#include "engine/backend/cpu/cpu_linear.h"

#include <algorithm>
#include <vector>

#include "engine/backend/int8.h"
#include "engine/tensor/host_convert.h"

namespace bst {
namespace {

// Rows that one task takes: with K = 768 they fill 150 KB, so that a task's inputs and one panel of
// weights fit into the second-level cache. A multiple of 16, the rows of an AMX tile.
constexpr int kTaskRows = 48;
// Rows whose inputs are prepared (rounded or quantised) before tasks share them.
constexpr int kBlockRows = 5 * kTaskRows;
// A task may read whole pairs of AMX tiles: rows past the last one's are computed and dropped.
constexpr int kPaddedRows = kBlockRows + 16;
// Panels that one task takes when there are many rows.
constexpr int kTaskPanels = 8;
// Below so many multiplications waking another thread costs more than it saves.
constexpr int64_t kSerialProducts = 30'000;
// Inputs that one task prepares: enough that handing it out costs nothing.
constexpr int64_t kTaskInputs = 16'384;

CpuEpilogue Epilogue(LinearEpilogue epilogue) {
  switch (epilogue) {
    case LinearEpilogue::kStore:
      return CpuEpilogue::kStore;
    case LinearEpilogue::kRelu:
      return CpuEpilogue::kRelu;
    case LinearEpilogue::kGelu:
      return CpuEpilogue::kGelu;
    case LinearEpilogue::kAdd:
      return CpuEpilogue::kAdd;
  }
  BST_CHECK(false, "unknown epilogue");
}

}  // namespace

CpuLinear::CpuLinear(int in, int out, DType type, bool packs_bf16)
    : LinearWeights(in, out), type_(type) {
  switch (type) {
    case DType::kBF16:
      inputs_ = packs_bf16 ? Inputs::kBf16 : Inputs::kRounded;
      padded_in_ = RoundUpInputs(in);
      row_bytes_ = packs_bf16 ? 2 * padded_in_ : 4 * int64_t{in};
      break;
    case DType::kI8:
      inputs_ = Inputs::kInt8;
      padded_in_ = RoundUpInt8Inputs(in);
      row_bytes_ = padded_in_;
      break;
    default:
      inputs_ = Inputs::kAsTheyAre;
      padded_in_ = in;
  }
}

absl::StatusOr<std::unique_ptr<CpuLinear>> CpuLinear::Pack(CpuContext& context,
                                                           absl::Span<const TensorView> parts,
                                                           DType type) {
  const int in = static_cast<int>(parts[0].dim(1));
  int out = 0;
  for (const TensorView& part : parts) {
    BST_CHECK(part.dim(1) == in, "stacked layers must share their inputs");
    out += static_cast<int>(part.dim(0));
  }
  if (type == DType::kI8 && in > kMaxInt8Inputs) type = DType::kBF16;
  auto layer = std::unique_ptr<CpuLinear>(
      new CpuLinear(in, out, type, context.kernels().linear_bf16_takes_packed_inputs));
  const auto outputs = static_cast<size_t>(layer->num_panels()) * kPanelOutputs;
  BST_ASSIGN_OR_RETURN(
      layer->packed_,
      Buffer::Allocate(outputs * static_cast<size_t>(layer->padded_in_) * SizeOf(type)));
  if (type == DType::kI8) {
    BST_ASSIGN_OR_RETURN(layer->channels_,
                         Buffer::Allocate(outputs * (sizeof(float) + sizeof(int32_t))));
  }
  std::vector<float> row(static_cast<size_t>(in));
  int64_t output = 0;
  for (const TensorView& part : parts) {
    for (int64_t o = 0; o < part.dim(0); ++o, ++output) {
      for (int64_t k = 0; k < in; ++k)
        row[static_cast<size_t>(k)] = ElementAsFloat(part, o * in + k);
      layer->PackOutput(output, row);
    }
  }
  if (layer->inputs_ != Inputs::kAsTheyAre) {
    BST_RETURN_IF_ERROR(context.ReserveShared(
        kPaddedRows * (sizeof(QuantizedRow) + static_cast<size_t>(layer->row_bytes_))));
  }
  return layer;
}

void CpuLinear::PackOutput(int64_t output, absl::Span<const float> row) {
  const int64_t panel = output / kPanelOutputs, lane = output % kPanelOutputs;
  const int64_t base = panel * padded_in_ * kPanelOutputs;
  const auto in = static_cast<int64_t>(row.size());
  switch (type_) {
    case DType::kBF16:
      for (int64_t k = 0; k < in; ++k) {
        static_cast<BFloat16*>(
            packed_.data())[base + k / 2 * 2 * kPanelOutputs + lane * 2 + k % 2] =
            ToBFloat16(row[static_cast<size_t>(k)]);
      }
      break;
    case DType::kI8: {
      std::vector<int8_t> bytes(row.size());
      auto* scales = static_cast<float*>(channels_.data());
      scales[output] = QuantizeSymmetric(row, bytes.data());
      int32_t sum = 0;
      for (int64_t k = 0; k < in; ++k) {
        const int8_t q = bytes[static_cast<size_t>(k)];
        static_cast<int8_t*>(packed_.data())[base + k / 4 * 4 * kPanelOutputs + lane * 4 + k % 4] =
            q;
        sum += q;
      }
      reinterpret_cast<int32_t*>(scales + num_panels() * kPanelOutputs)[output] = sum;
      break;
    }
    default:
      for (int64_t k = 0; k < in; ++k) {
        static_cast<float*>(packed_.data())[base + k * kPanelOutputs + lane] =
            row[static_cast<size_t>(k)];
      }
  }
}

void CpuLinear::Run(CpuContext& context, TensorView x, const LinearOptions& options,
                    TensorView out) const {
  BST_CHECK(x.dim(1) == in_features(), "inputs ", x.dim(1), ", weights take ", in_features());
  BST_CHECK_SHAPE(out, {x.dim(0), out_features()});
  const int64_t rows = x.dim(0);
  const int64_t block = inputs_ == Inputs::kAsTheyAre ? rows : kBlockRows;
  for (int64_t first = 0; first < rows; first += block) {
    const int64_t last = std::min(rows, first + block);
    RunBlock(context, x.Rows(first, last), options, out.Rows(first, last));
  }
}

void CpuLinear::PrepareInputs(CpuContext& context, TensorView x) const {
  const int64_t rows = x.dim(0), in = in_features();
  auto* quantized = reinterpret_cast<QuantizedRow*>(context.shared());
  std::byte* prepared = context.shared() + kPaddedRows * sizeof(QuantizedRow);
  const int64_t step = std::max<int64_t>(1, kTaskInputs / in);
  context.pool().Run(static_cast<int>((rows + step - 1) / step), [&](int index, int) {
    for (int64_t r = index * step; r < std::min(rows, (index + 1) * step); ++r) {
      const float* from = x.row<float>(r);
      std::byte* to = prepared + r * row_bytes_;
      switch (inputs_) {
        case Inputs::kAsTheyAre:
          break;
        case Inputs::kRounded:
          context.kernels().round_to_bf16(from, reinterpret_cast<float*>(to), in);
          break;
        case Inputs::kBf16: {
          auto* packed = reinterpret_cast<BFloat16*>(to);
          context.kernels().pack_bf16(from, packed, in);
          std::fill(packed + in, packed + padded_in_, BFloat16{});
          break;
        }
        case Inputs::kInt8: {
          auto* bytes = reinterpret_cast<uint8_t*>(to);
          quantized[r] = context.kernels().quantize_inputs(from, static_cast<int>(in), bytes);
          std::fill(bytes + in, bytes + padded_in_, uint8_t{0});  // meets weights of zero
          break;
        }
      }
    }
  });
}

void CpuLinear::RunBlock(CpuContext& context, TensorView x, const LinearOptions& options,
                         TensorView out) const {
  const int rows = static_cast<int>(x.dim(0));
  const int64_t products = int64_t{rows} * in_features() * out_features();
  const int threads = products < kSerialProducts ? 1 : context.pool().num_threads();
  const int row_tasks = (rows + kTaskRows - 1) / kTaskRows;
  int task_panels = num_panels();
  if (threads > 1) {
    // Many rows: fixed groups. Few: about four tasks a thread, in whole groups of four panels.
    task_panels =
        row_tasks > 1
            ? kTaskPanels
            : static_cast<int>(RoundUp((num_panels() + 4 * threads - 1) / (4 * threads), 4));
  }
  const int panel_tasks = (num_panels() + task_panels - 1) / task_panels;
  if (inputs_ != Inputs::kAsTheyAre) PrepareInputs(context, x);

  LinearTask common = {};
  common.weights = packed_.data();
  common.weight_scales = static_cast<const float*>(channels_.data());
  if (type_ == DType::kI8) {
    common.weight_sums = reinterpret_cast<const int32_t*>(common.weight_scales +
                                                          int64_t{num_panels()} * kPanelOutputs);
  }
  common.in_features = in_features();
  common.out_features = out_features();
  common.out_stride = out.row_stride();
  common.scale = options.scale;
  common.epilogue = Epilogue(options.epilogue);
  const auto* quantized = reinterpret_cast<const QuantizedRow*>(context.shared());
  const std::byte* prepared = context.shared() + kPaddedRows * sizeof(QuantizedRow);

  // Consecutive tasks share their weights, which stay in the cache.
  context.pool().Run(row_tasks * panel_tasks, [&](int index, int) {
    LinearTask task = common;
    const int first_row = index % row_tasks * kTaskRows;
    task.num_rows = std::min(kTaskRows, rows - first_row);
    task.first_panel = index / row_tasks * task_panels;
    task.last_panel = std::min(num_panels(), task.first_panel + task_panels);
    task.out = out.row<float>(first_row);
    const std::byte* inputs = prepared + first_row * row_bytes_;
    switch (inputs_) {
      case Inputs::kAsTheyAre:
        task.x = x.row<float>(first_row);
        task.x_stride = x.row_stride();
        context.kernels().linear_f32(task);
        break;
      case Inputs::kRounded:
        task.x = reinterpret_cast<const float*>(inputs);
        task.x_stride = in_features();
        context.kernels().linear_bf16(task);
        break;
      case Inputs::kBf16:
        task.packed_x = reinterpret_cast<const BFloat16*>(inputs);
        context.kernels().linear_bf16(task);
        break;
      case Inputs::kInt8:
        task.quantized_x = reinterpret_cast<const uint8_t*>(inputs);
        task.quantized_rows = quantized + first_row;
        context.kernels().linear_int8(task);
        break;
    }
  });
}

}  // namespace bst
