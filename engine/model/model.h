// Model: the weights of a checkpoint on a backend, and the forward pass over one ragged step.
//
//   x = embed[token];  for each layer: x = layer(x);  logits = rms(x; final_norm) E^T * logit_scale
//
// Invariants  (1) The batch law of backend.h holds for whole models: a token's logits depend on the
//                 tokens 0..t of its own sequence, bit for bit, whatever shares the step,
//                 however the sequence was cut into rows and whichever other logits are wanted.
//             (2) Forward and Logits do not allocate.
// Ownership   Owns packed weights and workspace; the backend outlives it. The checkpoint is not
//             needed after Create.
// Threads     Engine thread only.
// Errors      Create: kResourceExhausted, naming the layer or the workspace; kInvalidArgument for
//             options; kFailedPrecondition, naming the tensor, where its values make no finite
//             float32 model.
// Tested by   tests/engine/model/model_test.cc (the law), tests/engine/model/golden_test.cc
#pragma once

#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "engine/backend/backend.h"
#include "engine/checkpoint/checkpoint.h"
#include "engine/model/layer.h"
#include "engine/state/state_layout.h"
#include "engine/state/state_pool.h"

namespace bst {

enum class LogitsPlace {
  kHostReadable,  // for whoever draws from them on the host
  kDevice,
};

struct ModelOptions {
  DType weights = DType::kF32;  // F32, BF16 or, where the backend has it, I8
  DType kv = DType::kF32;       // rings and context rows: likewise
  int max_step_tokens = 2048;   // capacity of the workspace, in tokens
  int max_logit_rows = 256;     // capacity of the logits, in rows
  int max_rows = 256;           // sequences in one step
  LogitsPlace logits = LogitsPlace::kHostReadable;
};

class Model {
 public:
  static absl::StatusOr<std::unique_ptr<Model>> Create(const Checkpoint& checkpoint,
                                                       Backend& backend,
                                                       const ModelOptions& options);
  ~Model();

  // What a sequence of this model keeps between steps.
  const StateLayout& state_layout() const { return state_layout_; }

  // Runs the layers over a step. tokens [T], rows [R] packed in order, covering all T tokens;
  // `pool` was made from state_layout(). The rows' slots advance by their tokens. wanted: those of
  // the packed tokens, ascending, that Logits may be asked for. What the last layer makes of the
  // others nobody reads, so it does for them no more than its state needs: of a prompt, mostly one
  // token in a chunk or none.
  // REQUIRES: T <= max_step_tokens, R <= max_rows; 0 <= token < vocab_size; outputs_from unset.
  void Forward(absl::Span<const TokenId> tokens, absl::Span<const Row> rows,
               absl::Span<const int> wanted, StatePool& pool);

  // Logits after the given tokens (of those that the last Forward had `wanted`), in float32 on the
  // device: [indices.size(), V], valid until the next call; the host may read them after Sync() if
  // that was asked for. REQUIRES: at most max_logit_rows.
  TensorView Logits(absl::Span<const int> indices);

  int vocab_size() const { return vocab_size_; }
  int max_step_tokens() const { return options_.max_step_tokens; }
  int max_logit_rows() const { return options_.max_logit_rows; }
  size_t weight_bytes() const;

 private:
  Model(Backend& backend, const ModelOptions& options);
  // Create with sound options, but for memory that runs out.
  static absl::StatusOr<std::unique_ptr<Model>> Load(const Checkpoint& checkpoint, Backend& backend,
                                                     const ModelOptions& options);
  // The last layer's step, from that of the others.
  Step LastStep(const Step& step, absl::Span<const int> wanted);

  Backend& backend_;
  ModelOptions options_;
  int vocab_size_ = 0;
  int hidden_size_ = 0;
  int window_ = 0;
  float norm_eps_ = 0;
  float logit_scale_ = 0;
  double rope_theta_ = 0;
  int rotary_dim_ = 0;  // dh with RoPE, else 0
  StateLayout state_layout_;
  std::unique_ptr<EmbeddingWeights> embedding_;
  std::vector<std::unique_ptr<Layer>> layers_;
  Buffer final_norm_;
  std::unique_ptr<LinearWeights> output_;
  // Shared by all layers; and what the first and the last operators need besides.
  std::unique_ptr<Workspace> workspace_;
  Scratch residual_, rotary_, gathered_, logits_;
  int64_t gathered_rows_ = 0;  // at most
  // Of the last Forward.
  std::vector<BlockEnd> block_ends_;
  std::vector<int> wanted_;
  std::vector<Row> last_rows_;  // the last layer's, with unwanted tokens
  // What the last layer gave: a row for each token in residual_, or one for each of wanted_ in
  // gathered_.
  TensorView outputs_;
  bool has_unwanted_ = false;
  std::vector<int> places_;  // in outputs_, of the logits asked for
};

}  // namespace bst
