// Attention to contexts (reference_key_values.h) as the obvious loop.
//
// Threads   Engine thread only.
// Tested by tests/engine/backend/context_attention_test.cc (what the others are compared with)
#pragma once

#include <vector>

#include "absl/types/span.h"
#include "engine/backend/backend.h"

namespace bst {

class ReferenceContextAttention : public ContextWeights {
 public:
  explicit ReferenceContextAttention(const ContextParameters& parameters);

  static size_t ContextBytes(const ContextSpec& spec);
  void Store(TensorView k, TensorView v, absl::Span<const ContextRows> rows,
             PoolView contexts) const;
  void Attend(TensorView q, absl::Span<const ContextUse> uses, TensorView out) const;

  size_t bytes() const override { return scale_.size() * sizeof(float); }

 private:
  std::vector<float> scale_;  // [H]
};

}  // namespace bst
