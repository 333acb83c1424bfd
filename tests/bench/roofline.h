// The roofline of the CUDA backend: what a step of a model must at least move and compute, and the
// time that takes on a GPU whose datasheet rates are all it is given.
//
//   time = max(bytes / memory rate, operations / rate of the unit, chain * 4 cycles / clock)
//
// for every operator by itself, and their sum for a step: operators follow one another. Nothing is
// charged for starting a kernel.
//
// Threads   Engine thread only.
// Errors    As Model::Create, and kInternal where a scratch file cannot be written.
// Tested by tests/bench/roofline_test.cc
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "tests/bench/metered_backend.h"

namespace bst {

struct GpuRates {
  const char* name;
  const char* device;   // part of the name that the driver gives
  double tensor_bf16;   // operations per second, dense, float32 sums
  double float32;       // outside the tensor cores
  double bytes;         // per second, from and to its memory
  double clock;         // cycles per second
  double memory_bytes;  // how much it has
};
// NVIDIA's datasheets: H100 SXM5 80 GB, A100 SXM4 80 GB, H200 SXM 141 GB. A dependent operation of
// float32 takes four cycles on all.
inline constexpr GpuRates kGpus[] = {{"H100", "H100", 989.4e12, 66.9e12, 3.35e12, 1.98e9, 80e9},
                                     {"A100", "A100", 312e12, 19.5e12, 2.039e12, 1.41e9, 80e9},
                                     {"H200", "H200", 989.4e12, 66.9e12, 4.8e12, 1.98e9, 141e9}};
// The tables on paper have the first two of them.
inline constexpr absl::Span<const GpuRates> kPaperGpus(kGpus, 2);

struct RooflineModel {
  const char* name;
  std::string config;  // config.json
};
// "400m": the paper's decoder (arXiv 2306.09539: 12 layers, width 1,024, 8 heads of 128, W = 512,
// BST layers at three of them) with the feed-forward width that makes 400M parameters. "1.3b": 24
// layers of width 2,048.
std::vector<RooflineModel> RooflineModels();

// One step: a prompt chunk, or one token of each of `rows` sequences, and the logits of each row.
struct RooflineStep {
  std::string name;
  int rows = 1;
  int tokens = 1;
  std::vector<OperatorUse> operators;
  double seconds = 0;  // of the whole step, enqueued at once; 0 on paper

  double Bytes() const;
  double Operations() const;
  double PredictedSeconds(const GpuRates& gpu) const;
};
enum class Bound { kBytes, kOperations, kChain };
struct Prediction {
  double seconds = 0;
  Bound bound = Bound::kBytes;
};
Prediction Predict(const OperatorCost& cost, const GpuRates& gpu);

struct Roofline {
  int64_t parameters = 0;
  size_t weight_bytes = 0;
  size_t workspace_bytes = 0;  // activations and logits
  size_t slot_bytes = 0;       // of one sequence, at any length
  std::vector<RooflineStep> steps;
};

struct RooflineShape {
  int chunk_tokens = 2048;
  std::vector<int> batches = {1, 32, 256};
  int rounds = 20;   // of a step; the median over them is quoted
  int repeats = 20;  // of an operator
};

// Where the rows of a decode step stand, spread evenly over blocks of `window` tokens and over
// chunks of recurrences (engine/backend/cuda/kernels.h), whose bytes depend on it.
std::vector<int64_t> DecodePositions(int batch, int window);

// On paper with inner == nullptr; else measured too, with random weights: products of zeros draw
// less power, and a GPU runs them faster. BF16 weights, keys and values.
absl::StatusOr<Roofline> MakeRoofline(std::string_view config, Backend* inner,
                                      const RooflineShape& shape = {});

// A model's part of engine/backend/cuda/README.md: its first line, which says what the model is,
// and the tables.
absl::StatusOr<std::string> RooflineHeading(const RooflineModel& model);
std::string RooflineTables(const RooflineModel& model, const Roofline& roofline);
// Measured beside predicted, for people.
std::string MeasuredTable(const Roofline& roofline, const GpuRates& gpu);

}  // namespace bst
