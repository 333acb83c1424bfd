// OpenRandomModel: a checkpoint with random weights that is there for a benchmark alone.
//
// Threads     Free function. Errors: those of WriteRandomCheckpoint and Checkpoint::Open.
// Tested by   the smoke tests of tests/bench/CMakeLists.txt
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/checkpoint/checkpoint.h"
#include "engine/tensor/dtype.h"

namespace bst {

// The sizes that benchmarks choose; the rest is common: relu, sliding scope, T5 positions, tied
// embeddings, bytes as tokens.
struct RandomModel {
  int vocab_size = 0, hidden_size = 0, num_heads = 0, ffn_size = 0, window = 0;
  std::vector<std::string> layers;  // each as in config.json
  DType dtype = DType::kBF16;       // of the file
};

// Its files are gone when this returns; the checkpoint has them mapped.
absl::StatusOr<Checkpoint> OpenRandomModel(const RandomModel& model);

}  // namespace bst
