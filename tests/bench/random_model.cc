#include "tests/bench/random_model.h"

#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/base/status_macros.h"
#include "engine/checkpoint/random_checkpoint.h"

namespace bst {
namespace {

// A directory that goes with the value.
class ScratchDirectory {
 public:
  ScratchDirectory()
      : path_(std::filesystem::temp_directory_path() / absl::StrCat("bst_bench_", ::getpid())) {
    std::filesystem::create_directories(path_);
  }
  ScratchDirectory(const ScratchDirectory&) = delete;
  ScratchDirectory& operator=(const ScratchDirectory&) = delete;
  ~ScratchDirectory() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

std::string ConfigOf(const RandomModel& model) {
  return absl::StrCat(
      R"({"model_type": "block_state_transformer", "format_version": 1,
  "vocab_size": )",
      model.vocab_size, R"(, "hidden_size": )", model.hidden_size, R"(, "num_heads": )",
      model.num_heads, R"(, "head_dim": )", model.hidden_size / model.num_heads,
      R"(, "ffn_size": )", model.ffn_size, R"(, "window": )", model.window,
      R"(, "ffn_activation": "relu", "norm_eps": 1e-6, "logit_scale": 1.0, "tie_embeddings": true,
  "attention": {"scope": "sliding", "include_self": true, "empty_prefix": "masked",
                "qk_norm": true, "position": "t5", "t5_num_buckets": 32, "t5_max_distance": 128,
                "rope_theta": 10000.0},
  "layers": [)",
      absl::StrJoin(model.layers, ", "), R"(], "tokenizer": {"type": "byte"},
  "bos_token_id": null, "eos_token_id": null, "pad_token_id": null})");
}

}  // namespace

absl::StatusOr<Checkpoint> OpenRandomModel(const RandomModel& model) {
  const ScratchDirectory scratch;
  RandomCheckpointOptions options;
  options.config_path = scratch.path() / "source.json";
  options.directory = scratch.path() / "checkpoint";
  options.dtype = model.dtype;
  std::ofstream(options.config_path) << ConfigOf(model);
  BST_RETURN_IF_ERROR(WriteRandomCheckpoint(options));
  return Checkpoint::Open(options.directory);
}

}  // namespace bst
