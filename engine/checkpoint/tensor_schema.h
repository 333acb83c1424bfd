// TensorSchema: the names, shapes and allowed types of every tensor a configuration asks for.
//
// One list serves the loader (what must be there), bst-init (what to write) and the tests.
// Threads   Pure function.
// Tested by tests/engine/checkpoint/tensor_schema_test.cc
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "engine/checkpoint/model_config.h"
#include "engine/tensor/tensor_view.h"

namespace bst {

// What a tensor is, which decides how bst-init draws it.
enum class TensorRole {
  kEmbedding,  // and the output matrix of an untied model
  kMatrix,
  kOutputMatrix,  // writes to the residual stream
  kNormGain,
  kAttentionScale,
  kPositionBias,
  kContextIds,      // tell context vectors, or recurrent states, apart; added after their norm
  kInitialContext,  // context vectors, or recurrent states, of the first block
  kStateGateBias,   // brect
  kSsmLogDt,        // s5: log_step
  kSsmLogNegAReal,
  kSsmAReal,  // s5
  kSsmAImag,  // s4d, dss, s5
  kSsmB,      // s4d
  kSsmC,      // dss: w
  kSsmD,
  kS4AImag,
  kS4P,
  kS4B,
  kS5B,
  kFilter,  // explicit taps
};

struct TensorSpec {
  std::string name;
  Shape shape;
  TensorRole role;
  bool f32_only;  // F32 alone; otherwise F32, F16 or BF16
  bool optional;  // may be absent (the s4d kernel's b, then 1)
};

// In the order in which the forward pass meets them.
std::vector<TensorSpec> TensorSchema(const ModelConfig& config);

// "layers.3.attn.q_proj.weight" from (3, "attn.q_proj.weight").
std::string LayerTensorName(int layer, std::string_view suffix);

}  // namespace bst
