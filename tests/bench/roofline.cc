#include "tests/bench/roofline.h"

#include <unistd.h>

#include <algorithm>
#include <bit>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <random>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "engine/base/status_macros.h"
#include "engine/checkpoint/checkpoint.h"
#include "engine/checkpoint/tensor_schema.h"
#include "engine/model/model.h"
#include "nlohmann/json.hpp"
#include "tests/support/statistics.h"

namespace bst {
namespace {

constexpr double kCyclesPerLink = 4;
constexpr int kDepth = 8192;  // tokens that a sequence has read before the step

std::string Config(int layers, int width, int heads, int ffn, const std::vector<int>& bst_layers) {
  nlohmann::json config = nlohmann::json::parse(R"({
    "model_type": "block_state_transformer", "format_version": 1, "vocab_size": 32000,
    "head_dim": 128, "ffn_activation": "relu", "window": 512, "norm_eps": 1e-6,
    "logit_scale": 1.0, "tie_embeddings": true,
    "attention": {"scope": "sliding", "include_self": true, "empty_prefix": "masked",
                  "qk_norm": true, "position": "t5", "t5_num_buckets": 32,
                  "t5_max_distance": 128, "rope_theta": 10000.0},
    "tokenizer": {"type": "byte"},
    "bos_token_id": null, "eos_token_id": null, "pad_token_id": null})");
  config["hidden_size"] = width;
  config["num_heads"] = heads;
  config["ffn_size"] = ffn;
  config["layers"] = nlohmann::json::array();
  for (int n = 0; n < layers; ++n) {
    const bool bst = std::find(bst_layers.begin(), bst_layers.end(), n) != bst_layers.end();
    config["layers"].push_back(
        nlohmann::json::parse(bst ? R"({"type": "bst", "context": "single_head",
                  "ssm": {"kernel": "s4d", "state_size": 16}})"
                                  : R"({"type": "transformer"})"));
  }
  return config.dump();
}

// Values of 2^-10 to 2^-6, either sign, or for float32 (norms, state-space parameters) of -2 to -1:
// modes decay.
void WriteRandom(std::ofstream& file, uint64_t bytes, bool f32) {
  std::mt19937 random(1);
  std::vector<uint32_t> words(1'000'003);  // no multiple of a row, or all would be alike
  for (uint32_t& word : words) {
    const auto bits = static_cast<uint32_t>(random());
    word = f32 ? 0xbf800000 | (bits >> 9) : 0;
    for (const int shift : {0, 16}) {
      const uint32_t half = bits >> shift;
      if (!f32) word |= ((half & 0x807f) | (117 + (half >> 7) % 4) << 7) << shift;
    }
  }
  for (uint64_t done = 0; done < bytes;) {
    const uint64_t n = std::min<uint64_t>(bytes - done, words.size() * sizeof(uint32_t));
    file.write(reinterpret_cast<const char*>(words.data()), static_cast<std::streamsize>(n));
    done += n;
  }
}

