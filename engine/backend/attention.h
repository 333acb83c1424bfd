// What one attention operator attends to. The local half of every layer and the cross half of a BST
// layer are the same operator with different specs.
//
// Symbols   W window, H heads, dh head size, t position in the document, i = t mod W.
// Ring      Index j of a sequence's ring of W rows holds the newest key and value whose position is
//           j modulo W. So a query at offset i finds its own block at j <= i and the block before
//           at j > i, and no key ever moves.
// Visible   kSliding, include_self        positions t-W+1 .. t    (every ring index once)
//           kSliding, without self        positions t-W .. t-1
//           kBlock                        those of t's own block among the above
//           kZeros                        positions before the document hold k = v = 0, as far as
//                                         the window reaches; kMasked: they do not exist
// Formula   s_j = (<q, k_j> + bias[h][t - t_j]) * scale_h,  o = softmax(s) v;  no visible key: o =
// 0
#pragma once

#include <string>

#include "engine/tensor/tensor_view.h"

namespace bst {

enum class AttentionScope { kSliding, kBlock };
enum class EmptyPrefix { kMasked, kZeros };

struct AttentionSpec {
  int num_heads = 0;
  int head_dim = 0;
  int window = 0;
  AttentionScope scope = AttentionScope::kSliding;
  bool include_self = true;
  EmptyPrefix empty_prefix = EmptyPrefix::kMasked;
  DType kv_type = DType::kF32;  // of the ring: F32 or BF16
};

// Host tensors, copied by Backend::PackAttention.
struct AttentionParameters {
  AttentionSpec spec;
  TensorView scale;  // [H] F32, >= 0
  TensorView bias;   // [H, W + 1] F32, by distance; empty: none
};

}  // namespace bst
