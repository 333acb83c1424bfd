#include "engine/checkpoint/random_checkpoint.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <filesystem>
#include <fstream>
#include <numbers>
#include <random>
#include <string_view>
#include <system_error>
#include <unordered_map>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/base/annotate.h"
#include "engine/base/status_macros.h"
#include "engine/checkpoint/json.h"
#include "engine/checkpoint/model_config.h"
#include "engine/checkpoint/safetensors_writer.h"
#include "engine/checkpoint/tensor_schema.h"

namespace bst {
namespace {

constexpr double kEmbeddingDeviation = 0.02;
constexpr double kPositionBiasDeviation = 0.05;
constexpr double kContextIdDeviation = 0.5;
constexpr double kStateGateBiasMean = 1.0;
constexpr int64_t kPieceElements = int64_t{1} << 18;  // drawn, converted and written at a time

// std::normal_distribution differs between standard libraries; the engine beneath does not.
class RandomStream {
 public:
  RandomStream(uint64_t seed, std::string_view name) : engine_(seed ^ Fnv1a(name)) {}

  double Uniform() {  // [0, 1)
    return static_cast<double>(engine_() >> 11) * 0x1p-53;
  }
  double Normal() {  // Box and Muller; the second number of each pair is kept for the next call.
    if (has_spare_) {
      has_spare_ = false;
      return spare_;
    }
    const double radius = std::sqrt(-2.0 * std::log1p(-Uniform()));
    const double angle = 2.0 * std::numbers::pi * Uniform();
    spare_ = radius * std::sin(angle);
    has_spare_ = true;
    return radius * std::cos(angle);
  }

 private:
  static uint64_t Fnv1a(std::string_view text) {
    uint64_t hash = 0xcbf29ce484222325u;
    for (const char c : text) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
    return hash;
  }

