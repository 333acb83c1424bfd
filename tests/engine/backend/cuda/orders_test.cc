// Every kernel, on the emulated device, in every order of threads and blocks: the same bits. Built
// plain, for AddressSanitizer and for ThreadSanitizer; operands end where their memory ends.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/backend/cuda/cuda_backend.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/cuda_on_cpu/emulator.h"

namespace bst {
namespace {

using cuda_on_cpu::Order;

// Random numbers, the same in every run; matrices are kept until the end of a workload, since
// streams are lazy.
class Workload {
 public:
  explicit Workload(Backend& backend) : backend_(backend) {}

  // One operator or two of every kind, over awkward shapes: more rows than a tile, columns that
  // fill no warp, keys in two tiles, rings that wrap, several rows of a step.
  void Run() {
    for (const DType type : {DType::kF32, DType::kBF16}) {
      Linears(type);
      Attention(type, 24);
      Context(type, 24);
      Embedding(type);
    }
    Attention(DType::kBF16, 130);  // wider than the tensor cores' forms take
    Context(DType::kBF16, 130);
    NormsAndRotations();
    Elementwise();
    Sequences();
    Logprobs();
    Sampling();
    Step(5, 0);
    Step(9, 0);
  }
  // Linear layers of few rows with more inputs than shared memory holds at once, and than one
  // segment has.
  void RunDeep() {
    for (const auto& [in, rows] : {std::pair(1160, 9), std::pair(4300, 1)}) {
      auto& weights = Keep(backend_.PackLinear({Parameter({8, in}, 0.1)}, DType::kBF16));
      backend_.Linear(Random(rows, in), weights, {}, Random(rows, 8));
    }
  }
  // Every operator that finds its number of rows in the arena, in one step: kernels are launched
  // for the next of a few sizes. `spare` more rows of each operand are not the operators' to touch;
  // the names of those that did.
  std::vector<std::string> Step(int rows, int spare) {
    spare_ = spare;
    operators_.clear();
    auto& embedding = Keep(backend_.PackEmbedding(Parameter({11, 37}), DType::kBF16));
    std::vector<TokenId> tokens;
    for (int i = 0; i < rows; ++i) tokens.emplace_back(i % 11);
    Add("embed", rows, 37,
        [=, &embedding, this](const TensorView& out) { backend_.Embed(embedding, tokens, out); });
    AddRowOperators(rows);
    AddLinears(rows);
    AddAttention(rows);
    AddSequences(rows);
    for (const Operator& op : operators_) op.run(op.out);
    EXPECT_TRUE(backend_.Sync().ok());
    std::vector<std::string> touched;
    for (const Operator& op : operators_) {
      const float* const end = op.out.as<float>() + op.out.shape().num_elements();
      if (std::any_of(end, end + spare * op.out.dim(1), [](float x) { return x != kSpare; }))
        touched.push_back(op.name);
    }
    spare_ = 0;
    return touched;
  }
  // Everything that was written.
  std::vector<float> Results() {
    const absl::Status status = backend_.Sync();
    EXPECT_TRUE(status.ok()) << status;
    std::vector<float> all;
    for (const Buffer& m : matrices_) {
      const auto* const floats = static_cast<const float*>(m.data());
      all.insert(all.end(), floats, floats + m.bytes() / sizeof(float));
    }
    return all;
  }

 private:
  TensorView Random(int64_t rows, int64_t columns, double deviation = 1.0) {
    std::normal_distribution<float> normal(0, static_cast<float>(deviation));
    const int64_t n = rows * columns;
    matrices_.push_back(*backend_.AllocateHostReadable(static_cast<size_t>(n) * sizeof(float)));
    auto* const floats = static_cast<float*>(matrices_.back().data());
    for (int64_t i = 0; i < n; ++i) floats[i] = normal(random_);
    return {floats, DType::kF32, {rows, columns}};
  }
  // Beside `spare_` rows that hold kSpare.
  TensorView Rows(int64_t rows, int64_t columns) {
    const TensorView all = Random(rows + spare_, columns);
    auto* const floats = all.as<float>();
    std::fill(floats + rows * columns, floats + (rows + spare_) * columns, kSpare);
    return {floats, DType::kF32, {rows, columns}};
  }
  // An operator of Step, whose output, or what it changes, is [rows, columns].
  void Add(std::string name, int rows, int columns, std::function<void(const TensorView&)> run) {
    operators_.push_back({std::move(name), Rows(rows, columns), std::move(run)});
  }
  TensorView Vector(const Shape& shape) {
    gains_.push_back(*backend_.PackVector(Parameter(shape)));
    return gains_.back().View(DType::kF32, shape);
  }

