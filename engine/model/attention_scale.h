// The factor of each head's scores: |scale| with normalised queries and keys, else 1 / sqrt(dh).
//
// Threads   Pure function.
// Tested by tests/engine/model/golden_test.cc
#pragma once

#include <cmath>
#include <string_view>
#include <vector>

#include "engine/model/layer.h"
#include "engine/tensor/host_convert.h"

namespace bst {

// [H], from the layer's tensor of that name where the model has qk_norm.
inline std::vector<float> AttentionScales(const LayerSource& source, std::string_view tensor) {
  const ModelConfig& config = source.config();
  if (!config.attention.qk_norm) {
    return std::vector<float>(
        static_cast<size_t>(config.num_heads),
        static_cast<float>(1.0 / std::sqrt(static_cast<double>(config.head_dim))));
  }
  std::vector<float> scale = ToFloats(source.Tensor(tensor));
  for (float& s : scale) s = std::fabs(s);
  return scale;
}

}  // namespace bst