  std::mt19937_64 engine_;
  double spare_ = 0;
  bool has_spare_ = false;
};

double FanInDeviation(const TensorSpec& spec) {
  return 1.0 / std::sqrt(static_cast<double>(spec.shape[spec.shape.rank() - 1]));
}

// rms(x) has length sqrt(D), so embeddings of deviation s give logits of s sqrt(D) logit_scale. The
// limits keep the gain within binary16 for any logit_scale.
double FinalNormGain(const ModelConfig& config) {
  const double deviation = kEmbeddingDeviation * std::sqrt(config.hidden_size) *
                           std::abs(static_cast<double>(config.logit_scale));
  return std::clamp(1.0 / deviation, 1e-4, 1e4);
}

// a_imag of mode m of M = N / 2, close to the eigenvalues of HiPPO-LegS (S4D-Inv, arXiv
// 2206.11893).
double S4AImag(int64_t mode, int64_t modes) {
  const auto size = static_cast<double>(2 * modes);
  return size / std::numbers::pi * (size / static_cast<double>(2 * mode + 1) - 1.0);
}

double S4P(int64_t mode, int64_t modes) {
  return std::sqrt(2.0 / std::numbers::pi * S4AImag(mode, modes));
}

// The deviation of tap l of a filter of `length` taps. Time constants run from 1 token to a quarter
// of the filter, over the features in the order of a golden-ratio sequence: neighbours differ.
double TapDeviation(int64_t feature, int64_t l, int64_t length) {
  const double fraction = std::fmod(static_cast<double>(feature) * (std::numbers::phi - 1.0), 1.0);
  const double longest = std::max(1.0, static_cast<double>(length) / 4.0);
  const double rate = std::pow(longest, -fraction);  // 1 / tau
  // sum over l of e^{-2 rate l}
  const double energy =
      std::expm1(-2.0 * rate * static_cast<double>(length)) / std::expm1(-2.0 * rate);
  return std::exp(-rate * static_cast<double>(l)) / std::sqrt(energy);
}

// Element `index` of a tensor; called for 0, 1, 2, ...
double Draw(const TensorSpec& spec, const ModelConfig& config, int64_t index,
            RandomStream& random) {
  const int rank = spec.shape.rank();
  const int64_t innermost = spec.shape[rank - 1];
  // Of complex numbers, stored as (real, imaginary) along the last dimension.
  const bool is_real = index % 2 == 0;
  const int64_t modes = rank > 1 ? spec.shape[rank - 2] : 1;
  switch (spec.role) {
    case TensorRole::kEmbedding:
      return kEmbeddingDeviation * random.Normal();
    case TensorRole::kMatrix:
      return FanInDeviation(spec) * random.Normal();
    case TensorRole::kOutputMatrix:
      return FanInDeviation(spec) / std::sqrt(2.0 * static_cast<double>(config.layers.size())) *
             random.Normal();
    case TensorRole::kNormGain:
      return spec.name == "final_norm.weight" ? FinalNormGain(config) : 1.0;
    case TensorRole::kAttentionScale:
      return 8.0;
    case TensorRole::kPositionBias:
      return kPositionBiasDeviation * random.Normal();
    case TensorRole::kContextIds:
      return kContextIdDeviation * random.Normal();
    case TensorRole::kInitialContext:
      return random.Normal();
    case TensorRole::kStateGateBias:
      return kStateGateBiasMean + random.Normal();
    case TensorRole::kSsmLogDt:
      return std::log(1e-3) + (std::log(1e-1) - std::log(1e-3)) * random.Uniform();
    case TensorRole::kSsmLogNegAReal:
      return std::log(0.5);
    case TensorRole::kSsmAReal:
      return -0.5;
    case TensorRole::kSsmAImag:
      return std::numbers::pi * static_cast<double>(index % innermost);
    case TensorRole::kSsmB:
      return is_real ? 1.0 : 0.0;
    case TensorRole::kSsmC:
      return std::numbers::sqrt2 / 2 * random.Normal();
    case TensorRole::kSsmD:
      return random.Normal();
    case TensorRole::kS4AImag:
      return S4AImag(index % innermost, innermost);
    case TensorRole::kS4P:
      return is_real ? S4P(index / 2 % modes, modes) : 0.0;
    case TensorRole::kS4B:
      return is_real ? std::numbers::sqrt2 * S4P(index / 2 % modes, modes) : 0.0;
    case TensorRole::kS5B:  // [P, D, 2]
      return std::sqrt(0.5 / static_cast<double>(spec.shape[1])) * random.Normal();
    case TensorRole::kFilter:
      return TapDeviation(index / innermost, index % innermost, innermost) * random.Normal();
  }
  return 0;
}

absl::Status AppendPiece(SafetensorsWriter& writer, const std::vector<float>& values, DType dtype) {
  if (dtype == DType::kF32) return writer.Append(values.data(), values.size() * sizeof(float));
  std::vector<uint16_t> halves(values.size());
  std::transform(values.begin(), values.end(), halves.begin(), [dtype](float x) {
    return dtype == DType::kBF16 ? ToBFloat16(x).bits : ToFloat16(x).bits;
  });
  return writer.Append(halves.data(), halves.size() * sizeof(uint16_t));
}

absl::Status WriteTensors(const std::string& path, const ModelConfig& config,
                          const RandomCheckpointOptions& options) {
  std::vector<SafetensorsWriter::Entry> entries;
  std::unordered_map<std::string, TensorSpec> specs;
  for (TensorSpec& spec : TensorSchema(config)) {
    entries.push_back({spec.name, spec.f32_only ? DType::kF32 : options.dtype, spec.shape});
    specs.emplace(spec.name, std::move(spec));
  }
  BST_ASSIGN_OR_RETURN(SafetensorsWriter writer,
                       SafetensorsWriter::Create(path, std::move(entries)));
  std::vector<float> values;
  for (const SafetensorsWriter::Entry& entry : writer.order()) {
    const TensorSpec& spec = specs.at(entry.name);
    RandomStream random(options.seed, entry.name);
    const int64_t count = entry.shape.num_elements();
    for (int64_t begin = 0; begin < count; begin += kPieceElements) {
      const int64_t end = std::min(begin + kPieceElements, count);
      values.clear();
      for (int64_t i = begin; i < end; ++i)
        values.push_back(static_cast<float>(Draw(spec, config, i, random)));
      BST_RETURN_IF_ERROR(AppendPiece(writer, values, entry.dtype));
    }
  }
  return writer.Finish();
}

absl::Status WriteText(const std::string& path, const std::string& text) {
  std::ofstream file(path, std::ios::binary);
  file << text;
  file.close();
  if (!file) return absl::InternalError(absl::StrCat("cannot write ", path));
  return absl::OkStatus();
}

absl::Status CopyTokenizer(const TokenizerConfig& tokenizer,
                           const RandomCheckpointOptions& options) {
  if (options.tokenizer_path.empty()) return absl::OkStatus();
  if (tokenizer.type != TokenizerConfig::Type::kSentencePiece) {
    return absl::InvalidArgumentError(absl::StrCat("a tokenizer file is given (",
                                                   options.tokenizer_path,
                                                   "), but `tokenizer.type` is \"byte\""));
  }
  std::error_code error;
  const std::string target = absl::StrCat(options.directory, "/", tokenizer.file);
  if (std::filesystem::equivalent(options.tokenizer_path, target, error)) return absl::OkStatus();
  std::filesystem::copy_file(options.tokenizer_path, target,
                             std::filesystem::copy_options::overwrite_existing, error);
  if (!error) return absl::OkStatus();
  const auto code = error == std::errc::no_such_file_or_directory ? absl::StatusCode::kNotFound
                                                                  : absl::StatusCode::kInternal;
  return absl::Status(code, absl::StrCat("cannot copy ", options.tokenizer_path, " to ", target,
                                         ": ", error.message()));
}

}  // namespace

absl::Status WriteRandomCheckpoint(const RandomCheckpointOptions& options) {
  BST_ASSIGN_OR_RETURN(const std::string text,
                       ReadTextFile(options.config_path, kMaxJsonFileBytes));
  const absl::StatusOr<ModelConfig> config = ParseModelConfig(text);
  if (!config.ok()) return Annotate(config.status(), options.config_path);

  std::error_code error;
  const std::string index = options.directory + "/model.safetensors.index.json";
  if (std::filesystem::exists(index, error)) {
    return absl::FailedPreconditionError(
        absl::StrCat(index,
                     " names the weights of a checkpoint in several files, which are not replaced: "
                     "choose another directory, or remove them"));
  }
  std::filesystem::create_directories(options.directory, error);
  if (error)
    return absl::InternalError(
        absl::StrCat("cannot create ", options.directory, ": ", error.message()));
  BST_RETURN_IF_ERROR(CopyTokenizer(config->tokenizer, options));
  BST_RETURN_IF_ERROR(WriteTensors(options.directory + "/model.safetensors", *config, options));
  return WriteText(options.directory + "/config.json", text);
}

}  // namespace bst