  void AddRowOperators(int rows) {
    const TensorView x = Rows(rows, 66), gain = Vector({66}), gates = Vector({33});
    const TensorView table = Vector({rows, 33}), narrow = Rows(rows, 33);
    Add("rms norm", rows, 66,
        [=, this](const TensorView& out) { backend_.RmsNorm(x, gain, 1e-6f, out); });
    Add("gate", rows, 33,
        [=, this](const TensorView& out) { backend_.Gate(x, GateActivation::kSilu, out); });
    Add("add scaled", rows, 66,
        [=, this](const TensorView& y) { backend_.AddScaled(narrow, gain, y); });
    Add("multiply", rows, 33, [=, this](const TensorView& y) { backend_.Multiply(narrow, y); });
    Add("add table", rows, 33, [=, this](const TensorView& y) { backend_.AddTable(table, y); });
    Add("interpolate", rows, 33,
        [=, this](const TensorView& z) { backend_.Interpolate(narrow, gates, z); });
    std::vector<int> indices;
    for (int i = 0; i < rows; ++i) indices.push_back(rows - 1 - i);
    Add("gather", rows, 66,
        [=, this](const TensorView& out) { backend_.GatherRows(x, indices, out); });
    Add("normalize heads", rows, 3 * 38,
        [=, this](const TensorView& heads) { backend_.NormalizeHeads(heads, 38, {}); });
    const std::vector<Row> row = {{.slot = SlotId(0), .begin = 0, .end = rows, .position = 77}};
    Add("rotary table", rows, 38,
        [=, this](const TensorView& out) { backend_.RotaryTable(row, 10000.0, out); });
    const TensorView angles = Rows(rows, 38);
    Add("rotate", rows, 3 * 38,
        [=, this](const TensorView& heads) { backend_.Rotate(heads, 38, angles); });
    Add("normalize and rotate heads", rows, 3 * 38,
        [=, this](const TensorView& heads) { backend_.NormalizeHeads(heads, 38, angles); });
    const PoolView from = {static_cast<std::byte*>(Random(2, 40).data()), 40 * sizeof(float)};
    Add("copy", 2, 40, [=, this](const TensorView& out) {
      backend_.CopySlot(from, SlotId(0), {static_cast<std::byte*>(out.data()), from.slot_bytes},
                        SlotId(1));
    });
  }

  // With 28 more rows they are several blocks of tokens in BF16.
  void AddLinears(int rows) {
    for (const DType type : {DType::kF32, DType::kBF16}) {
      auto& weights = Keep(backend_.PackLinear({Parameter({70, 140}, 0.1)}, type));
      for (const int n : {rows, rows + 28}) {
        const TensorView x = Rows(n, 140);
        Add(absl::StrCat("linear ", std::string(Name(type)), " ", n), n, 70,
            [=, &weights, this](const TensorView& out) { backend_.Linear(x, weights, {}, out); });
      }
    }
  }

  // Every token is a row of its own.
  static std::vector<Row> DecodeRows(int rows, int64_t position) {
    std::vector<Row> all;
    for (int i = 0; i < rows; ++i)
      all.push_back({.slot = SlotId(i), .begin = i, .end = i + 1, .position = position});
    return all;
  }

  void AddAttention(int rows) {
    constexpr int kWidth = 2 * 24;
    for (const DType type : {DType::kF32, DType::kBF16}) {
      auto& attention = Keep(backend_.PackAttention(
          {.spec = {.num_heads = 2, .head_dim = 24, .window = 8, .kv_type = type},
           .scale = Parameter({2}, 0.2),
           .bias = Parameter({2, 9})}));
      const PoolView ring = Pool(backend_.RingBytes(attention.spec()), rows);
      const TensorView q = Rows(rows, kWidth), k = Rows(rows, kWidth), v = Rows(rows, kWidth);
      const std::vector<Row> decoded = DecodeRows(rows, 3);
      Add(absl::StrCat("attention ", std::string(Name(type))), rows, kWidth,
          [=, &attention, this](const TensorView& out) {
            backend_.Attention(attention, q, k, v, decoded, ring, out);
          });
      auto& context = Keep(backend_.PackContextAttention(
          {.spec = {.num_heads = 2, .head_dim = 24, .capacity = rows, .kv_type = type},
           .scale = Parameter({2}, 0.2)}));
      const PoolView contexts = Pool(backend_.ContextBytes(context.spec()), 1);
      std::vector<ContextUse> uses;
      for (int i = 0; i < rows; ++i)
        uses.push_back({i, i + 1, contexts.slot<std::byte>(SlotId(0)), rows});
      Add(absl::StrCat("context ", std::string(Name(type))), rows, kWidth,
          [=, &context, this](const TensorView& out) {
            backend_.StoreContext(context, k, v, {{0, rows, SlotId(0), 0}}, contexts);
            backend_.ContextAttention(context, q, uses, out);
          });
    }
  }