enum class Values { kNone, kRandom };
// With Values::kNone its file is one hole: of the right size, without a block on the disk.
absl::StatusOr<Checkpoint> SketchCheckpoint(std::string_view config, Values values,
                                            const std::filesystem::path& directory) {
  std::filesystem::create_directories(directory);
  std::ofstream(directory / "config.json") << config;
  BST_ASSIGN_OR_RETURN(const ModelConfig model, ParseModelConfig(config));
  nlohmann::json header;
  uint64_t offset = 0, f32_bytes = 0;
  for (const bool f32 : {true, false}) {  // those of four bytes first: all are aligned
    for (const TensorSpec& spec : TensorSchema(model)) {
      if (spec.f32_only != f32) continue;
      const uint64_t end =
          offset + static_cast<uint64_t>(spec.shape.num_elements()) * (f32 ? 4 : 2);
      header[spec.name] = {
          {"dtype", f32 ? "F32" : "BF16"},
          {"shape", std::vector<int64_t>(spec.shape.dims().begin(), spec.shape.dims().end())},
          {"data_offsets", {offset, end}}};
      offset = end;
      if (f32) f32_bytes = end;
    }
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');
  const std::string path = (directory / "model.safetensors").string();
  std::ofstream file(path, std::ios::binary);
  static_assert(std::endian::native == std::endian::little);
  const uint64_t length = text.size();
  file.write(reinterpret_cast<const char*>(&length), sizeof(length));
  file << text;
  if (values == Values::kRandom) {
    WriteRandom(file, f32_bytes, /*f32=*/true);
    WriteRandom(file, offset - f32_bytes, /*f32=*/false);
    if (!file) return absl::ResourceExhaustedError(absl::StrCat("no room for ", path));
  }
  file.close();
  std::error_code error;
  std::filesystem::resize_file(path, sizeof(length) + length + offset, error);
  if (!file || error) return absl::InternalError(absl::StrCat("cannot write ", path));
  return Checkpoint::Open(directory.string());
}

std::string Count(int64_t n) {  // 1,234,567
  const std::string digits = absl::StrCat(n);
  std::string text;
  for (size_t i = 0; i < digits.size(); ++i) {
    if (i > 0 && (digits.size() - i) % 3 == 0) text += ',';
    text += digits[i];
  }
  return text;
}

const char* Name(Bound bound) {
  switch (bound) {
    case Bound::kBytes:
      return "bytes";
    case Bound::kOperations:
      return "operations";
    case Bound::kChain:
      return "chain";
  }
  return "";
}

}  // namespace

std::vector<RooflineModel> RooflineModels() {
  return {{"400m", Config(12, 1024, 8, 12288, {1, 7, 9})},
          {"1.3b", Config(24, 2048, 16, 8192, {3, 7, 11, 15, 19, 23})}};
}

Prediction Predict(const OperatorCost& cost, const GpuRates& gpu) {
  const double rate = cost.unit == RooflineUnit::kTensorBf16 ? gpu.tensor_bf16 : gpu.float32;
  Prediction best = {cost.bytes / gpu.bytes, Bound::kBytes};
  for (const Prediction& other :
       {Prediction{cost.operations / rate, Bound::kOperations},
        Prediction{cost.chain * kCyclesPerLink / gpu.clock, Bound::kChain}}) {
    if (other.seconds > best.seconds) best = other;
  }
  return best;
}

double RooflineStep::Bytes() const {
  double sum = 0;
  for (const OperatorUse& use : operators) sum += use.cost.bytes;
  return sum;
}
double RooflineStep::Operations() const {
  double sum = 0;
  for (const OperatorUse& use : operators) sum += use.cost.operations;
  return sum;
}
double RooflineStep::PredictedSeconds(const GpuRates& gpu) const {
  double sum = 0;
  for (const OperatorUse& use : operators) sum += Predict(use.cost, gpu).seconds;
  return sum;
}

std::vector<int64_t> DecodePositions(int batch, int window) {
  // Each has a part of the block to itself. Where it stands in its part, multiples of the golden
  // ratio say, or all might have the same index in their chunks.
  constexpr double kGoldenRatio = 0.6180339887498949;
  std::vector<int64_t> positions;
  for (int i = 0; i < batch; ++i) {
    const double place = std::fmod(0.515 + i * kGoldenRatio, 1.0);
    positions.push_back(kDepth + static_cast<int64_t>((i + place) * window / batch));
  }
  return positions;
}

