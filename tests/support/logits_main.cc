// bst-logits: runs checkpoints in process and writes the logits after every prompt token.
//
//   bst-logits --backend=cpu DIR...     reads DIR/tokens.json, writes DIR/logits.cpu.npy [L, V]
//   float32
#include <cstdio>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "engine/base/status_macros.h"
#include "tests/support/model_runner.h"
#include "tests/support/npy.h"

namespace bst {
namespace {

struct Options {
  std::string backend = "cpu";
  std::string weights = "auto";
  int split = 0;
  int chunk = 1024;
  std::vector<std::string> directories;
};

absl::Status Run(const Options& options, const std::string& directory) {
  BST_ASSIGN_OR_RETURN(const std::unique_ptr<Backend> backend, MakeBackend(options.backend));
  BST_ASSIGN_OR_RETURN(const std::vector<TokenId> tokens, ReadTokens(directory + "/tokens.json"));
  DType type = options.weights == "int8"   ? DType::kI8
               : options.weights == "bf16" ? DType::kBF16
                                           : DType::kF32;
  if (options.weights == "auto") {
    BST_ASSIGN_OR_RETURN(const Checkpoint checkpoint, Checkpoint::Open(directory));
    type = checkpoint.has_f32_matrices() ? DType::kF32 : DType::kBF16;
  }
  BST_ASSIGN_OR_RETURN(const std::unique_ptr<ModelRunner> runner,
                       ModelRunner::Create(directory, *backend, type, options.chunk));
  const int total = static_cast<int>(tokens.size()), vocab_size = runner->config().vocab_size;
  for (const TokenId token : tokens) {
    if (token.value() < vocab_size) continue;
    return absl::InvalidArgumentError(
        absl::StrCat("tokens.json: ", token.value(), " is not in the vocabulary of ", vocab_size));
  }
  if (options.split > total) {
    return absl::InvalidArgumentError(
        absl::StrCat("--split=", options.split, " of ", total, " tokens"));
  }
  const int prompt = options.split > 0 ? options.split : total;
  std::vector<int> lengths;
  for (int done = 0; done < prompt; done += lengths.back())
    lengths.push_back(std::min(options.chunk, prompt - done));
  lengths.insert(lengths.end(), static_cast<size_t>(total - prompt), 1);
  NpyMatrix logits{.rows = total, .columns = vocab_size, .values = runner->Logits(tokens, lengths)};
  return WriteNpy(directory + "/logits." + options.backend + ".npy", logits);
}

}  // namespace
}  // namespace bst

int main(int argc, char** argv) {
  CLI::App app(
      "Runs checkpoints in process on DIR/tokens.json and writes DIR/logits.BACKEND.npy, [L, V] "
      "float32.");
  bst::Options options;
  app.add_option("--backend", options.backend, "reference or cpu[:avx2|:avx512[:threads]]")
      ->capture_default_str();
  app.add_option("--weights", options.weights, "f32, bf16, int8 or auto (as stored)")
      ->check(CLI::IsMember({"f32", "bf16", "int8", "auto"}))
      ->capture_default_str();
  app.add_option("--split", options.split,
                 "tokens of the prompt; the others are fed one by one (0: all are prompt)")
      ->check(CLI::NonNegativeNumber);
  app.add_option("--chunk", options.chunk, "largest prompt chunk in tokens")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  app.add_option("DIR", options.directories, "checkpoint directories")->required();
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;  // --help is an "error" of code 0
  }
  for (const std::string& directory : options.directories) {
    if (const absl::Status status = bst::Run(options, directory); !status.ok()) {
      std::fprintf(stderr, "%s: %s\n", directory.c_str(), status.ToString().c_str());
      return 1;
    }
  }
  return 0;
}