  void AddSequences(int rows) {
    const Shape modes = {33, 5, 2};
    const double small = 0.1;
    for (const auto& [name, weights] : std::vector<std::pair<std::string, SsmWeights*>>{
             {"diagonal", &Keep(backend_.PackSsm({.spec = {.num_inputs = 33},
                          .a_minus_one = Parameter(modes, small),
                          .b = Parameter(modes),
                          .c = Parameter(modes),
                          .d = Parameter({33})}))},
             {"dplr", &Keep(backend_.PackDplr({.spec = {.num_inputs = 33},
                      .dt_lambda = Parameter(modes, small),
                      .dt_b = Parameter(modes, small),
                      .p = Parameter(modes, small),
                      .g = Parameter(modes, small),
                      .w = Parameter(modes, small),
                      .c = Parameter(modes),
                      .dt = Parameter({33}, small),
                      .d = Parameter({33})}))},
             {"filter", &Keep(backend_.PackConvolution({.spec = {.num_inputs = 33},
                        .taps = Parameter({33, 6}),
                        .d = Parameter({33})}))}}) {
      const PoolView state = Pool(backend_.SsmStateBytes(*weights), rows);
      const TensorView u = Rows(rows, 33);
      const std::vector<Row> decoded = DecodeRows(rows, 15);
      Add(name, rows, 33, [=, this, weights = weights](const TensorView& y) {
        backend_.Ssm(*weights, u, decoded, state, y);
      });
    }
    auto& scan = Keep(backend_.PackScan(Parameter({33, 2}, small)));
    const PoolView state = Pool(backend_.ScanStateBytes(scan), rows);
    const std::vector<Row> decoded = DecodeRows(rows, 0);
    Add("scan", rows, 66,
        [=, &scan, this](const TensorView& v) { backend_.Scan(scan, v, decoded, state); });
  }

  // A host tensor for the Pack functions.
  TensorView Parameter(const Shape& shape, double deviation = 1.0) {
    return {Random(1, shape.num_elements(), deviation).data(), DType::kF32, shape};
  }
  PoolView Pool(size_t slot_bytes, int slots) {
    const size_t rounded = (slot_bytes + 63) / 64 * 64;
    buffers_.push_back(*backend_.Allocate(rounded * static_cast<size_t>(slots)));
    return {static_cast<std::byte*>(buffers_.back().data()), rounded};
  }
  template <typename Weights>
  Weights& Keep(absl::StatusOr<std::unique_ptr<Weights>> weights) {
    Weights& kept = **weights;
    weights_.push_back(*std::move(weights));
    return kept;
  }

  void Linears(DType type) {
    auto& weights = Keep(backend_.PackLinear({Parameter({70, 140}, 0.1)}, type));
    for (const int rows : {1, 9, 257, 261}) {
      for (const LinearEpilogue epilogue : {LinearEpilogue::kStore, LinearEpilogue::kRelu,
                                            LinearEpilogue::kGelu, LinearEpilogue::kAdd})
        backend_.Linear(Random(rows, 140), weights, {.epilogue = epilogue}, Random(rows, 70));
    }
  }

  void Attention(DType type, int head_dim) {
    const AttentionSpec spec = {.num_heads = 2,
                                .head_dim = head_dim,
                                .window = 140,
                                .include_self = false,
                                .kv_type = type};
    AttentionParameters parameters = {
        .spec = spec, .scale = Parameter({2}), .bias = Parameter({2, 141})};
    for (int64_t i = 0; i < 2; ++i) parameters.scale.as<float>()[i] = 0.2f;
    auto& weights = Keep(backend_.PackAttention(parameters));
    const PoolView ring = Pool(backend_.RingBytes(spec), 3);
    int64_t position = 0;
    for (const int n : {150, 1, 7}) {
      const std::vector<Row> rows = {
          {.slot = SlotId(2), .begin = 0, .end = n, .position = position},
          {.slot = SlotId(0), .begin = n, .end = n + 2, .position = position / 2}};
      backend_.Attention(weights, Random(n + 2, 2 * head_dim), Random(n + 2, 2 * head_dim),
                         Random(n + 2, 2 * head_dim), rows, ring, Random(n + 2, 2 * head_dim));
      position += n;
    }
  }

