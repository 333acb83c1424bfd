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
// I8        Keys and values are kept as int8.h says, each with one scale per position and head;
//           REQUIRES: head_dim <= kMaxInt8Inputs, a score's sum is an int32
// Rounding  With BF16 a backend may round queries and softmax weights to BF16 too, with I8 to
//           integers of 16 bits over their own range; sums are float32 or exact. Else all is
//           float32.
// Formula   s_j = (<q, k_j> + bias[h][t - t_j]) * scale_h,  o = softmax(s) v;
//           no visible key: o = 0
// Threads   Values.
// Tested by tests/engine/backend/agreement_test.cc, context_attention_test.cc
#pragma once

#include <cstddef>

#include "engine/base/ids.h"
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
  DType kv_type = DType::kF32;  // of the ring: F32, BF16 or I8
};

// Host tensors, copied by Backend::PackAttention.
struct AttentionParameters {
  AttentionSpec spec;
  TensorView scale;  // [H] F32, >= 0
  TensorView bias;   // [H, W + 1] F32, by distance; empty: none
};

// Attention to contexts: stores of up to `capacity` key and value rows per head, each visible or
// not as a whole (the context vectors of a multi-filter layer, the recurrent states of a BRecT
// layer and the two newest blocks of tokens that those read). Contexts lie in pools: a sequence's
// own in its slot, those made during a step in the workspace.
//   o = softmax over rows j < num_rows of <q, k_j> scale_h, times v;   rows in order
struct ContextSpec {
  int num_heads = 0;
  int head_dim = 0;
  int capacity = 0;
  DType kv_type = DType::kF32;  // of the rows: F32, BF16 or I8
};

// Host tensors, copied by Backend::PackContextAttention.
struct ContextParameters {
  ContextSpec spec;
  TensorView scale;  // [H] F32, >= 0
};

// Rows [begin, end) of the matrices that hold keys and values become rows first_row .. of the
// context `slot`.
struct ContextRows {
  int begin = 0;
  int end = 0;
  SlotId slot;
  int first_row = 0;
};

// Queries [begin, end) attend to the first num_rows rows, at least one, of a context.
struct ContextUse {
  int begin = 0;
  int end = 0;
  const std::byte* context = nullptr;  // as PoolView::slot gives it
  int num_rows = 0;
};

}  // namespace bst
