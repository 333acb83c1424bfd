// TinyModel: a checkpoint with random weights in a temporary directory, small enough that a step
// takes microseconds. One transformer layer and one block-state layer, window 8, bytes as tokens.
//
// Ownership   The directory goes when the value does.
#pragma once

#include <stdlib.h>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>

#include "engine/base/check.h"
#include "engine/base/ids.h"
#include "engine/checkpoint/random_checkpoint.h"
#include "engine/tensor/dtype.h"
#include "gtest/gtest.h"

namespace bst {

class TinyModel {
 public:
  static constexpr int kVocabSize = 259;
  static constexpr int kWindow = 8;
  static constexpr TokenId kEos = TokenId(257);

  struct Options {
    uint64_t seed = 1;
    DType dtype = DType::kF32;
    std::string generation_config;  // the text of generation_config.json; empty: no such file
  };

  TinyModel() : TinyModel(Options()) {}
  explicit TinyModel(const Options& options) {
    directory_ = testing::TempDir() + "/bst_tiny_XXXXXX";
    BST_CHECK(::mkdtemp(directory_.data()) != nullptr, directory_);
    // Elsewhere, since the checkpoint's directory is to hold the checkpoint alone.
    const std::string config_path = directory_ + "/tiny.json";
    Write(config_path, kConfig);
    const absl::Status status = WriteRandomCheckpoint({.config_path = config_path,
                                                       .directory = directory(),
                                                       .seed = options.seed,
                                                       .dtype = options.dtype,
                                                       .tokenizer_path = ""});
    BST_CHECK(status.ok(), status.ToString());
    if (!options.generation_config.empty()) {
      Write(directory() + "/generation_config.json", options.generation_config);
    }
  }
  TinyModel(const TinyModel&) = delete;
  TinyModel& operator=(const TinyModel&) = delete;
  ~TinyModel() {
    std::error_code ignored;
    std::filesystem::remove_all(directory_, ignored);
  }

  std::string directory() const { return directory_ + "/tiny"; }

  static constexpr std::string_view kConfig = R"({
  "model_type": "block_state_transformer", "format_version": 1,
  "vocab_size": 259, "hidden_size": 32, "num_heads": 2, "head_dim": 16, "ffn_size": 64,
  "ffn_activation": "gelu", "window": 8, "norm_eps": 1e-06, "logit_scale": 1.0, "tie_embeddings": true,
  "attention": {"scope": "sliding", "include_self": true, "empty_prefix": "masked", "qk_norm": false,
                "position": "rope", "t5_num_buckets": 32, "t5_max_distance": 128, "rope_theta": 10000.0},
  "layers": [{"type": "transformer"},
             {"type": "bst", "context": "single_head", "ssm": {"kernel": "s4d", "state_size": 8}}],
  "tokenizer": {"type": "byte"},
  "bos_token_id": 256, "eos_token_id": 257, "pad_token_id": 258
})";

 private:
  static void Write(const std::string& path, std::string_view text) {
    std::ofstream file(path, std::ios::binary);
    file << text;
    file.close();
    BST_CHECK(file.good(), path);
  }

  std::string directory_;
};

}  // namespace bst