  void Context(DType type, int head_dim) {
    const ContextSpec spec = {
        .num_heads = 2, .head_dim = head_dim, .capacity = 130, .kv_type = type};
    ContextParameters parameters = {.spec = spec, .scale = Parameter({2})};
    for (int64_t i = 0; i < 2; ++i) parameters.scale.as<float>()[i] = 0.3f;
    auto& weights = Keep(backend_.PackContextAttention(parameters));
    const PoolView contexts = Pool(backend_.ContextBytes(spec), 2);
    backend_.StoreContext(weights, Random(135, 2 * head_dim), Random(135, 2 * head_dim),
                          {{{.begin = 0, .end = 130, .slot = SlotId(1), .first_row = 0},
                            {.begin = 130, .end = 135, .slot = SlotId(0), .first_row = 2}}},
                          contexts);
    backend_.ContextAttention(
        weights, Random(23, 2 * head_dim),
        {{{.begin = 0, .end = 17, .context = contexts.slot<std::byte>(SlotId(1)), .num_rows = 130},
          {.begin = 17, .end = 18, .context = contexts.slot<std::byte>(SlotId(1)), .num_rows = 130},
          {.begin = 18, .end = 23, .context = contexts.slot<std::byte>(SlotId(0)), .num_rows = 5}}},
        Random(23, 2 * head_dim));
  }

  void Embedding(DType type) {
    auto& table = Keep(backend_.PackEmbedding(Parameter({11, 37}), type));
    const std::vector<TokenId> tokens = {TokenId(10), TokenId(0), TokenId(3)};
    const TensorView out = Random(3, 37);
    backend_.Embed(table, tokens, out);
    const std::vector<int> indices = {2, 0};
    const TensorView gathered = Random(2, 37);
    backend_.GatherRows(out, indices, gathered);
    const auto rows_of = [](const TensorView& matrix) {
      return PoolView{static_cast<std::byte*>(matrix.data()), 37 * sizeof(float)};
    };
    backend_.CopySlot(rows_of(out), SlotId(1), rows_of(gathered), SlotId(1));
  }

  void NormsAndRotations() {
    const TensorView x = Random(5, 300);
    gains_.push_back(*backend_.PackVector(Parameter({300})));
    backend_.RmsNorm(x, gains_.back().View(DType::kF32, {300}), 1e-6f, Random(5, 300));
    const TensorView heads = Random(5, 3 * 38), table = Random(5, 38);
    backend_.NormalizeHeads(heads, 38, /*rotary=*/{});
    const std::vector<Row> rows = {{.slot = SlotId(0), .begin = 0, .end = 5, .position = 77}};
    backend_.RotaryTable(rows, 10000.0, table);
    backend_.Rotate(heads, 38, table);
    backend_.NormalizeHeads(heads, 38, table);
  }

  void Elementwise() {
    for (const GateActivation activation : {GateActivation::kGelu, GateActivation::kSilu})
      backend_.Gate(Random(3, 2 * 290), activation, Random(3, 290));
    gains_.push_back(*backend_.PackVector(Parameter({90})));
    backend_.AddScaled(Random(3, 45), gains_.back().View(DType::kF32, {90}), Random(3, 90));
    backend_.Multiply(Random(3, 33), Random(3, 33));
    gains_.push_back(*backend_.PackVector(Parameter({2 * 33})));
    backend_.AddTable(gains_.back().View(DType::kF32, {2, 33}), Random(4, 33));
    gains_.push_back(*backend_.PackVector(Parameter({33})));
    backend_.Interpolate(Random(3, 33), gains_.back().View(DType::kF32, {33}), Random(3, 33));
  }

