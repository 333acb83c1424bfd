// Attention to contexts as the obvious loop. A context is [2][capacity][H * dh]: keys, then values,
// in kv_type.
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
