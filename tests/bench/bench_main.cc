// bst-bench: the performance figures that the README quotes, each by one command.
#include <cstdio>

#include "CLI/CLI.hpp"
#include "tests/bench/bench.h"

int main(int argc, char** argv) {
  CLI::App app(
      "Measures bst. Figures are ratios within one run wherever they can be; quote medians, name "
      "the machine.\n\n"
      "  bst-bench context --model models/bst-books-4m     is a token after a million as fast as "
      "after a thousand?\n"
      "  bst-bench layers                                  one layer of each kind against length: "
      "BST, BRecT, Transformer\n"
      "  bst-bench layers --decode-tokens 10000            is every layer's token as fast at the "
      "end?\n"
      "  bst-bench interference --model models/bst-books-4m   what do others feel of a long "
      "prompt?\n"
      "  bst-bench targets                                 a 100M model against the machine's "
      "limits\n"
      "  bst-bench operators                               the CPU backend's operators, at a 100M "
      "model's shapes\n"
      "  bst-bench roofline                                what a step costs at least on a GPU\n"
      "  bst-bench --backend=cuda                          the same beside what this GPU takes");
  std::string roofline_backend;
  app.add_option("--backend", roofline_backend,
                 "without a command: measure the roofline's steps on this backend (cuda)");
  app.require_subcommand(0, 1);
  CLI::App* roofline_app = app.add_subcommand(
      "roofline", "Bytes, operations and least times of a 400M and a 1.3B model's steps on GPUs.");

  bst::ContextBenchOptions context;
  CLI::App* context_app = app.add_subcommand(
      "context", "Prefill rate, memory and time per token against context length.");
  context_app->add_option("--model", context.model, "checkpoint directory")->required();
  const CLI::IsMember number_types({"auto", "f32", "bf16", "int8"});
  context_app->add_option("--backend", context.backend, "what computes")
      ->check(CLI::IsMember({"cpu", "reference"}))
      ->capture_default_str();
  context_app->add_option("--weights", context.weights, "number type")
      ->check(number_types)
      ->capture_default_str();
  context_app->add_option("--kv", context.kv, "number type of keys and values")
      ->check(number_types)
      ->capture_default_str();
  context_app->add_option("--threads", context.threads, "0: all cores")->capture_default_str();
  context_app->add_option("--lengths", context.lengths, "prompt lengths in tokens")
      ->capture_default_str();
  context_app->add_option("--new-tokens", context.new_tokens, "generated per length and round")
      ->capture_default_str();
  context_app->add_option("--rounds", context.rounds, "rounds; the median over them is quoted")
      ->capture_default_str();
  context_app->add_option("--chunk-tokens", context.chunk_tokens, "largest prompt chunk")
      ->capture_default_str();
  context_app->add_option("--json", context.json, "write the numbers to this file");

  bst::LayerBenchOptions layers;
  CLI::App* layers_app = app.add_subcommand(
      "layers", "Forward time of one layer against sequence length, at W = 128, width 512.");
  layers_app->add_option("--backend", layers.backend, "what computes")
      ->check(CLI::IsMember({"cpu", "cuda", "reference"}))
      ->capture_default_str();
  layers_app->add_option("--weights", layers.weights, "f32 or bf16, also of keys and values")
      ->check(CLI::IsMember({"f32", "bf16"}))
      ->capture_default_str();
  layers_app->add_option("--threads", layers.threads, "0: all cores")->capture_default_str();
  layers_app->add_option("--lengths", layers.lengths, "sequence lengths in tokens")
      ->capture_default_str();
  layers_app->add_option("--rounds", layers.rounds, "the median over them is quoted")
      ->capture_default_str();
  layers_app->add_option("--chunk-tokens", layers.chunk_tokens, "tokens per forward pass")
      ->capture_default_str();
  layers_app->add_option("--decode-tokens", layers.decode_tokens,
                         "instead: decode this many tokens one by one with every kernel");
  layers_app->add_flag("--all", layers.all, "every kernel, not only the paper's five layers");
  layers_app->add_option("--only", layers.only, "these kinds alone, e.g. brect bst_single_head");
  layers_app->add_option("--json", layers.json, "write the numbers to this file");

  bst::InterferenceBenchOptions interference;
  CLI::App* interference_app = app.add_subcommand(
      "interference", "First tokens and gaps between tokens while a long prompt is read.");
  interference_app->add_option("--model", interference.model, "checkpoint directory")->required();
  interference_app->add_option("--threads", interference.threads, "0: all cores")
      ->capture_default_str();
  interference_app->add_option("--long-tokens", interference.long_tokens, "of the long prompt")
      ->capture_default_str();
  interference_app->add_option("--short-tokens", interference.short_tokens, "of a short prompt")
      ->capture_default_str();
  interference_app->add_option("--streams", interference.streams, "that decode meanwhile")
      ->capture_default_str();
  interference_app
      ->add_option("--interval-ms", interference.interval_ms,
                   "between the short requests, on average")
      ->capture_default_str();
  interference_app->add_option("--seconds", interference.seconds, "at most")->capture_default_str();
  interference_app->add_option("--target-step-ms", interference.target_step_ms,
                               "0: the engine's default");
  interference_app->add_option("--chunk-tokens", interference.chunk_tokens,
                               "0: the engine's default");

  bst::TargetBenchOptions targets;
  CLI::App* targets_app = app.add_subcommand(
      "targets",
      "Prefill, decode and state of a 100M-parameter model beside the machine's limits.");
  targets_app->add_option("--threads", targets.threads, "one or several; 0: all cores")
      ->capture_default_str();
  targets_app
      ->add_option("--lengths", targets.lengths,
                   "context lengths in tokens; beyond 65,536 with the most threads alone")
      ->capture_default_str();
  targets_app->add_option("--max-f32-length", targets.max_f32_length, "of the float32 weights")
      ->capture_default_str();
  targets_app->add_option("--rounds", targets.rounds, "the median over them is quoted")
      ->capture_default_str();
  targets_app->add_option("--chunk-tokens", targets.chunk_tokens, "tokens per forward pass")
      ->capture_default_str();
  targets_app->add_option("--streams", targets.streams, "numbers of sequences that decode together")
      ->capture_default_str();
  targets_app->add_option("--decode-steps", targets.decode_steps, "the median over them is quoted")
      ->capture_default_str();
  targets_app->add_option("--types", targets.types, "these alone, e.g. bf16 int8+kv")
      ->check(CLI::IsMember({"f32", "bf16", "int8", "int8+kv"}));
  targets_app->add_flag(
      "--profile", targets.profile,
      "instead: where the time of a prompt's chunk and of decode steps goes, by operator");
  targets_app->add_option("--json", targets.json, "write the numbers to this file");

  std::string filter = ".";
  double min_time = 0.2;
  CLI::App* operators_app =
      app.add_subcommand("operators", "The CPU backend's operators (Google Benchmark).");
  operators_app->add_option("--filter", filter, "regular expression on the names")
      ->capture_default_str();
  operators_app->add_option("--min-time", min_time, "seconds per benchmark")->capture_default_str();
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;  // --help is an "error" of code 0
  }

  if (*context_app) return bst::RunContextBench(context);
  if (*interference_app) return bst::RunInterferenceBench(interference);
  if (*layers_app) return bst::RunLayerBench(layers);
  if (*targets_app) return bst::RunTargetBench(targets);
  if (*operators_app) return bst::RunOperatorBench(argv[0], filter, min_time);
  if (*roofline_app || !roofline_backend.empty()) return bst::RunRooflineBench(roofline_backend);
  std::fputs(app.help().c_str(), stderr);
  return 2;
}
