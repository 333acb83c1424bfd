#include "engine/checkpoint/checkpoint.h"

#include <sys/stat.h>

#include <filesystem>
#include <map>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/annotate.h"
#include "engine/base/check.h"
#include "engine/base/out_of_memory.h"
#include "engine/base/status_macros.h"
#include "engine/checkpoint/finite_scan.h"
#include "engine/checkpoint/generation_config.h"
#include "engine/checkpoint/json.h"
#include "engine/checkpoint/ssm_stability.h"
#include "engine/checkpoint/tensor_schema.h"
#include "engine/tensor/host_convert.h"
#include "nlohmann/json.hpp"

namespace bst {
namespace {

using nlohmann::json;

constexpr std::string_view kWeightsFile = "model.safetensors";
constexpr std::string_view kIndexFile = "model.safetensors.index.json";

bool Exists(const std::string& path) {
  struct stat info = {};
  return ::stat(path.c_str(), &info) == 0;
}

std::string Join(const std::string& directory, std::string_view file) {
  return absl::StrCat(directory, "/", std::string(file));
}

// Tensor name -> file name, from a shard index.
absl::StatusOr<std::map<std::string, std::string>> ReadIndex(const std::string& path) {
  BST_ASSIGN_OR_RETURN(const std::string text, ReadTextFile(path, kMaxJsonFileBytes));
  const absl::StatusOr<json> index = ParseJson(text);
  if (!index.ok()) return Annotate(index.status(), path);
  if (!index->is_object() || !index->contains("weight_map") ||
      !index->at("weight_map").is_object()) {
    return absl::FailedPreconditionError(absl::StrCat(path, ": no object `weight_map`"));
  }
  std::map<std::string, std::string> files;
  for (const auto& [tensor, file] : index->at("weight_map").items()) {
    if (!file.is_string() || !IsPlainFileName(file.get_ref<const std::string&>())) {
      return absl::FailedPreconditionError(
          absl::StrCat(path, ": tensor '", Excerpt(tensor), "' is in ", Excerpt(file.dump()),
                       ", must be the name of a file in the checkpoint directory"));
    }
    files.emplace(tensor, file.get<std::string>());
  }
  return files;
}

// Every shard holds exactly the tensors that the index says it holds.
absl::Status CheckShards(const std::string& index_path, std::map<std::string, std::string> index,
                         const std::vector<SafetensorsFile>& shards, const std::string& directory) {
  for (const SafetensorsFile& shard : shards) {
    for (const auto& [name, view] : shard.tensors()) {
      const auto found = index.find(name);
      if (found == index.end() || Join(directory, found->second) != shard.path()) {
        return absl::FailedPreconditionError(absl::StrCat(shard.path(), ": tensor '", Excerpt(name),
                                                          "' is not listed for this file in ",
                                                          index_path));
      }
      index.erase(found);
    }
  }
  if (!index.empty()) {
    return absl::FailedPreconditionError(absl::StrCat(index_path, ": tensor '",
                                                      Excerpt(index.begin()->first), "' is not in ",
                                                      Excerpt(index.begin()->second)));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<SafetensorsFile>> OpenWeights(const std::string& directory) {
  const std::string single_path = Join(directory, kWeightsFile);
  const std::string index_path = Join(directory, kIndexFile);
  std::vector<SafetensorsFile> files;
  if (!Exists(index_path)) {
    BST_ASSIGN_OR_RETURN(SafetensorsFile file, SafetensorsFile::Open(single_path));
    files.push_back(std::move(file));
    return files;
  }
  BST_ASSIGN_OR_RETURN(auto index, ReadIndex(index_path));
  std::map<std::string, std::string, std::less<>> names;  // and the first tensor of each
  for (const auto& [tensor, file] : index) names.try_emplace(file, tensor);
  if (Exists(single_path) && !names.contains(kWeightsFile)) {
    return absl::FailedPreconditionError(
        absl::StrCat(directory, " holds both ", std::string(kWeightsFile), " and ",
                     std::string(kIndexFile), ", which names other files: remove one"));
  }
  for (const auto& [name, tensor] : names) {
    absl::StatusOr<SafetensorsFile> file = SafetensorsFile::Open(Join(directory, name));
    if (absl::IsNotFound(file.status())) {
      return Annotate(file.status(),
                      absl::StrCat(index_path, ": the file of tensor '", Excerpt(tensor), "'"));
    }
    BST_RETURN_IF_ERROR(file.status());
    files.push_back(*std::move(file));
  }
  BST_RETURN_IF_ERROR(CheckShards(index_path, std::move(index), files, directory));
  return files;
}

bool IsAllowed(DType dtype, const TensorSpec& spec) {
  if (spec.f32_only) return dtype == DType::kF32;
  return dtype == DType::kF32 || dtype == DType::kF16 || dtype == DType::kBF16;
}

absl::Status CheckTensor(const TensorSpec& spec, const TensorView& tensor) {
  if (tensor.shape() != spec.shape) {
    return absl::FailedPreconditionError(
        absl::StrCat("tensor '", spec.name, "' has shape ", tensor.shape().ToString(),
                     ", config.json asks for ", spec.shape.ToString()));
  }
  if (!IsAllowed(tensor.dtype(), spec)) {
    return absl::FailedPreconditionError(
        absl::StrCat("tensor '", spec.name, "' has dtype ", std::string(Name(tensor.dtype())),
                     ", must be ", spec.f32_only ? "F32" : "F32, F16 or BF16"));
  }
  if (const auto index = FirstNonFinite(tensor); index.has_value()) {
    return absl::FailedPreconditionError(
        absl::StrCat("tensor '", spec.name, "' at element ", spec.shape.PlaceOf(*index), " is ",
                     ElementAsFloat(tensor, *index), ", must be finite"));
  }
  return absl::OkStatus();
}

using TensorMap = std::map<std::string, TensorView, std::less<>>;

absl::Status CheckTensors(const ModelConfig& config, const TensorMap& tensors) {
  const std::vector<TensorSpec> schema = TensorSchema(config);
  std::set<std::string_view> known;
  for (const TensorSpec& spec : schema) known.insert(spec.name);
  for (const auto& [name, view] : tensors) {
    if (!known.contains(name)) {
      return absl::FailedPreconditionError(absl::StrCat(
          "tensor '", Excerpt(name), "' is superfluous: config.json asks for no such tensor"));
    }
  }
  for (const TensorSpec& spec : schema) {
    const auto found = tensors.find(spec.name);
    if (found == tensors.end()) {
      if (spec.optional) continue;
      return absl::FailedPreconditionError(
          absl::StrCat("tensor '", spec.name, "' ", spec.shape.ToString(), " is missing"));
    }
    BST_RETURN_IF_ERROR(CheckTensor(spec, found->second));
  }
  return absl::OkStatus();
}

// REQUIRES: CheckTensors succeeded.
absl::Status CheckStability(const ModelConfig& config, const TensorMap& tensors) {
  for (size_t i = 0; i < config.layers.size(); ++i) {
    const LayerConfig& layer = config.layers[i];
    if (!layer.has_ssm()) continue;
    BST_RETURN_IF_ERROR(CheckSsm(static_cast<int>(i), layer.ssm, [&tensors](std::string_view name) {
      return tensors.find(name)->second;
    }));
  }
  return absl::OkStatus();
}

bool IsMatrix(TensorRole role) {
  return role == TensorRole::kEmbedding || role == TensorRole::kMatrix ||
         role == TensorRole::kOutputMatrix;
}

}  // namespace

absl::StatusOr<Checkpoint> Checkpoint::Open(const std::string& directory) {
  return OrResourceExhausted(directory, [&] { return Read(directory); });
}

absl::StatusOr<Checkpoint> Checkpoint::Read(const std::string& directory) {
  std::error_code error;
  if (!std::filesystem::is_directory(directory, error)) {
    return absl::NotFoundError(absl::StrCat(directory, ": no such directory"));
  }
  Checkpoint checkpoint;
  checkpoint.directory_ = directory;

  const std::string config_path = Join(directory, "config.json");
  BST_ASSIGN_OR_RETURN(const std::string config_text, ReadTextFile(config_path, kMaxJsonFileBytes));
  absl::StatusOr<ModelConfig> config = ParseModelConfig(config_text);
  if (!config.ok()) return Annotate(config.status(), config_path);
  checkpoint.config_ = *std::move(config);

  const std::string generation_path = Join(directory, "generation_config.json");
  if (Exists(generation_path)) {
    BST_ASSIGN_OR_RETURN(const std::string text, ReadTextFile(generation_path, kMaxJsonFileBytes));
    absl::StatusOr<GenerationDefaults> defaults = ParseGenerationConfig(text);
    if (!defaults.ok()) return Annotate(defaults.status(), generation_path);
    checkpoint.generation_defaults_ = *defaults;
  }

  BST_ASSIGN_OR_RETURN(checkpoint.files_, OpenWeights(directory));
  for (const SafetensorsFile& file : checkpoint.files_) {
    for (const auto& [name, view] : file.tensors()) checkpoint.tensors_.emplace(name, view);
  }
  absl::Status status = CheckTensors(checkpoint.config_, checkpoint.tensors_);
  if (status.ok()) status = CheckStability(checkpoint.config_, checkpoint.tensors_);
  if (!status.ok()) return Annotate(status, directory);
  return checkpoint;
}

std::string Checkpoint::name() const {
  std::error_code error;
  std::filesystem::path path = std::filesystem::absolute(directory_, error).lexically_normal();
  if (!path.has_filename()) path = path.parent_path();  // "models/tiny/" and "models/tiny/."
  return path.has_filename() ? path.filename().string() : "model";
}

TensorView Checkpoint::Tensor(std::string_view name) const {
  const auto found = tensors_.find(name);
  BST_CHECK(found != tensors_.end(), "no tensor ", std::string(name));
  return found->second;
}

bool Checkpoint::Has(std::string_view name) const { return tensors_.contains(name); }

int64_t Checkpoint::num_parameters() const {
  int64_t count = 0;
  for (const auto& [name, view] : tensors_) count += view.shape().num_elements();
  return count;
}

bool Checkpoint::has_f32_matrices() const {
  for (const TensorSpec& spec : TensorSchema(config_)) {
    if (IsMatrix(spec.role) && Tensor(spec.name).dtype() == DType::kF32) return true;
  }
  return false;
}

}  // namespace bst