absl::StatusOr<Roofline> MakeRoofline(std::string_view config, Backend* inner,
                                      const RooflineShape& shape) {
  MeteredBackend backend(inner, shape.repeats);
  const std::filesystem::path scratch =
      std::filesystem::temp_directory_path() / absl::StrCat("bst_roofline_", ::getpid());
  const auto remove_scratch = absl::MakeCleanup([&] {
    std::error_code ignored;
    std::filesystem::remove_all(scratch, ignored);
  });
  const Values values = inner == nullptr ? Values::kNone : Values::kRandom;
  BST_ASSIGN_OR_RETURN(const Checkpoint checkpoint, SketchCheckpoint(config, values, scratch));
  const int most_rows = *std::max_element(shape.batches.begin(), shape.batches.end());
  BST_ASSIGN_OR_RETURN(const std::unique_ptr<Model> model,
                       Model::Create(checkpoint, backend,
                                     {.weights = DType::kBF16,
                                      .kv = DType::kBF16,
                                      .max_step_tokens = std::max(shape.chunk_tokens, most_rows),
                                      .max_logit_rows = most_rows,
                                      .max_rows = most_rows,
                                      .logits = LogitsPlace::kDevice}));
  const int vocab_size = checkpoint.config().vocab_size;
  BST_RETURN_IF_ERROR(backend.ReserveSampling(vocab_size, most_rows));
  Roofline roofline = {
      .parameters = checkpoint.num_parameters(),
      .weight_bytes = backend.weight_bytes(),
      .workspace_bytes = backend.allocated_bytes(),
      .slot_bytes = model->state_layout().bytes_per_slot() + backend.SamplingStateBytes(vocab_size),
      .steps = {}};
  BST_ASSIGN_OR_RETURN(const std::unique_ptr<StatePool> pool,
                       StatePool::Create(backend, model->state_layout(), most_rows));
  std::vector<SlotLease> leases;
  for (int i = 0; i < most_rows; ++i) leases.push_back(*pool->Acquire());

  const int window = checkpoint.config().window;
  const auto run = [&](const std::vector<Row>& rows) {
    std::vector<TokenId> tokens;
    for (int t = 0; t < rows.back().end; ++t) tokens.emplace_back(t * 37 % vocab_size);
    std::vector<int> last;
    std::vector<TokenDraw> draws;
    for (const Row& row : rows) {
      draws.push_back({.row = static_cast<int>(last.size())});
      last.push_back(row.end - 1);
    }
    std::vector<DrawResult> results(draws.size());
    model->Forward(tokens, rows, last, *pool);
    backend.SampleTokens(model->Logits(last), draws, {}, absl::MakeSpan(results), {});
  };
  const auto add_step = [&](const std::string& name, const std::vector<Row>& rows) -> absl::Status {
    RooflineStep step = {.name = name,
                         .rows = static_cast<int>(rows.size()),
                         .tokens = rows.back().end,
                         .operators = {}};
    if (inner != nullptr) {
      std::vector<double> seconds;
      for (int round = 0; round < shape.rounds; ++round) {
        const auto start = std::chrono::steady_clock::now();
        run(rows);
        BST_RETURN_IF_ERROR(backend.Sync());
        seconds.push_back(
            std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
      }
      step.seconds = Median(seconds);
    }
    backend.Start();
    run(rows);
    step.operators = backend.Stop();
    BST_RETURN_IF_ERROR(backend.Sync());
    roofline.steps.push_back(std::move(step));
    return absl::OkStatus();
  };

  BST_RETURN_IF_ERROR(add_step(
      absl::StrCat("prompt chunk of ", Count(shape.chunk_tokens)),
      {{.slot = leases[0].id(), .begin = 0, .end = shape.chunk_tokens, .position = kDepth}}));
  for (const int batch : shape.batches) {
    const std::vector<int64_t> positions = DecodePositions(batch, window);
    std::vector<Row> rows;
    for (int i = 0; i < batch; ++i) {
      const auto row = static_cast<size_t>(i);
      rows.push_back(
          {.slot = leases[row].id(), .begin = i, .end = i + 1, .position = positions[row]});
    }
    BST_RETURN_IF_ERROR(add_step(absl::StrCat("decode, batch ", batch), rows));
  }
  return roofline;
}

absl::StatusOr<std::string> RooflineHeading(const RooflineModel& model) {
  BST_ASSIGN_OR_RETURN(const ModelConfig config, ParseModelConfig(model.config));
  int64_t parameters = 0;
  for (const TensorSpec& spec : TensorSchema(config)) parameters += spec.shape.num_elements();
  std::vector<int> bst_layers;
  for (size_t n = 0; n < config.layers.size(); ++n) {
    if (config.layers[n].type == LayerType::kBst) bst_layers.push_back(static_cast<int>(n));
  }
  return absl::StrFormat(
      "### `%s`: %dM parameters. %d layers of width %d, %d heads of %d, FFN %d, W = %d; layers %s "
      "are BST, single-head, S4D, N = %d\n",
      model.name, (parameters + 500'000) / 1'000'000, config.layers.size(), config.hidden_size,
      config.num_heads, config.head_dim, config.ffn_size, config.window,
      absl::StrJoin(bst_layers, ", "),
      config.layers[static_cast<size_t>(bst_layers.front())].ssm.state_size);
}

std::string RooflineTables(const RooflineModel& model, const Roofline& roofline) {
  const double left =
      kGpus[0].memory_bytes - static_cast<double>(roofline.weight_bytes + roofline.workspace_bytes);
  std::string text = absl::StrFormat(
      "\nWeights %.2f GB, workspace %.2f GB, %.1f MB per sequence: **%s slots in 80 GB, at any "
      "context length.**\n\n"
      "| step | calls | GB | 10^9 operations | H100, ms | tokens/s | A100, ms | tokens/s |\n"
      "|---|---:|---:|---:|---:|---:|---:|---:|\n",
      static_cast<double>(roofline.weight_bytes) / 1e9,
      static_cast<double>(roofline.workspace_bytes) / 1e9,
      static_cast<double>(roofline.slot_bytes) / 1e6,
      Count(static_cast<int64_t>(left / static_cast<double>(roofline.slot_bytes))));
  for (const RooflineStep& step : roofline.steps) {
    int calls = 0;
    for (const OperatorUse& use : step.operators) calls += use.calls;
    absl::StrAppendFormat(&text, "| %s | %d | %.2f | %.1f |", step.name, calls, step.Bytes() / 1e9,
                          step.Operations() / 1e9);
    for (const GpuRates& gpu : kPaperGpus) {
      const double seconds = step.PredictedSeconds(gpu);
      absl::StrAppendFormat(&text, " %.2f | %s |", seconds * 1e3,
                            Count(static_cast<int64_t>(step.tokens / seconds)));
    }
    text += "\n";
  }
  for (const RooflineStep& step : roofline.steps) {
    absl::StrAppendFormat(
        &text,
        "\n`%s`, %s\n\n| operator | calls | MB | 10^9 operations | H100, µs | bound | "
        "A100, µs | bound |\n|---|---:|---:|---:|---:|---|---:|---|\n",
        model.name, step.name);
    for (const OperatorUse& use : step.operators) {
      absl::StrAppendFormat(&text, "| %s | %d | %.1f | %.2f |", use.name, use.calls,
                            use.cost.bytes / 1e6, use.cost.operations / 1e9);
      for (const GpuRates& gpu : kPaperGpus) {
        const Prediction prediction = Predict(use.cost, gpu);
        absl::StrAppendFormat(&text, " %.1f | %s |", prediction.seconds * 1e6,
                              Name(prediction.bound));
      }
      text += "\n";
    }
  }
  return text;
}

std::string MeasuredTable(const Roofline& roofline, const GpuRates& gpu) {
  std::string text = absl::StrFormat("%.0fM parameters; predicted from the rates of an %s\n",
                                     static_cast<double>(roofline.parameters) / 1e6, gpu.name);
  for (const RooflineStep& step : roofline.steps) {
    absl::StrAppendFormat(&text, "\n%s\n%-28s %5s %10s %10s %10s %13s %13s %9s\n", step.name,
                          "operator", "calls", "MB", "GFLOP", "bound", "predicted us",
                          "measured us", "fraction");
    for (const OperatorUse& use : step.operators) {
      const Prediction prediction = Predict(use.cost, gpu);
      absl::StrAppendFormat(&text, "%-28s %5d %10.1f %10.2f %10s %13.1f %13.1f %9.3f\n", use.name,
                            use.calls, use.cost.bytes / 1e6, use.cost.operations / 1e9,
                            Name(prediction.bound), prediction.seconds * 1e6, use.seconds * 1e6,
                            prediction.seconds / use.seconds);
    }
    const double predicted = step.PredictedSeconds(gpu);
    absl::StrAppendFormat(&text, "%-28s %5s %10.1f %10.2f %10s %13.1f %13.1f %9.3f\n",
                          "the step, enqueued at once", "", step.Bytes() / 1e6,
                          step.Operations() / 1e9, "", predicted * 1e6, step.seconds * 1e6,
                          predicted / step.seconds);
  }
  return text;
}

}  // namespace bst
