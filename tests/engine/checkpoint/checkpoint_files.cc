#include "tests/engine/checkpoint/checkpoint_files.h"

#include <stdlib.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <utility>

#include "engine/base/check.h"
#include "engine/checkpoint/model_config.h"
#include "engine/checkpoint/safetensors_writer.h"
#include "engine/checkpoint/tensor_schema.h"
#include "gtest/gtest.h"

namespace bst {

TestDirectory::TestDirectory() : path_(testing::TempDir() + "/bst_checkpoint_XXXXXX") {
  BST_CHECK(::mkdtemp(path_.data()) != nullptr, path_);
}

TestDirectory::~TestDirectory() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

void TestDirectory::Write(std::string_view name, std::string_view contents) const {
  std::ofstream file(File(name), std::ios::binary);
  file << contents;
  file.close();
  BST_CHECK(file.good(), File(name));
}

std::string TestDirectory::Read(std::string_view name) const {
  std::ifstream file(File(name), std::ios::binary);
  BST_CHECK(file.good(), File(name));
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

const std::string_view kSmallConfig = R"({
  "model_type": "block_state_transformer", "format_version": 1,
  "vocab_size": 260, "hidden_size": 12, "num_heads": 2, "head_dim": 4, "ffn_size": 20,
  "ffn_activation": "geglu", "window": 8, "norm_eps": 1e-06, "logit_scale": 0.5, "tie_embeddings": false,
  "attention": {"scope": "sliding", "include_self": false, "empty_prefix": "zeros", "qk_norm": true,
                "position": "t5", "t5_num_buckets": 8, "t5_max_distance": 16, "rope_theta": 10000.0},
  "layers": [{"type": "transformer"},
             {"type": "bst", "context": "single_head",
              "ssm": {"kernel": "s4d", "state_size": 6, "discretization": "zoh"}}],
  "tokenizer": {"type": "byte"},
  "bos_token_id": 256, "eos_token_id": 257, "pad_token_id": null
})";

const std::string_view kFamilyConfig = R"({
  "model_type": "block_state_transformer", "format_version": 1,
  "vocab_size": 260, "hidden_size": 12, "num_heads": 2, "head_dim": 4, "ffn_size": 20,
  "ffn_activation": "geglu", "window": 8, "norm_eps": 1e-06, "logit_scale": 0.5, "tie_embeddings": false,
  "attention": {"scope": "sliding", "include_self": false, "empty_prefix": "zeros", "qk_norm": true,
                "position": "t5", "t5_num_buckets": 8, "t5_max_distance": 16, "rope_theta": 10000.0},
  "layers": [{"type": "transformer"},
             {"type": "bst", "context": "single_head",
              "ssm": {"kernel": "s4d", "state_size": 6, "discretization": "zoh"}},
             {"type": "bst", "context": "multi_head",
              "ssm": {"kernel": "s4", "state_size": 4, "discretization": "bilinear"}},
             {"type": "bst", "context": "multi_filter", "num_states": 3,
              "ssm": {"kernel": "dss", "state_size": 5, "discretization": "zoh"}},
             {"type": "bst", "context": "single_head",
              "ssm": {"kernel": "s5", "state_size": 6, "discretization": "bilinear"}},
             {"type": "bst", "context": "multi_filter", "num_states": 2,
              "ssm": {"kernel": "explicit", "length": 7}},
             {"type": "brect", "num_states": 4, "gate": "fixed"},
             {"type": "gss", "inner_size": 10, "ssm_size": 9,
              "ssm": {"kernel": "dss", "state_size": 3, "discretization": "zoh"}}],
  "tokenizer": {"type": "byte"},
  "bos_token_id": 256, "eos_token_id": 257, "pad_token_id": null
})";

StoredTensor MakeTensor(DType dtype, std::vector<int64_t> shape) {
  size_t bytes = SizeOf(dtype);
  for (const int64_t dim : shape) bytes *= static_cast<size_t>(dim);
  StoredTensor tensor = {dtype, std::move(shape), std::vector<std::byte>(bytes)};
  for (size_t i = 0; i < bytes / SizeOf(dtype); ++i) {
    const float value = 0.01f * static_cast<float>(i % 7) - 0.03f;
    if (dtype == DType::kF32) tensor.floats()[i] = value;
    if (dtype == DType::kF16) tensor.halves()[i] = ToFloat16(value).bits;
    if (dtype == DType::kBF16) tensor.halves()[i] = ToBFloat16(value).bits;
  }
  return tensor;
}

StoredTensors TensorsOf(std::string_view text) {
  StoredTensors tensors;
  const auto config = ParseModelConfig(text);
  BST_CHECK(config.ok(), config.status().ToString());
  for (const TensorSpec& spec : TensorSchema(*config)) {
    const auto dims = spec.shape.dims();
    StoredTensor& tensor = tensors[spec.name] =
        MakeTensor(spec.f32_only ? DType::kF32 : DType::kBF16, {dims.begin(), dims.end()});
    if (spec.role != TensorRole::kSsmAReal) continue;
    for (int64_t i = 0; i < spec.shape.num_elements(); ++i) tensor.floats()[i] -= 0.5f;
  }
  return tensors;
}

void WriteTensors(const std::string& path, StoredTensors& tensors) {
  std::vector<SafetensorsWriter::Entry> entries;
  for (const auto& [name, tensor] : tensors) {
    entries.push_back({name, tensor.dtype, Shape(tensor.shape)});
  }
  auto writer = SafetensorsWriter::Create(path, std::move(entries));
  BST_CHECK(writer.ok(), writer.status().ToString());
  for (const SafetensorsWriter::Entry& entry : writer->order()) {
    const StoredTensor& tensor = tensors.at(entry.name);
    const absl::Status status = writer->Append(tensor.bytes.data(), tensor.bytes.size());
    BST_CHECK(status.ok(), status.ToString());
  }
  const absl::Status status = writer->Finish();
  BST_CHECK(status.ok(), status.ToString());
}

std::string RawSafetensors(std::string_view header, size_t data_bytes) {
  const uint64_t length = header.size();
  std::string file(sizeof(length), '\0');
  std::memcpy(file.data(), &length, sizeof(length));
  return file.append(header).append(data_bytes, '\0');
}

}  // namespace bst
