// Shapes of a 100M-parameter model: D = 768, 12 heads of 64, FFN 3072, W = 512, N = 16. Counters
// give operations per second, to be held against the machine's limits in
// engine/backend/cpu/README.md.
#include <algorithm>
#include <memory>
#include <random>
#include <vector>

#include "benchmark/benchmark.h"
#include "engine/backend/cpu/cpu_backend.h"
#include "engine/base/check.h"
#include "tests/bench/bench.h"

namespace bst {
namespace {

Backend& Cpu() {
  static const std::unique_ptr<Backend> backend = [] {
    auto made = MakeCpuBackend();
    BST_CHECK(made.ok(), made.status().ToString());
    return *std::move(made);
  }();
  return *backend;
}

struct Floats {
  explicit Floats(Shape shape, float scale = 1.0f)
      : values(static_cast<size_t>(shape.num_elements())), shape_(shape) {
    std::mt19937 random(1);
    std::normal_distribution<float> normal(0, scale);
    for (float& x : values) x = normal(random);
  }
  TensorView view() { return {values.data(), DType::kF32, shape_}; }

  std::vector<float> values;
  Shape shape_;
};

// args of benchmarks: 0 is F32, 1 BF16, 2 INT8
DType TypeOf(int64_t arg) { return arg == 0 ? DType::kF32 : arg == 1 ? DType::kBF16 : DType::kI8; }

// args: rows, in, out, type of the weights
void Linear(benchmark::State& state) {
  const int64_t rows = state.range(0), in = state.range(1), out = state.range(2);
  Floats w({out, in}, 0.03f), x({rows, in}), y({rows, out});
  const auto packed = *Cpu().PackLinear({w.view()}, TypeOf(state.range(3)));
  for (auto _ : state) {
    Cpu().Linear(x.view(), *packed, {}, y.view());
    benchmark::DoNotOptimize(y.values.data());
  }
  state.counters["flop"] = benchmark::Counter(static_cast<double>(2 * rows * in * out),
                                              benchmark::Counter::kIsIterationInvariantRate);
  state.counters["bytes"] = benchmark::Counter(static_cast<double>(packed->bytes()),
                                               benchmark::Counter::kIsIterationInvariantRate);
}
BENCHMARK(Linear)
    ->ArgNames({"rows", "in", "out", "type"})
    ->ArgsProduct({{1, 8, 32, 512}, {768}, {3072}, {0, 1, 2}})
    ->UseRealTime();

// The same with weights that no cache holds: one layer after the other out of 128 MB of them.
// args: rows, in, out, type of the weights
void LinearFromMemory(benchmark::State& state) {
  constexpr size_t kBytes = size_t{128} << 20;
  const int64_t rows = state.range(0), in = state.range(1), out = state.range(2);
  Floats w({out, in}, 0.03f), x({rows, in}), y({rows, out});
  std::vector<std::unique_ptr<LinearWeights>> layers;
  for (size_t bytes = 0; bytes < kBytes; bytes += layers.back()->bytes())
    layers.push_back(*Cpu().PackLinear({w.view()}, TypeOf(state.range(3))));
  size_t next = 0;
  for (auto _ : state) {
    Cpu().Linear(x.view(), *layers[next], {}, y.view());
    next = (next + 1) % layers.size();
  }
  state.counters["flop"] = benchmark::Counter(static_cast<double>(2 * rows * in * out),
                                              benchmark::Counter::kIsIterationInvariantRate);
  state.counters["bytes"] = benchmark::Counter(static_cast<double>(layers[0]->bytes()),
                                               benchmark::Counter::kIsIterationInvariantRate);
}
BENCHMARK(LinearFromMemory)
    ->ArgNames({"rows", "in", "out", "type"})
    ->ArgsProduct({{1, 8, 32}, {768}, {3072}, {1, 2}})
    ->UseRealTime();

AttentionSpec WindowSpec(DType type) {
  return {.num_heads = 12,
          .head_dim = 64,
          .window = 512,
          .scope = AttentionScope::kSliding,
          .include_self = true,
          .empty_prefix = EmptyPrefix::kMasked,
          .kv_type = type};
}

// args: rows (1: decode), type of the rings
void Attention(benchmark::State& state) {
  const int rows = static_cast<int>(state.range(0));
  const AttentionSpec spec = WindowSpec(TypeOf(state.range(1)));
  Floats scale({12}), qkv({rows, 3 * 768}), out({rows, 768});
  const TensorView q = qkv.view().Columns(0, 768), k = qkv.view().Columns(768, 2 * 768),
                   v = qkv.view().Columns(2 * 768, 3 * 768);
  const auto weights = *Cpu().PackAttention({.spec = spec, .scale = scale.view(), .bias = {}});
  const Buffer memory = *Cpu().Allocate(Cpu().RingBytes(spec));
  const PoolView ring = {static_cast<std::byte*>(memory.data()), memory.bytes()};
  int64_t position = 512;
  for (auto _ : state) {
    const Row row = {.slot = SlotId(0), .begin = 0, .end = rows, .position = position};
    Cpu().Attention(*weights, q, k, v, {row}, ring, out.view());
    position += rows;
  }
  state.counters["flop"] =
      benchmark::Counter(4.0 * rows * 512 * 768, benchmark::Counter::kIsIterationInvariantRate);
}
BENCHMARK(Attention)->ArgNames({"rows", "type"})->ArgsProduct({{1, 512}, {0, 1, 2}})->UseRealTime();

// A decode step of several sequences whose rings no cache holds: they take turns.
// args: sequences of a step, type of the rings
void DecodeAttention(benchmark::State& state) {
  constexpr int kSlots = 256;
  const int streams = static_cast<int>(state.range(0));
  const AttentionSpec spec = WindowSpec(TypeOf(state.range(1)));
  Floats scale({12}), q({streams, 768}), k({streams, 768}), v({streams, 768}), out({streams, 768});
  const auto weights = *Cpu().PackAttention({.spec = spec, .scale = scale.view(), .bias = {}});
  const size_t bytes = Cpu().RingBytes(spec);
  const Buffer memory = *Cpu().Allocate(kSlots * bytes);
  const PoolView rings = {static_cast<std::byte*>(memory.data()), bytes};
  std::vector<Row> rows;
  for (int i = 0; i < streams; ++i)
    rows.push_back({.slot = SlotId(0), .begin = i, .end = i + 1, .position = 700});
  int next = 0;
  for (auto _ : state) {
    for (Row& row : rows) {
      row.slot = SlotId(next);
      next = (next + 1) % kSlots;
    }
    Cpu().Attention(*weights, q.view(), k.view(), v.view(), rows, rings, out.view());
  }
  state.counters["bytes"] =
      benchmark::Counter(static_cast<double>(streams) * static_cast<double>(bytes),
                         benchmark::Counter::kIsIterationInvariantRate);
}
BENCHMARK(DecodeAttention)
    ->ArgNames({"streams", "type"})
    ->ArgsProduct({{1, 32}, {0, 1, 2}})
    ->UseRealTime();

// args: rows, filters
void RunSsm(benchmark::State& state, const SsmWeights& weights) {
  const int rows = static_cast<int>(state.range(0));
  const SsmSpec& spec = weights.spec();
  Floats u({rows, spec.num_inputs});
  Floats y(
      {spec.outputs == SsmOutputs::kEveryToken ? rows : rows / spec.block, spec.num_features()});
  const Buffer memory = *Cpu().Allocate(Cpu().SsmStateBytes(weights));
  const PoolView pool = {static_cast<std::byte*>(memory.data()), memory.bytes()};
  for (auto _ : state) {
    Cpu().Ssm(weights, u.view(), {Row{.slot = SlotId(0), .begin = 0, .end = rows, .position = 0}},
              pool, y.view());
  }
  state.counters["tokens"] =
      benchmark::Counter(rows, benchmark::Counter::kIsIterationInvariantRate);
  state.counters["token-features"] =
      benchmark::Counter(rows * spec.num_features(), benchmark::Counter::kIsIterationInvariantRate);
}

SsmSpec SpecOf(const benchmark::State& state) {
  const int filters = static_cast<int>(state.range(1));
  return {.num_inputs = 512,
          .num_filters = filters,
          .outputs = filters > 1 ? SsmOutputs::kBlockEnds : SsmOutputs::kEveryToken,
          .block = 512};
}

// Eight modes (N = 16) per feature; several filters give outputs at block ends.
void Ssm(benchmark::State& state) {
  const SsmSpec spec = SpecOf(state);
  const Shape shape = {spec.num_features(), 8, 2};
  Floats e(shape, 0.01f), b(shape), c(shape), d({spec.num_features()});
  for (size_t i = 0; i < e.values.size(); i += 2) e.values[i] = -0.05f;
  const auto weights = *Cpu().PackSsm(
      {.spec = spec, .a_minus_one = e.view(), .b = b.view(), .c = c.view(), .d = d.view()});
  RunSsm(state, *weights);
}
BENCHMARK(Ssm)
    ->ArgNames({"rows", "filters"})
    ->Args({1, 1})
    ->Args({512, 1})
    ->Args({512, 32})
    ->UseRealTime();

void Dplr(benchmark::State& state) {
  const SsmSpec spec = SpecOf(state);
  const Shape shape = {spec.num_features(), 8, 2};
  Floats l(shape, 0.01f), b(shape), p(shape, 0.01f), g(shape, 0.01f), w(shape, 0.01f), c(shape);
  Floats dt({spec.num_features()}, 0.01f), d({spec.num_features()});
  for (size_t i = 0; i < l.values.size(); i += 2) {
    l.values[i] = -0.05f;
    g.values[i] = 1.0f;
  }
  const auto weights = *Cpu().PackDplr({.spec = spec,
                                        .dt_lambda = l.view(),
                                        .dt_b = b.view(),
                                        .p = p.view(),
                                        .g = g.view(),
                                        .w = w.view(),
                                        .c = c.view(),
                                        .dt = dt.view(),
                                        .d = d.view()});
  RunSsm(state, *weights);
}
BENCHMARK(Dplr)
    ->ArgNames({"rows", "filters"})
    ->Args({1, 1})
    ->Args({512, 1})
    ->Args({512, 32})
    ->UseRealTime();

// args: rows (1: decode, over whole blocks), filters, outputs at block ends only or not
void Convolution(benchmark::State& state) {
  const int rows = static_cast<int>(state.range(0)), filters = static_cast<int>(state.range(1));
  constexpr int kInputs = 512, kBlock = 128, kTaps = 4096;
  const bool ends = state.range(2) != 0;
  const SsmSpec spec = {.num_inputs = kInputs,
                        .num_filters = filters,
                        .outputs = ends ? SsmOutputs::kBlockEnds : SsmOutputs::kEveryToken,
                        .block = kBlock};
  Floats taps({filters * kInputs, kTaps}, 0.02f), d({filters * kInputs}), u({rows, kInputs}),
      y({rows, filters * kInputs});
  const auto weights = *Cpu().PackConvolution({.spec = spec, .taps = taps.view(), .d = d.view()});
  const Buffer memory = *Cpu().Allocate(Cpu().SsmStateBytes(*weights));
  const PoolView pool = {static_cast<std::byte*>(memory.data()), memory.bytes()};
  // A decode iteration is a block of tokens: one of them makes what the others use.
  const int steps = std::max(1, kBlock / rows);
  int64_t position = kTaps;
  for (auto _ : state) {
    for (int step = 0; step < steps; ++step, position += rows) {
      const int64_t outputs = ends ? (position + rows) / kBlock - position / kBlock : rows;
      Cpu().Ssm(*weights, u.view(),
                {Row{.slot = SlotId(0), .begin = 0, .end = rows, .position = position}}, pool,
                y.view().Rows(0, outputs));
    }
  }
  state.counters["tokens"] =
      benchmark::Counter(rows * steps, benchmark::Counter::kIsIterationInvariantRate);
}
BENCHMARK(Convolution)
    ->ArgNames({"rows", "filters", "ends"})
    ->ArgsProduct({{1, 512}, {1}, {0}})
    ->ArgsProduct({{1, 512}, {16}, {1}})
    ->UseRealTime();

}  // namespace

int RunOperatorBench(const std::string& program, const std::string& filter,
                     double min_time_seconds) {
  std::vector<std::string> words = {program, "--benchmark_filter=" + filter,
                                    "--benchmark_min_time=" + std::to_string(min_time_seconds)};
  std::vector<char*> arguments;
  for (std::string& word : words) arguments.push_back(word.data());
  int count = static_cast<int>(arguments.size());
  benchmark::Initialize(&count, arguments.data());
  return benchmark::RunSpecifiedBenchmarks() > 0 ? 0 : 1;
}

}  // namespace bst
