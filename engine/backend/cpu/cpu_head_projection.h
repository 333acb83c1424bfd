// HeadProjection: a layer's heads, projected into the form that the attention of long rows takes
// (cpu_packed_heads.h).
//
// Threads   Engine thread only; tasks run on the threads of the CpuContext.
// Tested by tests/engine/backend/projected_attention_test.cc, tests/engine/model/model_test.cc
#pragma once

#include <cstdint>

#include "engine/backend/backend.h"
#include "engine/backend/cpu/cpu_attention.h"
#include "engine/backend/cpu/cpu_context.h"
#include "engine/backend/cpu/cpu_linear.h"
#include "engine/backend/cpu/cpu_packed_heads.h"

namespace bst {

class HeadProjection {
 public:
  // heads [T, out]: whose memory rows are packed into, each into its own part.
  HeadProjection(CpuContext& context, const CpuLinear& layer, const CpuAttention& attention,
                 TensorView heads)
      : context_(context), layer_(layer), attention_(attention), heads_(heads) {}

  // Whether a row's heads can be packed, and are worth it.
  bool Packs(const Row& row) const { return PartRows(row) > 0; }

  // As Backend::ProjectAttention, of one row that Packs says yes to. x, others: of all rows.
  void Project(const Row& row, TensorView x, TensorView gain, float epsilon,
               const HeadOptions& options, PoolView ring, TensorView others) const;

  // Where it put them.
  static PackedHeads PackedIn(const CpuContext& context, const CpuAttention& attention,
                              const Row& row, TensorView heads) {
    return PackedHeads(attention.Layout(context), row, heads.row<float>(row.begin));
  }

 private:
  // Tokens of each task that projects a row; 0: its heads are not packed.
  int64_t PartRows(const Row& row) const;
  // So many the first task lacks: the others begin at whole tiles of keys.
  static int64_t RowsBefore(const Row& row) { return row.position % kLanes; }

  int64_t head_dim() const { return attention_.spec().head_dim; }
  int64_t num_heads() const { return attention_.spec().num_heads; }

  CpuContext& context_;
  const CpuLinear& layer_;
  const CpuAttention& attention_;
  TensorView heads_;
};

}  // namespace bst