  // The three kinds of Ssm and the scan, with outputs at every token and at block ends. One row
  // passes ends of chunks, another is decoded to one.
  void Sequences() {
    const std::vector<Row> rows = {{.slot = SlotId(1), .begin = 0, .end = 28, .position = 5},
                                   {.slot = SlotId(0), .begin = 28, .end = 29, .position = 31}};
    for (const bool ends : {false, true}) {
      const int modes = ends ? 5 : 33;  // 33: more than registers hold
      const SsmSpec spec = {.num_inputs = 33,
                            .num_filters = 2,
                            .outputs = ends ? SsmOutputs::kBlockEnds : SsmOutputs::kEveryToken,
                            .block = 4};
      const Shape shape = {66, modes, 2}, features = {66};
      const double small = 0.1;
      std::vector<SsmWeights*> kinds = {
          &Keep(backend_.PackSsm({.spec = spec,
                                  .a_minus_one = Parameter(shape, small),
                                  .b = Parameter(shape),
                                  .c = Parameter(shape),
                                  .d = Parameter(features)})),
          &Keep(backend_.PackDplr({.spec = spec,
                                   .dt_lambda = Parameter(shape, small),
                                   .dt_b = Parameter(shape, small),
                                   .p = Parameter(shape, small),
                                   .g = Parameter(shape, small),
                                   .w = Parameter(shape, small),
                                   .c = Parameter(shape),
                                   .dt = Parameter(features, small),
                                   .d = Parameter(features)})),
          &Keep(backend_.PackConvolution(
              {.spec = spec, .taps = Parameter({66, 6}), .d = Parameter(features)}))};
      for (const SsmWeights* weights : kinds) {
        const PoolView state = Pool(backend_.SsmStateBytes(*weights), 2);
        // Positions 5 .. 32 and 31: block ends at 7, 11, .., 31, and at 31.
        for (int step = 0; step < 2; ++step)
          backend_.Ssm(*weights, Random(29, 33), rows, state, Random(ends ? 8 : 29, 66));
      }
    }
    LongFilter();
    auto& scan = Keep(backend_.PackScan(Parameter({300, 2}, 0.1)));
    const PoolView state = Pool(backend_.ScanStateBytes(scan), 2);
    const TensorView v = Random(29, 600);
    backend_.Scan(scan, v, rows, state);
    backend_.Scan(scan, v, rows, state);
  }

  // In the partitioned form: a row begins within a block, passes two block starts, and another
  // begins at one.
  void LongFilter() {
    auto& weights =
        Keep(backend_.PackConvolution({.spec = {.num_inputs = 34, .num_filters = 2, .block = 16},
                                       .taps = Parameter({68, 40}),
                                       .d = Parameter({68})}));
    const PoolView state = Pool(backend_.SsmStateBytes(weights), 2);
    const std::vector<Row> first = {{.slot = SlotId(1), .begin = 0, .end = 23, .position = 0},
                                    {.slot = SlotId(0), .begin = 23, .end = 39, .position = 0}};
    const std::vector<Row> second = {{.slot = SlotId(1), .begin = 0, .end = 27, .position = 23},
                                     {.slot = SlotId(0), .begin = 27, .end = 28, .position = 16}};
    backend_.Ssm(weights, Random(39, 34), first, state, Random(39, 68));
    backend_.Ssm(weights, Random(28, 34), second, state, Random(28, 68));
  }

  void Logprobs() {
    const TensorView out = Random(1, 3);
    const std::vector<TokenId> targets = {TokenId(0), TokenId(299), TokenId(130)};
    backend_.TargetLogprobs(Random(3, 300, 4.0), targets, absl::MakeSpan(out.as<float>(), 3));
  }

  // Greedy, every filter with penalties and bans, and a given token; more tokens than are listed.
  void Sampling() {
    constexpr int kColumns = 600;
    EXPECT_TRUE(backend_.ReserveSampling(kColumns, 3).ok());
    const PoolView state = Pool(backend_.SamplingStateBytes(kColumns), 2);
    backend_.SetSamplingState(state, SlotId(1), {TokenId(5), TokenId(599)}, {{TokenId(7), 2.0f}});
    const std::vector<TokenId> banned = {TokenId(0), TokenId(599)};
    std::vector<TokenDraw> draws(3);
    draws[0].params.temperature = 0;
    draws[1].row = 1;
    draws[1].params = {.temperature = 2.5f,
                       .top_k = 500,
                       .top_p = 0.99f,
                       .min_p = 1e-6f,
                       .typical_p = 0.95f,
                       .repetition_penalty = 1.3f,
                       .presence_penalty = 0.5f};
    draws[1].state = SlotId(1);
    draws[1].banned = banned;
    draws[1].num_top = 20;
    draws[2].row = 1;
    draws[2].given = TokenId(3);
    std::vector<DrawResult> results(3);
    std::vector<TokenLogit> top(20);
    const TensorView logits = Random(2, kColumns);
    for (int step = 0; step < 2; ++step) {
      backend_.SampleTokens(logits, draws, state, absl::MakeSpan(results), absl::MakeSpan(top));
      const TensorView out = Random(1, 3 * 5 + 20 * 2);
      float* numbers = out.as<float>();
      for (const DrawResult& r : results) {
        *numbers++ = static_cast<float>(r.token);
        *numbers++ = r.logit;
        *numbers++ = r.max;
        *numbers = static_cast<float>(r.sum);  // and its lower half
        numbers[1] = static_cast<float>(r.sum - static_cast<double>(*numbers));
        numbers += 2;
      }
      for (const TokenLogit& t : top) {
        *numbers++ = static_cast<float>(t.token);
        *numbers++ = t.logit;
      }
    }
  }

