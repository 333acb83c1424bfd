// Checkpoint: a validated model directory, its tensors mapped into memory.
//
//   DIR/config.json                     hyper-parameters, see model_config.h
//   DIR/model.safetensors               the tensors, or Hugging Face shards named by
//   DIR/model.safetensors.index.json    (one or the other, or an index that names the file)
//   DIR/generation_config.json          optional: default sampling, see generation_config.h
//
// The files are hostile until proven otherwise: every offset, size, type and shape is checked
// against the file and against the configuration before a view is handed out, and every number is
// checked to be finite.
//
// Invariants  (1) The tensors are exactly those of TensorSchema(config): none missing, none more.
//             (2) Each has the schema's shape and an allowed type; no element is NaN or infinite.
//             (3) No state-space mode grows, |A-bar| <= 1, and every time step is a number above
//             0; see ssm_stability.h.
// Ownership   Owns the mappings; views are valid while it lives. Files must not be truncated then.
// Threads     Immutable after Open.
// Errors      kNotFound (no such file), kFailedPrecondition (names the file and the key or tensor),
//             kResourceExhausted (cannot map a file, not enough memory).
// Tested by   tests/engine/checkpoint/checkpoint_test.cc, tests/fuzz/checkpoint_fuzz.cc
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/checkpoint/generation_config.h"
#include "engine/checkpoint/model_config.h"
#include "engine/checkpoint/safetensors.h"
#include "engine/tensor/tensor_view.h"

namespace bst {

class Checkpoint {
 public:
  static absl::StatusOr<Checkpoint> Open(const std::string& directory);

  const std::string& directory() const { return directory_; }
  // The last component of the directory: the model's name.
  std::string name() const;
  const ModelConfig& config() const { return config_; }
  const GenerationDefaults& generation_defaults() const { return generation_defaults_; }

  // A tensor of the schema: read-only memory of the mapped file, element type as stored.
  // REQUIRES: Has(name).
  TensorView Tensor(std::string_view name) const;
  bool Has(std::string_view name) const;

  int64_t num_parameters() const;  // elements of all tensors
  bool has_f32_matrices() const;   // any matrix outside the F32-only tensors stored as F32

 private:
  Checkpoint() = default;
  // Open, but for memory that runs out.
  static absl::StatusOr<Checkpoint> Read(const std::string& directory);

  std::string directory_;
  ModelConfig config_;
  GenerationDefaults generation_defaults_;
  std::vector<SafetensorsFile> files_;
  std::map<std::string, TensorView, std::less<>> tensors_;
};

}  // namespace bst
