#include "engine/backend/cpu/cpu_linear.h"

#include <algorithm>

#include "engine/tensor/host_convert.h"

namespace bst {
namespace {

// Rows that one task takes: with K = 768 they fill 150 KB, so that a task's inputs and one panel of
// weights fit into the second-level cache. A multiple of 16, the rows of an AMX tile.
constexpr int kTaskRows = 48;
// Panels that one task takes when there are many rows: rounding the inputs to BF16 is then 1 part
// in 256 of the work.
constexpr int kTaskPanels = 8;
// Below so many multiplications waking another thread costs more than it saves.
constexpr int64_t kSerialProducts = 30'000;

}  // namespace

absl::StatusOr<std::unique_ptr<CpuLinear>> CpuLinear::Pack(CpuContext& context,
                                                           absl::Span<const TensorView> parts,
                                                           DType type) {
  const int in = static_cast<int>(parts[0].dim(1));
  int out = 0;
  for (const TensorView& part : parts) {
    BST_CHECK(part.dim(1) == in, "stacked layers must share their inputs");
    out += static_cast<int>(part.dim(0));
  }
  auto layer = std::unique_ptr<CpuLinear>(new CpuLinear(in, out, type));
  const int64_t padded_in = type == DType::kBF16 ? RoundUpInputs(in) : in;
  BST_ASSIGN_OR_RETURN(layer->packed_, Buffer::Allocate(static_cast<size_t>(layer->num_panels()) *
                                                        static_cast<size_t>(padded_in) *
                                                        kPanelOutputs * SizeOf(type)));
  int64_t output = 0;
  for (const TensorView& part : parts) {
    for (int64_t o = 0; o < part.dim(0); ++o, ++output) {
      const int64_t panel = output / kPanelOutputs, lane = output % kPanelOutputs;
      for (int64_t k = 0; k < in; ++k) {
        const float w = ElementAsFloat(part, o * in + k);
        if (type == DType::kBF16) {
          const int64_t pair = (panel * padded_in + k / 2 * 2) * kPanelOutputs + lane * 2 + k % 2;
          static_cast<BFloat16*>(layer->packed_.data())[pair] = ToBFloat16(w);
        } else {
          static_cast<float*>(layer->packed_.data())[(panel * in + k) * kPanelOutputs + lane] = w;
        }
      }
    }
  }
  if (type == DType::kBF16) {
    // Float32 copies of a task's inputs, or BF16 ones with whole tiles of rows (two tiles are read
    // at once).
    const auto rounded = static_cast<size_t>(kTaskRows * int64_t{in}) * sizeof(float);
    const auto tiled = static_cast<size_t>(RoundUp(kTaskRows, 32) * padded_in) * sizeof(BFloat16);
    BST_RETURN_IF_ERROR(context.ReserveScratch(std::max(rounded, tiled)));
  }
  return layer;
}

void CpuLinear::Run(CpuContext& context, TensorView x, const LinearOptions& options,
                    TensorView out) const {
  BST_CHECK(x.dim(1) == in_features(), "inputs ", x.dim(1), ", weights take ", in_features());
  BST_CHECK_SHAPE(out, {x.dim(0), out_features()});
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

  LinearTask common = {};
  common.weights = packed_.data();
  common.in_features = in_features();
  common.out_features = out_features();
  common.out_stride = out.row_stride();
  common.scale = options.scale;
  switch (options.epilogue) {
    case LinearEpilogue::kStore:
      common.epilogue = CpuEpilogue::kStore;
      break;
    case LinearEpilogue::kRelu:
      common.epilogue = CpuEpilogue::kRelu;
      break;
    case LinearEpilogue::kGelu:
      common.epilogue = CpuEpilogue::kGelu;
      break;
    case LinearEpilogue::kAdd:
      common.epilogue = CpuEpilogue::kAdd;
      break;
  }

  // Consecutive tasks share their weights, which stay in the cache.
  context.pool().Run(row_tasks * panel_tasks, [&](int index, int thread) {
    LinearTask task = common;
    const int first_row = index % row_tasks * kTaskRows;
    task.num_rows = std::min(kTaskRows, rows - first_row);
    task.first_panel = index / row_tasks * task_panels;
    task.last_panel = std::min(num_panels(), task.first_panel + task_panels);
    task.out = out.row<float>(first_row);
    if (type_ == DType::kF32) {
      task.x = x.row<float>(first_row);
      task.x_stride = x.row_stride();
      context.kernels().linear_f32(task);
      return;
    }
    if (context.kernels().linear_bf16_takes_packed_inputs) {
      const int64_t padded_in = RoundUpInputs(in_features());
      auto* packed = reinterpret_cast<BFloat16*>(context.scratch(thread));
      const int64_t padded_rows = RoundUp(task.num_rows, 32);
      for (int64_t r = 0; r < padded_rows; ++r) {
        BFloat16* to = packed + r * padded_in;
        int64_t k = 0;
        if (r < task.num_rows) {
          const float* from = x.row<float>(first_row + r);
          for (; k < in_features(); ++k) to[k] = ToBFloat16(from[k]);
        }
        for (; k < padded_in; ++k) to[k] = BFloat16{};
      }
      task.packed_x = packed;
    } else {
      float* rounded = context.scratch(thread);
      for (int r = 0; r < task.num_rows; ++r) {
        context.kernels().round_to_bf16(x.row<float>(first_row + r),
                                        rounded + int64_t{r} * in_features(), in_features());
      }
      task.x = rounded;
      task.x_stride = in_features();
    }
    context.kernels().linear_bf16(task);
  });
}

}  // namespace bst