  static constexpr float kSpare = -12345.5f;
  struct Operator {
    std::string name;
    TensorView out;
    std::function<void(const TensorView&)> run;
  };

  Backend& backend_;
  std::mt19937 random_{17};
  int spare_ = 0;
  std::vector<Operator> operators_;
  std::vector<Buffer> matrices_;
  std::vector<Buffer> buffers_, gains_;
  std::vector<std::unique_ptr<PackedWeights>> weights_;
};

std::vector<float> RunIn(Order order, uint32_t seed) {
  cuda_on_cpu::SetOrder(order, seed);
  const auto backend =
      *MakeCudaBackend({.panel_rows = {260}, .product_seconds = CudaOptions::kUnlimited});
  Workload workload(*backend);
  workload.Run();
  std::vector<float> results = workload.Results();
  // Panels of such layers, which cuBLAS is compared over, would take minutes.
  const auto without_panels = *MakeCudaBackend({.panel_rows = {}});
  Workload deep(*without_panels);
  deep.RunDeep();
  const std::vector<float> more = deep.Results();
  results.insert(results.end(), more.begin(), more.end());
  return results;
}

TEST(CudaOrdersTest, RowsBeyondTheNumberInTheArenaAreNotTouched) {
  cuda_on_cpu::SetOrder(Order::kForward, 1);
  const auto backend = *MakeCudaBackend({.panel_rows = {}});
  Workload workload(*backend);
  for (const int rows : {5, 9}) EXPECT_THAT(workload.Step(rows, 16), testing::IsEmpty());
}

// BST_KERNEL void [BST_BOUNDS(...)] bst_x(...) in the sources.
std::set<std::string> KernelsOfTheSources() {
  std::set<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator("engine/backend/cuda")) {
    if (entry.path().extension() != ".cu") continue;
    std::ifstream file(entry.path());
    const std::string text((std::istreambuf_iterator<char>(file)), {});
    for (size_t at = text.find("BST_KERNEL"); at != text.npos; at = text.find("BST_KERNEL", at)) {
      at = text.find("bst_", at);
      names.insert(text.substr(at, text.find('(', at) - at));
    }
  }
  return names;
}

TEST(CudaOrdersTest, EveryKernelGivesTheSameBitsInEveryOrder) {
  const std::vector<float> forward = RunIn(Order::kForward, 1);
  EXPECT_FALSE(std::any_of(forward.begin(), forward.end(), [](float x) { return std::isnan(x); }));
  for (const auto& [order, seed] : std::vector<std::pair<Order, uint32_t>>{
           {Order::kReversed, 1}, {Order::kShuffled, 2}, {Order::kShuffled, 3}}) {
    const std::vector<float> other = RunIn(order, seed);
    ASSERT_EQ(other.size(), forward.size());
    EXPECT_EQ(std::memcmp(other.data(), forward.data(), forward.size() * sizeof(float)), 0)
        << "order " << static_cast<int>(order) << " seed " << seed;
  }
  // The kernels of the plugin are those of the sources: tests/engine/backend/cuda/kernels_test.py.
  const std::set<std::string> launched = cuda_on_cpu::LaunchedKernels();
  const std::set<std::string> kernels = KernelsOfTheSources();
  EXPECT_GT(kernels.size(), 20u);
  for (const std::string& kernel : kernels) {
    for (const char* order : {"forward", "reversed", "shuffled"})
      EXPECT_EQ(launched.count(absl::StrCat(kernel, " ", order)), 1u) << kernel << " " << order;
  }
}

}  // namespace
}  // namespace bst
