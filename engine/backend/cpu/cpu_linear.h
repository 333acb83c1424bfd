// Linear layers of the CPU backend: weights packed into panels of 32 outputs (kernels.h).
//
// Threads   Engine thread only; tasks run on the threads of the CpuContext.
// Tested by tests/engine/backend/agreement_test.cc
#pragma once

#include <memory>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "engine/backend/backend.h"
#include "engine/backend/cpu/cpu_context.h"

namespace bst {

class CpuLinear : public LinearWeights {
 public:
  // See Backend::PackLinear.
  static absl::StatusOr<std::unique_ptr<CpuLinear>> Pack(CpuContext& context,
                                                         absl::Span<const TensorView> parts,
                                                         DType type);

  // See Backend::Linear.
  void Run(CpuContext& context, TensorView x, const LinearOptions& options, TensorView out) const;

  // See Backend::FeedForward: rows, in groups, go through both layers before others do. Hidden rows
  // stay in the second-level cache then, but for INT8 on tiles, which overflow it. Returns false
  // where it is not worth it or inputs are float32, and has done nothing.
  static bool RunFeedForward(CpuContext& context, TensorView x, TensorView gain, float epsilon,
                             const CpuLinear& up, LinearEpilogue act, const CpuLinear& down);

  // See Backend::ProjectHeads: rows, in groups, go through the norm and this layer before others
  // do. The task that made the first `columns` of its rows calls `finish` with each row, from its
  // thread, while they are in its cache, and only then makes the others. Returns false where rows
  // are too few or inputs are float32, and has done nothing.
  bool RunNormed(CpuContext& context, TensorView x, TensorView gain, float epsilon, int64_t columns,
                 absl::FunctionRef<void(int64_t row)> finish, TensorView out) const;

  // Rows of a task of RunParts, of so many; 0 where they are too few, inputs are float32 or a
  // thread has no scratch of `scratch_bytes` for each of a task's rows.
  int64_t PartRows(CpuContext& context, int64_t rows, int64_t scratch_bytes) const;
  // Rows of x, in groups, go through the norm, and the task that has them runs the layer over them
  // in parts. The first group has `first_rows`, the others `part_rows` of PartRows.
  class Part;
  void RunParts(CpuContext& context, TensorView x, TensorView gain, float epsilon,
                int64_t first_rows, int64_t part_rows,
                absl::FunctionRef<void(const Part& part)> run) const;

  size_t bytes() const override { return packed_.bytes() + channels_.bytes(); }

 private:
  // What the kernels take for inputs.
  enum class Inputs { kAsTheyAre, kRounded, kBf16, kInt8 };

  CpuLinear(int in, int out, DType type, const CpuKernels& kernels);
  bool takes_packed_inputs() const { return inputs_ == Inputs::kBf16 || inputs_ == Inputs::kInt8; }
  // Rows whose inputs are prepared at once before threads share them.
  int64_t block_rows() const;
  // Of a task that takes all of a layer's outputs.
  int64_t most_task_rows() const;
  // Of one that takes them through both feed-forward layers in INT8.
  int64_t most_hidden_rows() const;
  // Rows of each such task, `most` at most, where they keep the threads busy; 0 where they do not,
  // and threads share the panels of some rows after the others.
  int64_t RowsApart(int64_t rows, int64_t threads, int64_t most) const;
  int num_panels() const { return (out_features() + kPanelOutputs - 1) / kPanelOutputs; }
  void PackOutput(int64_t output, absl::Span<const float> row);
  // Memory for the prepared inputs of `rows` rows: QuantizedRow [rows], then the rows.
  struct Prepared {
    QuantizedRow* quantized;
    std::byte* rows;
  };
  static size_t PreparedBytes(int64_t rows, int64_t row_bytes);
  static Prepared PreparedIn(void* memory, int64_t rows);
  // One row's inputs, to row `row`.
  void Prepare(const CpuKernels& kernels, const float* inputs, const Prepared& prepared,
               int64_t row) const;
  // The same of rows [first, first + n) of x, normalised; to rows [0, n). `normed` [in] is scratch.
  void PrepareNormed(const CpuKernels& kernels, TensorView x, int64_t first, int64_t n,
                     TensorView gain, float epsilon, float* normed, const Prepared& prepared) const;
  LinearTask TaskOf(const LinearOptions& options) const;  // all panels; but for outputs
  // Bytes of a task's scratch before what RunParts leaves to others.
  size_t NormedBytes(int64_t rows) const;
  // `x` are the task's rows, `prepared` too.
  void RunTask(const CpuKernels& kernels, LinearTask task, TensorView x,
               const Prepared& prepared) const;
  // Threads prepare the inputs together, then share the tasks.
  void RunTogether(CpuContext& context, TensorView x, const LinearOptions& options,
                   TensorView out) const;
  // Each task prepares its own inputs, which stay in its thread's cache. Many rows only.
  void RunApart(CpuContext& context, TensorView x, const LinearOptions& options, TensorView out,
                int64_t task_rows) const;

  DType type_;
  Inputs inputs_;
  int64_t padded_in_;      // of the weights, and of inputs other than float32
  int64_t row_bytes_ = 0;  // of prepared inputs
  bool in_tiles_ = false;  // they lie in tiles (kernels.h)
  Buffer packed_;
  Buffer channels_;  // INT8: scales [panels * 32], then the sums of each output's weights
};

// Rows [first, first + num_rows) of the inputs, as the layer takes them. Of one task.
class CpuLinear::Part {
 public:
  int64_t first() const { return first_; }
  int64_t num_rows() const { return num_rows_; }
  std::byte* scratch() const { return scratch_; }  // the thread's, as PartRows was asked for

  // Outputs [column, column + columns) to out [num_rows][columns]. Meanwhile the weights of those
  // from next_column on are fetched; 0: not known. REQUIRES: multiples of kPanelOutputs, but for
  // the layer's last.
  void Run(int64_t column, int64_t columns, int64_t next_column, float* out,
           int64_t out_stride) const;

 private:
  friend class CpuLinear;
  Part(const CpuLinear& layer, const CpuKernels& kernels, const Prepared& inputs,
       std::byte* scratch, int64_t first, int64_t num_rows)
      : layer_(layer),
        kernels_(kernels),
        inputs_(inputs),
        scratch_(scratch),
        first_(first),
        num_rows_(num_rows) {}

  const CpuLinear& layer_;
  const CpuKernels& kernels_;
  const Prepared inputs_;
  std::byte* const scratch_;
  const int64_t first_, num_rows_;
};

}  // namespace bst
