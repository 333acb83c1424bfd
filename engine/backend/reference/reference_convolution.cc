#include "engine/backend/reference/reference_convolution.h"

#include <algorithm>

#include "engine/tensor/host_convert.h"

namespace bst {

ReferenceConvolution::ReferenceConvolution(const ConvolutionParameters& p)
    : ReferenceSequence(p.spec),
      num_taps_(p.taps.dim(1)),
      taps_(ToFloats(p.taps)),
      d_(ToFloats(p.d)) {}

size_t ReferenceConvolution::state_bytes() const {
  return static_cast<size_t>(num_taps_ * spec().num_inputs) * sizeof(float);
}

void ReferenceConvolution::Run(TensorView u, absl::Span<const Row> rows, PoolView state,
                               TensorView y) const {
  const int64_t inputs = spec().num_inputs, block = spec().block;
  BST_CHECK(u.dim(1) == inputs, "inputs ", u.dim(1), ", weights take ", inputs);
  const bool every_token = spec().outputs == SsmOutputs::kEveryToken;
  int64_t output = 0;  // row of y
  for (const Row& row : rows) {
    float* ring = state.slot<float>(row.slot);
    for (int t = row.begin; t < row.end; ++t) {
      const int64_t position = row.position + (t - row.begin);
      std::copy_n(u.row<float>(t), inputs, ring + position % num_taps_ * inputs);
      if (!every_token && position % block != block - 1) continue;
      const int64_t reach = std::min(num_taps_, position + 1);
      for (int64_t feature = 0; feature < spec().num_features(); ++feature) {
        const int64_t input = feature % inputs;
        const float* taps = taps_.data() + feature * num_taps_;
        double sum = double{d_[static_cast<size_t>(feature)]} * u.row<float>(t)[input];
        for (int64_t s = 0; s < reach; ++s)
          sum += double{taps[s]} * ring[(position - s) % num_taps_ * inputs + input];
        y.row<float>(output)[feature] = static_cast<float>(sum);
      }
      ++output;
    }
  }
  BST_CHECK_SHAPE(y, {output, spec().num_features()});
}

}  // namespace bst
