#include "engine/backend/reference/reference_context_attention.h"

#include <algorithm>
#include <cmath>

#include "engine/backend/reference/reference_key_values.h"
#include "engine/tensor/host_convert.h"

namespace bst {
namespace {

ReferenceKeyValues Context(const ContextSpec& spec, const std::byte* slot) {
  return {spec.capacity, spec.num_heads, spec.head_dim, spec.kv_type, slot};
}

}  // namespace

ReferenceContextAttention::ReferenceContextAttention(const ContextParameters& parameters)
    : ContextWeights(parameters.spec), scale_(ToFloats(parameters.scale)) {}

size_t ReferenceContextAttention::ContextBytes(const ContextSpec& spec) {
  return ReferenceKeyValues::Bytes(spec.capacity, spec.num_heads, spec.head_dim, spec.kv_type);
}

void ReferenceContextAttention::Store(TensorView k, TensorView v,
                                      absl::Span<const ContextRows> rows, PoolView contexts) const {
  for (const ContextRows& part : rows) {
    const ReferenceKeyValues context = Context(spec(), contexts.slot<std::byte>(part.slot));
    for (int i = part.begin; i < part.end; ++i)
      context.Write(part.first_row + (i - part.begin), k.row<float>(i), v.row<float>(i));
  }
}

void ReferenceContextAttention::Attend(TensorView q, absl::Span<const ContextUse> uses,
                                       TensorView out) const {
  std::vector<double> weights;
  for (const ContextUse& use : uses) {
    const ReferenceKeyValues context = Context(spec(), use.context);
    for (int i = use.begin; i < use.end; ++i) {
      for (int head = 0; head < spec().num_heads; ++head) {
        const int64_t column = int64_t{head} * spec().head_dim;
        weights.clear();
        for (int64_t j = 0; j < use.num_rows; ++j) {
          double dot = 0;
          for (int64_t c = column; c < column + spec().head_dim; ++c)
            dot += double{q.row<float>(i)[c]} * context.Key(j, c);
          weights.push_back(dot * scale_[static_cast<size_t>(head)]);
        }
        const double top = *std::max_element(weights.begin(), weights.end());
        double sum = 0;
        for (double& w : weights) sum += w = std::exp(w - top);
        for (int64_t c = column; c < column + spec().head_dim; ++c) {
          double o = 0;
          for (int64_t j = 0; j < use.num_rows; ++j)
            o += weights[static_cast<size_t>(j)] * context.Value(j, c);
          out.row<float>(i)[c] = static_cast<float>(o / sum);
        }
      }
    }
  }
}

}  // namespace bst
