// Layer: one layer of the stack. Step: what a forward pass hands from layer to layer. Workspace:
// the memory that all layers compute in, one after the other.
//
// Symbols   T tokens of the step, R rows, E block ends of the step (tokens that are the last of
//           their block), D model width, A = heads * head_dim, F feed-forward width, W block
//           length.
// Threads   Engine thread only.
// Tested by tests/engine/model/golden_test.cc, model_test.cc
#pragma once

#include <algorithm>
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

// Memory for one float32 matrix at a time, as large as the largest that a layer reserved at load.
class Scratch {
 public:
  void Reserve(int64_t rows, int64_t columns) { elements_ = std::max(elements_, rows * columns); }
  absl::Status Allocate(Backend& backend) {
    if (elements_ == 0) return absl::OkStatus();
    BST_ASSIGN_OR_RETURN(buffer_, backend.Allocate(static_cast<size_t>(elements_) * sizeof(float)));
    return absl::OkStatus();
  }
  // For results that the host reads (backend.h).
  absl::Status AllocateHostReadable(Backend& backend) {
    BST_ASSIGN_OR_RETURN(
        buffer_, backend.AllocateHostReadable(static_cast<size_t>(elements_) * sizeof(float)));
    return absl::OkStatus();
  }
  // Contiguous. REQUIRES: reserved.
  TensorView Matrix(int64_t rows, int64_t columns) const {
    return buffer_.View(DType::kF32, {rows, columns});
  }

 private:
  int64_t elements_ = 0;
  Buffer buffer_;
};

struct Workspace {
  Scratch normed;     // n, of attention and of the feed-forward network
  Scratch heads;      // q, k, v and the context queries
  Scratch queries;    // the context queries, where `heads` is in a backend's own form
  Scratch attended;   // o and oc
  Scratch context;    // kc and vc; a state update's projections
  Scratch signal;     // a long convolution's input; a state update's normed states
  Scratch states;     // a long convolution's output; recurrent states
  Scratch modes;      // inside an S5 kernel; what a state update attended to
  Scratch end_modes;  // the same at block ends
  Scratch end_input;
  Scratch update;  // of recurrent states
  Scratch hidden;  // inside the feed-forward network or a gss layer
  Scratch gated;

  size_t step_context_bytes = 0;  // the largest context that a step makes at each block end
  Buffer step_contexts;           // one per block end
  // Lists that an operator call takes; they keep their capacity.
  std::vector<ContextUse> uses;
  std::vector<ContextRows> stores;
  std::vector<ContextRows> token_stores;  // beside `stores`, which a state update fills
  std::vector<int> indices;

  absl::Status Allocate(Backend& backend, int max_rows, int max_block_ends) {
    const auto ends = static_cast<size_t>(max_block_ends), rows = static_cast<size_t>(max_rows);
    uses.reserve(ends + rows);
    stores.reserve(ends + rows);
    token_stores.reserve(rows);
    indices.reserve(ends);
    for (Scratch* scratch : {&normed, &heads, &queries, &attended, &context, &signal, &states,
                             &modes, &end_modes, &end_input, &update, &hidden, &gated}) {
      BST_RETURN_IF_ERROR(scratch->Allocate(backend));
    }
    if (step_context_bytes == 0) return absl::OkStatus();
    BST_ASSIGN_OR_RETURN(
        step_contexts, backend.Allocate(step_context_bytes * static_cast<size_t>(max_block_ends)));
    return absl::OkStatus();
  }
};

// A token of the step that is the last of its block.
struct BlockEnd {
  int row;    // index into rows
  int token;  // packed
  int64_t block;
};

struct Step {
  absl::Span<const Row> rows;
  absl::Span<const BlockEnd> block_ends;  // in packed order
  StatePool* pool = nullptr;
  Workspace* workspace = nullptr;
  TensorView x;       // [T, D]   the residual stream
  TensorView rotary;  // [T, dh]  cosines and sines; empty without RoPE
  // Only of the last layer, and where not all tokens' outputs are read: those that are, ascending.
  // They go to `outputs` [wanted, D]; the rows' outputs_from say from where on. For the others a
  // layer does what its state needs.
  bool has_unwanted = false;
  absl::Span<const int> wanted = {};
  TensorView outputs = {};

  int64_t num_tokens() const { return x.dim(0); }
  int64_t num_block_ends() const { return static_cast<int64_t>(block_ends.size()); }
};

class Layer {
 public:
  virtual ~Layer() = default;
  // step.x becomes the layer's output, or with unwanted tokens anything; the rows' slots advance.
  virtual void Forward(Backend& backend, const Step& step) const = 0;
  virtual size_t weight_bytes() const = 0;
};

// What a layer is made from.
struct LayerSource {
  const Checkpoint& checkpoint;
  Backend& backend;
  int index;             // n in layers.{n}.
  DType weights;         // of the matrices
  DType kv;              // of rings and contexts
  StateLayout& layout;   // the layer adds its regions
  Workspace& workspace;  // the layer reserves what it needs
  int max_tokens;        // of a step
  int max_rows;
  int max_block_ends;

  const ModelConfig& config() const { return checkpoint.config(); }
  const LayerConfig& layer() const { return config().layers[static_cast<size_t>(index)]; }
  TensorView Tensor(std::string_view suffix) const {
    return checkpoint.Tensor(LayerTensorName(index, suffix));
  }
  // Adds a region of that many bytes to the slot; returns its index.
  int AddRegion(std::string_view name, size_t bytes) const {
    return layout.Add({.name = LayerTensorName(index, name), .slot_bytes = bytes});
  }
};

}  // namespace bst
