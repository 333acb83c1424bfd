#include "engine/backend/cpu/cpu_linear.h"

#include <algorithm>
#include <vector>

#include "engine/backend/int8.h"
#include "engine/tensor/host_convert.h"

namespace bst {
namespace {

// Rows that one task takes of those that threads share: with K = 768 they fill 150 KB, so that a
// task's inputs and one panel of weights fit into the second-level cache.
constexpr int kTaskRows = 48;
// Rows whose inputs are prepared (rounded or quantised) before tasks share them.
constexpr int kBlockRows = 5 * kTaskRows;
// Rows of a task that takes all of a layer's outputs, or of two feed-forward layers': as many as
// the second-level cache holds. On AMX tiles (kTileTaskRows) 1.5 MB at K = 3072 in BF16: products
// are fast there, so what binds is how often memory brings the weights. On dot products 740 KB with
// both layers' inputs. In whole tiles of rows.
constexpr int kTileUnit = 2 * kTileRows;
constexpr int kDotTaskRows = 96, kDotUnit = 12;
// Of INT8 feed-forward layers on dot products, whose hidden numbers are float32 until a token's
// largest is known. On tiles those of 256 rows leave the second-level cache, which costs less than
// to read the weights twice as often.
constexpr int kDotHiddenRows = 48;
static_assert(kTileTaskRows % kTileUnit == 0 && kDotTaskRows % kDotUnit == 0 &&
              kDotHiddenRows % kDotUnit == 0);
// Panels that one task takes when there are many rows.
constexpr int kTaskPanels = 8;
// What RunParts leaves of a thread's scratch, for each row: a head's key and value of 128 numbers.
constexpr int64_t kPartScratchBytes = 2 * 128 * sizeof(float);
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

int64_t Quotient(int64_t n, int64_t of) { return (n + of - 1) / of; }  // rounded up

// run(first, n, memory) of tasks that take rows [first, first + n) each, with their thread's
// scratch.
template <typename Run>
void ForEachRowTask(CpuContext& context, int64_t rows, int64_t task_rows, const Run& run) {
  context.pool().Run(static_cast<int>(Quotient(rows, task_rows)), [&](int index, int thread) {
    const int64_t first = index * task_rows;
    run(first, std::min(task_rows, rows - first),
        reinterpret_cast<std::byte*>(context.scratch(thread)));
  });
}

}  // namespace

CpuLinear::CpuLinear(int in, int out, DType type, const CpuKernels& kernels)
    : LinearWeights(in, out), type_(type) {
  switch (type) {
    case DType::kBF16:
      inputs_ = kernels.linear_bf16_takes_packed_inputs ? Inputs::kBf16 : Inputs::kRounded;
      padded_in_ = RoundUpInputs(in);
      row_bytes_ = inputs_ == Inputs::kBf16 ? 2 * padded_in_ : 4 * int64_t{in};
      in_tiles_ = kernels.linear_takes_tiles;
      break;
    case DType::kI8:
      inputs_ = Inputs::kInt8;
      padded_in_ = RoundUpInt8Inputs(in);
      row_bytes_ = padded_in_;
      in_tiles_ = kernels.linear_takes_tiles;
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
  auto layer = std::unique_ptr<CpuLinear>(new CpuLinear(in, out, type, context.kernels()));
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
    BST_RETURN_IF_ERROR(
        context.ReserveShared(PreparedBytes(layer->block_rows(), layer->row_bytes_)));
  }
  if (layer->takes_packed_inputs()) {
    // For RunFeedForward, which needs more than RunNormed: what the one layer and the other
    // prepare, each no more than the larger of them needs for both; hidden rows in float32, and a
    // row of normalised inputs. Which layers are such a pair is not known yet: at K = 3072 that is
    // 5 MB of a thread on tiles and 1.2 MB otherwise, once for all layers.
    const int64_t most = layer->most_task_rows();
    const int64_t float_rows = 1 + (type == DType::kI8 ? layer->most_hidden_rows() : 0);
    BST_RETURN_IF_ERROR(
        context.ReserveScratch(2 * PreparedBytes(most, layer->row_bytes_) +
                               static_cast<size_t>(float_rows * in) * sizeof(float)));
    BST_RETURN_IF_ERROR(context.ReserveScratch(layer->NormedBytes(most) +
                                               static_cast<size_t>(most * kPartScratchBytes)));
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
  const int64_t task_rows = RowsApart(rows, context.pool().num_threads(), most_task_rows());
  if (task_rows > 0) return RunApart(context, x, options, out, task_rows);
  const int64_t block = inputs_ == Inputs::kAsTheyAre ? rows : block_rows();
  for (int64_t first = 0; first < rows; first += block) {
    const int64_t last = std::min(rows, first + block);
    RunTogether(context, x.Rows(first, last), options, out.Rows(first, last));
  }
}

int64_t CpuLinear::block_rows() const { return in_tiles_ ? kTileTaskRows : kBlockRows; }

int64_t CpuLinear::most_task_rows() const { return in_tiles_ ? kTileTaskRows : kDotTaskRows; }

int64_t CpuLinear::most_hidden_rows() const { return in_tiles_ ? kTileTaskRows : kDotHiddenRows; }

int64_t CpuLinear::RowsApart(int64_t rows, int64_t threads, int64_t most) const {
  if (!takes_packed_inputs() || rows <= block_rows()) return 0;
  // As many tasks as threads, or a multiple of that; not of few rows, or weights would be read too
  // often.
  const int64_t rounds = Quotient(rows, threads * most);
  const int64_t level = RoundUp(Quotient(rows, rounds * threads), in_tiles_ ? kTileUnit : kDotUnit);
  const int64_t task_rows = std::clamp(level, most / 2, most);
  return 2 * Quotient(rows, task_rows) > threads ? task_rows : 0;
}

size_t CpuLinear::PreparedBytes(int64_t rows, int64_t row_bytes) {
  return static_cast<size_t>(RoundUp(rows * int64_t{sizeof(QuantizedRow)}, kLineBytes) +
                             RoundUp(rows, kTileRows) * row_bytes);
}

CpuLinear::Prepared CpuLinear::PreparedIn(void* memory, int64_t rows) {
  const int64_t quantized = RoundUp(rows * int64_t{sizeof(QuantizedRow)}, kLineBytes);
  return {static_cast<QuantizedRow*>(memory), static_cast<std::byte*>(memory) + quantized};
}

void CpuLinear::Prepare(const CpuKernels& kernels, const float* inputs, const Prepared& prepared,
                        int64_t row) const {
  const int64_t in = in_features();
  std::byte* out = prepared.rows + row * row_bytes_;
  int64_t line_stride = kLineBytes;
  if (in_tiles_) {
    out = prepared.rows + row / kTileRows * kTileRows * row_bytes_ + row % kTileRows * kLineBytes;
    line_stride = kTileRows * kLineBytes;
  }
  // Padding ends the line that holds the last input, or fills it.
  const auto pad = [&](int64_t bytes) {
    const int64_t size = bytes % kLineBytes;
    if (size == 0) return;
    std::byte* const line = out + bytes / kLineBytes * line_stride;
    std::fill(line + size, line + kLineBytes, std::byte{0});
  };
  switch (inputs_) {
    case Inputs::kAsTheyAre:
      break;
    case Inputs::kRounded:
      kernels.round_to_bf16(inputs, reinterpret_cast<float*>(out), in);
      break;
    case Inputs::kBf16:
      kernels.pack_bf16(inputs, reinterpret_cast<BFloat16*>(out), in, line_stride);
      pad(in * int64_t{sizeof(BFloat16)});
      break;
    case Inputs::kInt8:
      prepared.quantized[row] = kernels.quantize_inputs(
          inputs, static_cast<int>(in), reinterpret_cast<uint8_t*>(out), line_stride);
      pad(in);  // meets weights of zero
      break;
  }
}

void CpuLinear::PrepareNormed(const CpuKernels& kernels, TensorView x, int64_t first, int64_t n,
                              TensorView gain, float epsilon, float* normed,
                              const Prepared& prepared) const {
  for (int64_t r = 0; r < n; ++r) {
    kernels.rms_norm(x.row<float>(first + r), gain.as<float>(), epsilon, in_features(), normed);
    Prepare(kernels, normed, prepared, r);
  }
}

LinearTask CpuLinear::TaskOf(const LinearOptions& options) const {
  LinearTask task = {};
  task.weights = packed_.data();
  task.weight_scales = static_cast<const float*>(channels_.data());
  if (type_ == DType::kI8) {
    task.weight_sums = reinterpret_cast<const int32_t*>(task.weight_scales +
                                                        int64_t{num_panels()} * kPanelOutputs);
  }
  task.in_features = in_features();
  task.out_features = out_features();
  task.last_panel = num_panels();
  task.scale = options.scale;
  task.epilogue = Epilogue(options.epilogue);
  return task;
}

void CpuLinear::RunTask(const CpuKernels& kernels, LinearTask task, TensorView x,
                        const Prepared& prepared) const {
  BST_CHECK(!in_tiles_ || task.num_rows <= kTileTaskRows, task.num_rows, " rows for tiles");
  switch (inputs_) {
    case Inputs::kAsTheyAre:
      task.x = x.as<float>();
      task.x_stride = x.row_stride();
      kernels.linear_f32(task);
      break;
    case Inputs::kRounded:
      task.x = reinterpret_cast<const float*>(prepared.rows);
      task.x_stride = in_features();
      kernels.linear_bf16(task);
      break;
    case Inputs::kBf16:
      task.packed_x = reinterpret_cast<const BFloat16*>(prepared.rows);
      kernels.linear_bf16(task);
      break;
    case Inputs::kInt8:
      task.quantized_x = reinterpret_cast<const uint8_t*>(prepared.rows);
      task.quantized_rows = prepared.quantized;
      kernels.linear_int8(task);
      break;
  }
}

void CpuLinear::RunTogether(CpuContext& context, TensorView x, const LinearOptions& options,
                            TensorView out) const {
  const int64_t rows = x.dim(0);
  const int64_t products = rows * in_features() * out_features();
  const int threads = products < kSerialProducts ? 1 : context.pool().num_threads();
  const int64_t task_rows = in_tiles_ ? kTileTaskRows : kTaskRows;
  const auto row_tasks = static_cast<int>(Quotient(rows, task_rows));
  int task_panels = num_panels();
  if (threads > 1) {
    // Many rows: fixed groups. Few: about four tasks a thread.
    task_panels =
        row_tasks > 1 ? kTaskPanels : static_cast<int>(Quotient(num_panels(), 4 * threads));
  }
  const auto panel_tasks = static_cast<int>(Quotient(num_panels(), task_panels));
  Prepared prepared = {};
  if (inputs_ != Inputs::kAsTheyAre) {
    prepared = PreparedIn(context.shared(), rows);
    const int64_t step = std::max<int64_t>(1, kTaskInputs / in_features());
    context.pool().Run(static_cast<int>(Quotient(rows, step)), [&](int index, int) {
      for (int64_t r = index * step; r < std::min(rows, (index + 1) * step); ++r)
        Prepare(context.kernels(), x.row<float>(r), prepared, r);
    });
  }
  LinearTask common = TaskOf(options);
  common.out_stride = out.row_stride();
  // Consecutive tasks share their weights, which stay in the cache.
  context.pool().Run(row_tasks * panel_tasks, [&](int index, int) {
    LinearTask task = common;
    const int64_t first = index % row_tasks * task_rows, last = std::min(rows, first + task_rows);
    task.num_rows = static_cast<int>(last - first);
    task.first_panel = index / row_tasks * task_panels;
    task.last_panel = std::min(num_panels(), task.first_panel + task_panels);
    task.out = out.row<float>(first);
    Prepared inputs = {};
    if (inputs_ != Inputs::kAsTheyAre)
      inputs = {prepared.quantized + first, prepared.rows + first * row_bytes_};
    RunTask(context.kernels(), task, x.Rows(first, last), inputs);
  });
}

void CpuLinear::RunApart(CpuContext& context, TensorView x, const LinearOptions& options,
                         TensorView out, int64_t task_rows) const {
  const int64_t rows = x.dim(0);
  LinearTask common = TaskOf(options);
  common.out_stride = out.row_stride();
  ForEachRowTask(context, rows, task_rows, [&](int64_t first, int64_t n, std::byte* memory) {
    LinearTask task = common;
    task.num_rows = static_cast<int>(n);
    task.out = out.row<float>(first);
    const Prepared prepared = PreparedIn(memory, n);
    for (int64_t r = 0; r < n; ++r)
      Prepare(context.kernels(), x.row<float>(first + r), prepared, r);
    RunTask(context.kernels(), task, x.Rows(first, first + n), prepared);
  });
}

bool CpuLinear::RunNormed(CpuContext& context, TensorView x, TensorView gain, float epsilon,
                          int64_t columns, absl::FunctionRef<void(int64_t row)> finish,
                          TensorView out) const {
  const int64_t rows = x.dim(0);
  BST_CHECK(columns <= out_features(), columns, " of ", out_features(), " columns");
  BST_CHECK_SHAPE(out, {rows, out_features()});
  const int64_t task_rows = RowsApart(rows, context.pool().num_threads(), most_task_rows());
  if (task_rows == 0) return false;
  // Whole panels.
  const int64_t first_columns = std::min<int64_t>(RoundUp(columns, kPanelOutputs), out_features());
  RunParts(context, x, gain, epsilon, task_rows, task_rows, [&](const Part& part) {
    float* const to = out.row<float>(part.first());
    const int64_t next = first_columns < out_features() ? first_columns : 0;
    part.Run(0, first_columns, next, to, out.row_stride());
    for (int64_t r = 0; columns > 0 && r < part.num_rows(); ++r) finish(part.first() + r);
    part.Run(first_columns, out_features() - first_columns, 0, to + first_columns,
             out.row_stride());
  });
  return true;
}

size_t CpuLinear::NormedBytes(int64_t rows) const {
  const auto normed = static_cast<int64_t>(sizeof(float)) * in_features();
  return PreparedBytes(rows, row_bytes_) + static_cast<size_t>(RoundUp(normed, kLineBytes));
}

int64_t CpuLinear::PartRows(CpuContext& context, int64_t rows, int64_t scratch_bytes) const {
  const int64_t part_rows = RowsApart(rows, context.pool().num_threads(), most_task_rows());
  const size_t bytes = NormedBytes(part_rows) + static_cast<size_t>(part_rows * scratch_bytes);
  return bytes <= context.scratch_bytes() ? part_rows : 0;
}

void CpuLinear::RunParts(CpuContext& context, TensorView x, TensorView gain, float epsilon,
                         int64_t first_rows, int64_t part_rows,
                         absl::FunctionRef<void(const Part& part)> run) const {
  BST_CHECK(x.dim(1) == in_features(), "inputs ", x.dim(1), ", weights take ", in_features());
  BST_CHECK_SHAPE(gain, {x.dim(1)});
  const CpuKernels& kernels = context.kernels();
  const int64_t rows = x.dim(0), before = part_rows - first_rows;  // that the first group lacks
  ForEachRowTask(
      context, before + rows, part_rows, [&](int64_t begin, int64_t count, std::byte* memory) {
        const int64_t first = std::max<int64_t>(0, begin - before);
        const int64_t n = begin - before + count - first;
        const Prepared inputs = PreparedIn(memory, n);
        auto* const normed = reinterpret_cast<float*>(memory + PreparedBytes(n, row_bytes_));
        PrepareNormed(kernels, x, first, n, gain, epsilon, normed, inputs);
        run(Part(*this, kernels, inputs, memory + NormedBytes(n), first, n));
      });
}

void CpuLinear::Part::Run(int64_t column, int64_t columns, int64_t next_column, float* out,
                          int64_t out_stride) const {
  const int64_t panel = column / kPanelOutputs;
  LinearTask task = layer_.TaskOf({});
  // The layer from that panel on.
  task.weights = static_cast<const std::byte*>(task.weights) +
                 static_cast<size_t>(column * layer_.padded_in_) * SizeOf(layer_.type_);
  if (task.weight_scales != nullptr) task.weight_scales += column, task.weight_sums += column;
  task.out_features = static_cast<int>(columns);
  task.last_panel = static_cast<int>(Quotient(columns, kPanelOutputs));
  task.next_panel = next_column == 0 ? 0 : static_cast<int>(next_column / kPanelOutputs - panel);
  task.num_rows = static_cast<int>(num_rows_);
  task.out = out;
  task.out_stride = out_stride;
  layer_.RunTask(kernels_, task, {}, inputs_);
}

bool CpuLinear::RunFeedForward(CpuContext& context, TensorView x, TensorView gain, float epsilon,
                               const CpuLinear& up, LinearEpilogue act, const CpuLinear& down) {
  const int64_t rows = x.dim(0);
  BST_CHECK(x.dim(1) == up.in_features() && x.dim(1) == down.out_features() &&
                up.out_features() == down.in_features() && act != LinearEpilogue::kAdd,
            "feed-forward layers ", up.in_features(), " x ", up.out_features(), " and ",
            down.in_features(), " x ", down.out_features(), " for inputs ", x.dim(1));
  BST_CHECK_SHAPE(gain, {x.dim(1)});
  const bool is_int8 = up.inputs_ == Inputs::kInt8;
  const int64_t most = is_int8 ? up.most_hidden_rows() : up.most_task_rows();
  const int64_t task_rows = up.RowsApart(rows, context.pool().num_threads(), most);
  if (task_rows == 0 || up.inputs_ != down.inputs_) return false;
  const CpuKernels& kernels = context.kernels();
  LinearTask first_task = up.TaskOf({.epilogue = act});
  LinearTask second_task = down.TaskOf({.epilogue = LinearEpilogue::kAdd});
  second_task.out_stride = x.row_stride();
  ForEachRowTask(context, rows, task_rows, [&](int64_t first, int64_t n, std::byte* memory) {
    const Prepared inputs = PreparedIn(memory, n);
    memory += PreparedBytes(n, up.row_bytes_);
    const Prepared hidden = PreparedIn(memory, n);
    memory += PreparedBytes(n, down.row_bytes_);
    auto* const floats = reinterpret_cast<float*>(memory);
    up.PrepareNormed(kernels, x, first, n, gain, epsilon, floats, inputs);
    LinearTask task = first_task;
    task.num_rows = static_cast<int>(n);
    if (is_int8) {
      task.out = floats;
      task.out_stride = down.in_features();
    } else {
      task.packed_out = reinterpret_cast<BFloat16*>(hidden.rows);
      task.packed_out_row_bytes = down.row_bytes_;
    }
    up.RunTask(kernels, task, {}, inputs);
    for (int64_t r = 0; is_int8 && r < n; ++r)
      down.Prepare(kernels, floats + r * down.in_features(), hidden, r);
    task = second_task;
    task.num_rows = static_cast<int>(n);
    task.out = x.row<float>(first);
    down.RunTask(kernels, task, {}, hidden);
  });
  return true;
}

}  // namespace bst
