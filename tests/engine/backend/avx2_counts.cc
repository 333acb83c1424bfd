// Runs one operator of the AVX2 backend a number of times, for avx2_counts_test.py, which counts
// its instructions.
//
//   avx2_counts OPERATOR TIMES
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "engine/backend/cpu/cpu_backend.h"

namespace bst {
namespace {

std::vector<float> Random(int64_t count) {
  std::mt19937 random(1);
  std::uniform_real_distribution<float> uniform(-1, 1);
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) value = uniform(random);
  return values;
}

TensorView View(std::vector<float>& values, Shape shape) {
  return {values.data(), DType::kF32, shape};
}

std::function<void()> Linear(Backend& backend, DType type, int rows) {
  constexpr int kIn = 256, kOut = 256;
  std::vector<float> matrix = Random(kIn * kOut);
  auto weights = std::shared_ptr(*backend.PackLinear({View(matrix, {kOut, kIn})}, type));
  return [&backend, weights, rows, x = Random(rows * kIn), out = Random(rows * kOut)]() mutable {
    backend.Linear(View(x, {rows, kIn}), *weights, {}, View(out, {rows, kOut}));
  };
}

// The queries of one head, from the second block on.
std::function<void()> Attention(Backend& backend, DType type, int queries) {
  constexpr int kHeadDim = 64, kWindow = 128;
  std::vector<float> scale = {0.125f};
  const AttentionParameters parameters = {
      .spec = {.num_heads = 1, .head_dim = kHeadDim, .window = kWindow, .kv_type = type},
      .scale = View(scale, {1}),
      .bias = {}};
  auto weights = std::shared_ptr(*backend.PackAttention(parameters));
  const size_t bytes = backend.RingBytes(parameters.spec);
  auto memory = std::make_shared<Buffer>(*backend.Allocate(bytes));
  const int64_t size = int64_t{queries} * kHeadDim;
  return [&backend, weights, memory, bytes, queries, q = Random(size), k = Random(size),
          v = Random(size), out = Random(size)]() mutable {
    const Shape shape = {queries, kHeadDim};
    backend.Attention(*weights, View(q, shape), View(k, shape), View(v, shape),
                      {{.slot = SlotId(0), .begin = 0, .end = queries, .position = kWindow}},
                      {static_cast<std::byte*>(memory->data()), bytes}, View(out, shape));
  };
}

std::function<void()> Ssm(Backend& backend, int tokens) {
  constexpr int kFeatures = 64, kModes = 16;
  std::vector<float> e = Random(kFeatures * kModes * 2), b = e, c = e, d = Random(kFeatures);
  for (float& x : e) x = -0.01f - 0.005f * x;
  const Shape shape = {kFeatures, kModes, 2};
  auto weights = std::shared_ptr(*backend.PackSsm({.spec = {.num_inputs = kFeatures},
                                                   .a_minus_one = View(e, shape),
                                                   .b = View(b, shape),
                                                   .c = View(c, shape),
                                                   .d = View(d, {kFeatures})}));
  const size_t bytes = backend.SsmStateBytes(*weights);
  auto memory = std::make_shared<Buffer>(*backend.Allocate(bytes));
  return [&backend, weights, memory, bytes, tokens, u = Random(tokens * kFeatures),
          y = Random(tokens * kFeatures)]() mutable {
    backend.Ssm(*weights, View(u, {tokens, kFeatures}),
                {{.slot = SlotId(0), .begin = 0, .end = tokens, .position = 0}},
                {static_cast<std::byte*>(memory->data()), bytes}, View(y, {tokens, kFeatures}));
  };
}

std::function<void()> RmsNorm(Backend& backend, int rows) {
  constexpr int kWidth = 256;
  return [&backend, rows, x = Random(rows * kWidth), gain = Random(kWidth)]() mutable {
    backend.RmsNorm(View(x, {rows, kWidth}), View(gain, {kWidth}), 1e-6f, View(x, {rows, kWidth}));
  };
}

std::function<void()> Gate(Backend& backend, int rows) {
  constexpr int kWidth = 256;
  return [&backend, rows, x = Random(rows * 2 * kWidth), out = Random(rows * kWidth)]() mutable {
    backend.Gate(View(x, {rows, 2 * kWidth}), GateActivation::kGelu, View(out, {rows, kWidth}));
  };
}

std::function<void()> Operator(Backend& backend, const std::string& name) {
  for (const auto& [suffix, type] :
       {std::pair("f32", DType::kF32), {"bf16", DType::kBF16}, {"int8", DType::kI8}}) {
    for (const int rows : {1, 24}) {
      const std::string end = std::string("_") + suffix + "_" + std::to_string(rows);
      if (name == "linear" + end) return Linear(backend, type, rows);
      if (name == "attention" + end) return Attention(backend, type, rows);
    }
  }
  if (name == "ssm_1") return Ssm(backend, 1);
  if (name == "ssm_24") return Ssm(backend, 24);
  if (name == "rms_norm_24") return RmsNorm(backend, 24);
  if (name == "gate_24") return Gate(backend, 24);
  return nullptr;
}

}  // namespace
}  // namespace bst

int main(int argc, char** argv) {
  const auto backend = bst::MakeCpuBackend({.threads = 1, .isa = bst::CpuIsa::kAvx2});
  if (!backend.ok()) {
    std::fprintf(stderr, "%s\n", backend.status().ToString().c_str());
    return 1;
  }
  const std::function<void()> run =
      argc == 3 ? bst::Operator(**backend, argv[1]) : std::function<void()>();
  if (!run) {
    std::fprintf(stderr, "usage: avx2_counts OPERATOR TIMES\n");
    return 2;
  }
  for (int i = 0; i < std::atoi(argv[2]); ++i) run();
  return 0;
}
