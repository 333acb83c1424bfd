// Layer: one layer of the stack. Step: what a forward pass hands from layer to layer.
//
// Symbols   T tokens of the step, D model width, A = heads * head_dim, F feed-forward width.
// Threads   Engine thread only.
#pragma once

#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "engine/backend/backend.h"
#include "engine/base/status_macros.h"
#include "engine/checkpoint/checkpoint.h"
#include "engine/checkpoint/tensor_schema.h"
#include "engine/state/state_layout.h"
#include "engine/state/state_pool.h"

namespace bst {

// Activations of one step, float32 views into the model's workspace, cut to T rows.
struct Step {
  absl::Span<const Row> rows;
  StatePool* pool = nullptr;
  TensorView x;         // [T, D]   the residual stream
  TensorView normed;    // [T, D]
  TensorView heads;     // [T, 4A]  q, k, v and the context queries
  TensorView attended;  // [T, 2A]  o and oc
  TensorView context;   // [T, 2A]  kc and vc
  TensorView signal;    // [T, D]   the SSM's input
  TensorView states;    // [T, D]   the SSM's output
  TensorView hidden;    // [T, 2F]  inside the feed-forward network
  TensorView gated;     // [T, F]
  TensorView rotary;    // [T, dh]  cosines and sines; empty without RoPE
};

class Layer {
 public:
  virtual ~Layer() = default;
  // step.x becomes the layer's output; the rows' slots advance.
  virtual void Forward(Backend& backend, const Step& step) const = 0;
  virtual size_t weight_bytes() const = 0;
};

// What a layer is made from.
struct LayerSource {
  const Checkpoint& checkpoint;
  Backend& backend;
  int index;            // n in layers.{n}.
  DType weights;        // of the matrices
  DType kv;             // of rings and context rows
  StateLayout& layout;  // the layer adds its regions

  TensorView Tensor(std::string_view suffix) const {
    return checkpoint.Tensor(LayerTensorName(index, suffix));
  }
};

}  // namespace bst
