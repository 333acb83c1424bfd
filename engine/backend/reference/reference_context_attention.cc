#include "engine/backend/reference/reference_context_attention.h"

#include <algorithm>
#include <cmath>

#include "engine/tensor/host_convert.h"

namespace bst {
namespace {

int64_t Width(const ContextSpec& spec) { return int64_t{spec.num_heads} * spec.head_dim; }

}  // namespace

ReferenceContextAttention::ReferenceContextAttention(const ContextParameters& parameters)
    : ContextWeights(parameters.spec), scale_(ToFloats(parameters.scale)) {}

size_t ReferenceContextAttention::ContextBytes(const ContextSpec& spec) {
  return static_cast<size_t>(2 * spec.capacity * Width(spec)) * SizeOf(spec.kv_type);
}

void ReferenceContextAttention::Store(TensorView k, TensorView v,
                                      absl::Span<const ContextRows> rows, PoolView contexts) const {
  const int64_t width = Width(spec());
  for (const ContextRows& part : rows) {
    const TensorView context(contexts.slot<std::byte>(part.slot), spec().kv_type,
                             {2 * int64_t{spec().capacity}, width});
    for (int i = part.begin; i < part.end; ++i) {
      const int64_t row = part.first_row + (i - part.begin);
      for (int64_t c = 0; c < width; ++c) {
        SetElement(context, row * width + c, k.row<float>(i)[c]);
        SetElement(context, (spec().capacity + row) * width + c, v.row<float>(i)[c]);
      }
    }
  }
}

void ReferenceContextAttention::Attend(TensorView q, absl::Span<const ContextUse> uses,
                                       TensorView out) const {
  const int64_t width = Width(spec());
  std::vector<double> weights;
  for (const ContextUse& use : uses) {
    const TensorView context(const_cast<std::byte*>(use.context), spec().kv_type,
                             {2 * int64_t{spec().capacity}, width});
    for (int i = use.begin; i < use.end; ++i) {
      for (int head = 0; head < spec().num_heads; ++head) {
        const int64_t column = int64_t{head} * spec().head_dim;
        weights.clear();
        for (int64_t j = 0; j < use.num_rows; ++j) {
          double dot = 0;
          for (int64_t c = column; c < column + spec().head_dim; ++c)
            dot += double{q.row<float>(i)[c]} * ElementAsFloat(context, j * width + c);
          weights.push_back(dot * scale_[static_cast<size_t>(head)]);
        }
        const double top = *std::max_element(weights.begin(), weights.end());
        double sum = 0;
        for (double& w : weights) sum += w = std::exp(w - top);
        for (int64_t c = column; c < column + spec().head_dim; ++c) {
          double o = 0;
          for (int64_t j = 0; j < use.num_rows; ++j) {
            o += weights[static_cast<size_t>(j)] *
                 ElementAsFloat(context, (spec().capacity + j) * width + c);
          }
          out.row<float>(i)[c] = static_cast<float>(o / sum);
        }
      }
    }
  }
}

}  // namespace bst
