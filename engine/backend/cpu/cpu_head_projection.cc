#include "engine/backend/cpu/cpu_head_projection.h"

#include <cstddef>

namespace bst {

int64_t HeadProjection::PartRows(const Row& row) const {
  const KeyValueLayout layout = attention_.Layout(context_);
  const bool contiguous = heads_.row_stride() == heads_.dim(1);
  if (!contiguous || !PackedHeads::Fits(layout)) return 0;
  const auto memory = static_cast<size_t>(row.num_tokens() * heads_.dim(1)) * sizeof(float);
  if (PackedIn(context_, attention_, row, heads_).bytes(attention_.spec().num_heads) > memory)
    return 0;
  // A key and a value of one head.
  const int64_t scratch_bytes = 2 * head_dim() * int64_t{sizeof(float)};
  const int64_t part_rows =
      layer_.PartRows(context_, RowsBefore(row) + row.num_tokens(), scratch_bytes);
  return part_rows % PackedHeads::kApart == 0 ? part_rows : 0;
}

void HeadProjection::Project(const Row& row, TensorView x, TensorView gain, float epsilon,
                             const HeadOptions& options, PoolView ring, TensorView others) const {
  const CpuKernels& kernels = context_.kernels();
  const int64_t dim = head_dim(), a = num_heads() * dim, width = heads_.dim(1);
  const PackedHeads packed = PackedIn(context_, attention_, row, heads_);
  const bool in_pairs = attention_.Layout(context_).group == 2;
  const auto run = [&](const CpuLinear::Part& part) {
    const int64_t n = part.num_rows();
    auto* const k = reinterpret_cast<float*>(part.scratch());
    float* const v = k + n * dim;
    // A head of queries or keys, from `column` on, to `to`.
    const auto project = [&](int64_t column, int64_t next_column, float* to) {
      part.Run(column, dim, next_column, to, dim);
      if (options.normalized == 0) return;
      kernels.normalize_heads(to, static_cast<int>(n), static_cast<int>(dim));
      if (options.rotary.empty()) return;
      for (int64_t i = 0; i < n; ++i) {
        const float* cosines = options.rotary.row<float>(row.begin + part.first() + i);
        kernels.rotate(cosines, cosines + dim / 2, static_cast<int>(dim / 2), to + i * dim);
      }
    };
    const bool attends = row.begin + part.first() + n > row.outputs_from;
    for (int head = 0; attends && head < num_heads(); ++head) {
      std::byte* const queries = packed.queries(head, part.first());
      float* const q = in_pairs ? k : reinterpret_cast<float*>(queries);
      project(head * dim, (head + 1) * dim, q);
      if (in_pairs) kernels.pack_bf16(q, reinterpret_cast<BFloat16*>(queries), n * dim, kLineBytes);
    }
    for (int head = 0; head < num_heads(); ++head) {
      const int64_t key = a + head * dim, value = key + a;
      const int64_t behind = attends && width > 3 * a ? 3 * a : 0;
      project(key, value, k);
      part.Run(value, dim, head + 1 < num_heads() ? key + dim : behind, v, dim);
      attention_.WritePacked(context_, packed, head, part.first(), n, k, v);
    }
    if (attends && width > 3 * a) {
      part.Run(3 * a, width - 3 * a, 0, others.row<float>(row.begin + part.first()),
               others.row_stride());
    }
  };
  attention_.StartPacked(context_, packed, ring);
  const int64_t part_rows = PartRows(row);
  layer_.RunParts(context_, x.Rows(row.begin, row.end), gain, epsilon, part_rows - RowsBefore(row),
                  part_rows, run);
}

}  // namespace bst
