// bst-init: writes a checkpoint with random weights. See random_checkpoint.h.
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <map>
#include <string>

#include "CLI/CLI.hpp"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "engine/checkpoint/checkpoint.h"
#include "engine/checkpoint/random_checkpoint.h"

namespace {

constexpr int kFailure = 1;
constexpr int kWrongUsage = 2;

// What was written, read back as the server will read it.
int Report(const bst::RandomCheckpointOptions& options) {
  const absl::StatusOr<bst::Checkpoint> checkpoint = bst::Checkpoint::Open(options.directory);
  if (!checkpoint.ok()) {
    std::fprintf(stderr, "bst-init: what was written does not load: %s\n",
                 checkpoint.status().ToString().c_str());
    return kFailure;
  }
  std::printf(
      "%s: %zu layers, %lld parameters, %s, seed %llu\n", options.directory.c_str(),
      checkpoint->config().layers.size(), static_cast<long long>(checkpoint->num_parameters()),
      std::string(bst::Name(options.dtype)).c_str(), static_cast<unsigned long long>(options.seed));
  const std::string& tokenizer = checkpoint->config().tokenizer.file;
  if (!tokenizer.empty() &&
      !std::filesystem::exists(absl::StrCat(options.directory, "/", tokenizer))) {
    std::printf(
        "The configuration names a SentencePiece model that is not there yet: put it at %s/%s, "
        "or run again with --tokenizer FILE.\n",
        options.directory.c_str(), tokenizer.c_str());
  }
  return 0;
}

// CLI11 would let -1 wrap around to 2^64 - 1 and stop 2^64 there.
std::string CheckSeed(const std::string& number) {
  uint64_t seed = 0;
  return absl::SimpleAtoi(number, &seed) ? "" : number + " is no number from 0 to 2^64 - 1";
}

}  // namespace

int main(int argc, char** argv) {
  bst::RandomCheckpointOptions options;
  CLI::App app(
      "Writes a checkpoint with random weights: config.json and model.safetensors in a directory\n"
      "that the server loads with --model=DIR. For tests and load tests; the model knows nothing.\n"
      "Layers may be transformer, bst (single_head, multi_head, multi_filter), brect and gss;\n"
      "kernels s4d, dss, s4, s5 and explicit. Every one gets an initialisation with activations\n"
      "and logits of the size that a trained model has: modes that decay over 20 to 2000 tokens,\n"
      "explicit filters whose taps decay, recurrent states of which a block keeps 3/4.",
      "bst-init");
  app.footer(
      "The same configuration, seed and dtype give the same file.\n\n"
      "Example:\n"
      "  bst-init --config tests/golden/bst_single_head_s4d/config.json --out /tmp/tiny --seed "
      "1\n\n"
      "Exit code: 0 written, 1 failed (the reason is on stderr), 2 wrong usage.");
  app.add_option("--config", options.config_path,
                 "The model's config.json; copied into DIR as it is")
      ->required()
      ->type_name("FILE");
  app.add_option(
         "--out", options.directory,
         "The checkpoint directory; created if need be, a model.safetensors in it is replaced")
      ->required()
      ->type_name("DIR");
  app.add_option("--seed", options.seed, "Seed of the random weights, 0 .. 2^64 - 1")
      ->required()
      ->check(CLI::Validator(CheckSeed, ""))
      ->type_name("N");
  const std::map<std::string, bst::DType> dtypes = {
      {"bf16", bst::DType::kBF16}, {"f16", bst::DType::kF16}, {"f32", bst::DType::kF32}};
  std::string dtype = "bf16";
  app.add_option("--dtype", dtype, "Type of the stored matrices and gains; bf16 if not given")
      ->check(CLI::IsMember(&dtypes).description("bf16, f16 or f32"))
      ->type_name("TYPE");
  app.add_option("--tokenizer", options.tokenizer_path,
                 "A SentencePiece model to copy into DIR under the name that config.json gives it")
      ->type_name("FILE");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : kWrongUsage;  // --help is an "error" of code 0
  }
  options.dtype = dtypes.at(dtype);
  const absl::Status status = bst::WriteRandomCheckpoint(options);
  if (!status.ok()) {
    std::fprintf(stderr, "bst-init: %s\n", std::string(status.message()).c_str());
    return kFailure;
  }
  return Report(options);
}
