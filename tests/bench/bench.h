// The benchmarks of bst-bench. Each prints a table for people, and JSON for plots where asked.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace bst {

// Prompts of different lengths on one engine: prefill rate, memory, and time per generated token
// after each, measured in turn so that a drift of the machine meets all lengths alike.
struct ContextBenchOptions {
  std::string model;
  std::string backend = "cpu", weights = "auto", kv = "auto";
  int threads = 0;
  std::vector<int64_t> lengths = {1'000, 10'000, 100'000, 1'000'000};
  int new_tokens = 200;
  int rounds = 5;  // each round generates new_tokens after every length
  int chunk_tokens = 2048;
  std::string json;  // file for the numbers; empty: none
};
// Returns the process's exit status.
int RunContextBench(const ContextBenchOptions& options);

// One layer of each kind at width 512: forward time against sequence length, or, with
// decode_tokens, time per token over a long generation.
struct LayerBenchOptions {
  std::string backend = "cpu", weights = "bf16";
  int threads = 0;
  std::vector<int64_t> lengths = {1'024,  2'048,  4'096,   8'192,  16'384,
                                  32'768, 65'536, 131'072, 262'144};
  int rounds = 3;
  int chunk_tokens = 4'096;
  int decode_tokens = 0;
  bool all = false;               // every kernel, not only the layers of the paper's figure
  std::vector<std::string> only;  // these kinds alone
  std::string json;
};
int RunLayerBench(const LayerBenchOptions& options);

// A long prompt, decoding streams and short requests on one engine: time to the first token and
// between tokens.
struct InterferenceBenchOptions {
  std::string model;
  int threads = 0;
  int64_t long_tokens = 1'000'000;
  int short_tokens = 100;
  int streams = 8;
  int interval_ms = 200;   // on average, between a short request's end and the next one
  int seconds = 60;        // at most; the end of the long prompt ends it too
  int target_step_ms = 0;  // 0: the engine's default
  int chunk_tokens = 0;    // likewise
};
int RunInterferenceBench(const InterferenceBenchOptions& options);

// A 100M-parameter model with random weights: prefill and decode against context length, decode
// against the number of streams, all against threads, each beside the machine's limit measured in
// the same run (target_bench.cc).
struct TargetBenchOptions {
  std::vector<int> threads = {0};
  std::vector<int64_t> lengths = {512, 4'096, 16'384, 65'536, 262'144, 1'048'576};
  int64_t max_f32_length = 65'536;  // float32 weights are measured to there
  int rounds = 3;                   // the median over them is quoted; see kRepeatedLength
  int chunk_tokens = 2'048;
  std::vector<int> streams = {1, 32};  // that decode together
  int decode_steps = 50;               // the median over them is quoted
  std::vector<std::string> types;      // these alone: f32, bf16, int8, int8+kv
  bool profile = false;                // instead: where the time of each kind of step goes
  std::string json;
};
int RunTargetBench(const TargetBenchOptions& options);

// The roofline of the CUDA backend (roofline.h). `backend` empty: on paper, as Markdown; "cuda":
// measured beside predicted.
int RunRooflineBench(const std::string& backend);

// The operators of the CPU backend at the shapes of a 100M-parameter model (Google Benchmark).
int RunOperatorBench(const std::string& program, const std::string& filter,
                     double min_time_seconds);

}  // namespace bst
