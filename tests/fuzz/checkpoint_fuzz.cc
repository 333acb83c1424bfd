// Any bytes as a checkpoint directory: config.json up to the first byte 0, model.safetensors after
// it. The configuration's text is also read as a generation_config.json.
#include <stdlib.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <string>
#include <string_view>

#include "engine/checkpoint/checkpoint.h"
#include "engine/checkpoint/tensor_schema.h"

namespace {

// One directory for all inputs; left behind in the temporary directory when the process dies.
const std::string& Directory() {
  static const std::string* const directory = [] {
    auto* path = new std::string("/tmp/bst_checkpoint_fuzz_XXXXXX");
    if (::mkdtemp(path->data()) == nullptr) std::abort();
    return path;
  }();
  return *directory;
}

void Write(const std::string& path, std::string_view contents) {
  std::ofstream file(path, std::ios::binary);
  file.write(contents.data(), static_cast<std::streamsize>(contents.size()));
}

void Check(bool condition) {
  if (!condition) std::abort();
}

// What Checkpoint promises of one that it opened.
void CheckInvariants(const bst::Checkpoint& checkpoint) {
  const bst::ModelConfig& config = checkpoint.config();
  Check(!config.layers.empty() && config.norm_eps > 0 && std::isfinite(config.logit_scale));
  Check(checkpoint.num_parameters() > 0);
  for (const bst::TensorSpec& spec : bst::TensorSchema(config)) {
    Check(checkpoint.Has(spec.name) || spec.optional);
    if (checkpoint.Has(spec.name)) Check(checkpoint.Tensor(spec.name).shape() == spec.shape);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const std::string_view config = input.substr(0, input.find('\0'));
  const std::string_view tensors = input.substr(std::min(config.size() + 1, size));
  if (const auto defaults = bst::ParseGenerationConfig(config); defaults.ok()) {
    Check(!defaults->top_p.has_value() || (*defaults->top_p > 0 && *defaults->top_p <= 1));
  }
  Write(Directory() + "/config.json", config);
  Write(Directory() + "/model.safetensors", tensors);
  const absl::StatusOr<bst::Checkpoint> checkpoint = bst::Checkpoint::Open(Directory());
  if (checkpoint.ok()) {
    CheckInvariants(*checkpoint);
  } else {
    Check(!checkpoint.status().message().empty());
  }
  return 0;
}
