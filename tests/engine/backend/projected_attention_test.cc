// ProjectAttention and ProjectedAttention against the operators they stand for, on one backend bit
// for bit: outputs, the columns behind q, k and v, and what the ring holds then. Rows long enough
// for a form of the backend's own beside rows that are not, at any positions.
#include <algorithm>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "tests/engine/backend/operator_fixture.h"
#include "tests/support/model_runner.h"

namespace bst {
namespace {

using ProjectedAttentionTest = OperatorTest;

constexpr int kDim = 45, kSlots = 4;
// A step's rows: how many tokens each slot takes, in packed order.
using Step = std::vector<std::pair<int, int>>;

struct Problem {
  AttentionSpec spec;
  DType weights;
  int others;  // columns
  bool normalizes, rotates;
  bool has_unread = false;        // rows some of whose outputs, or all, nobody asks for
  std::vector<float> scale = {};  // [H]
  std::vector<float> bias = {};   // [H, W + 1]

  int64_t width() const { return int64_t{spec.num_heads} * spec.head_dim; }
  std::string description() const {
    return absl::StrCat(spec.num_heads, " heads of ", spec.head_dim, ", W ", spec.window, ", ",
                        std::string(Name(weights)), " weights, ", std::string(Name(spec.kv_type)),
                        " keys, ", others, " others", normalizes ? ", normalised" : "",
                        rotates ? ", rotated" : "", has_unread ? ", some unread" : "",
                        spec.scope == AttentionScope::kBlock ? ", block" : "",
                        spec.include_self ? "" : ", without self");
  }
};

struct Results {
  std::vector<float> attended, others;
  std::vector<std::byte> ring;
  int packed_rows = 0;
};

Results Attend(Backend& backend, Problem& p, const std::vector<Step>& steps, bool apart) {
  const int64_t a = p.width(), out_features = 3 * a + p.others;
  std::vector<float> w = RandomVector(static_cast<size_t>(out_features * kDim), 1, 0.2),
                     gain = RandomVector(kDim, 2);
  const auto layer = *backend.PackLinear({Contiguous(w, {out_features, kDim})}, p.weights);
  const auto attention =
      *backend.PackAttention({.spec = p.spec,
                              .scale = Contiguous(p.scale, {p.spec.num_heads}),
                              .bias = Contiguous(p.bias, {p.spec.num_heads, p.spec.window + 1})});
  const Slots slots(backend, backend.RingBytes(p.spec), kSlots);
  Results results;
  int64_t positions[kSlots] = {};
  uint32_t seed = 3;
  for (const Step& step : steps) {
    std::vector<Row> rows;
    int tokens = 0;
    for (const auto& [slot, n] : step) {
      rows.push_back({SlotId(slot), tokens, tokens + n, positions[slot]});
      if (p.has_unread)
        rows.back().outputs_from = tokens + n * (slot + static_cast<int>(seed)) % (n + 1);
      positions[slot] += n;
      tokens += n;
    }
    Matrix x = Matrix::Random(tokens, kDim, seed++), normed(tokens, kDim);
    Matrix heads(tokens, out_features, /*margin=*/0), others(tokens, std::max(p.others, 1)),
        table(tokens, p.spec.head_dim), attended(tokens, a);
    // Whatever memory held before must not matter: here NaN, in BF16 too.
    for (int t = 0; t < tokens; ++t)
      std::memset(&heads.at(t, 0), 0xff, static_cast<size_t>(out_features) * sizeof(float));
    HeadOptions options = {
        .normalized = p.normalizes ? 2 * a : 0, .head_dim = p.spec.head_dim, .rotary = {}};
    if (p.rotates) {
      backend.RotaryTable(rows, 10000.0, table.view());
      options.rotary = table.view();
    }
    const TensorView gains = Contiguous(gain, {kDim}), h = heads.view();
    TensorView behind = h.Columns(3 * a, out_features);
    if (apart) {
      backend.ProjectHeads(x.view(), gains, 1e-6f, *layer, options, normed.view(), h);
      backend.Attention(*attention, h.Columns(0, a), h.Columns(a, 2 * a), h.Columns(2 * a, 3 * a),
                        rows, slots.view(), attended.view());
    } else {
      const ProjectedHeads projected = backend.ProjectAttention(
          x.view(), gains, 1e-6f, *layer, options, *attention, rows, slots.view(), normed.view(), h,
          p.others > 0 ? others.view() : TensorView());
      results.packed_rows +=
          static_cast<int>(std::count(projected.packed.begin(), projected.packed.end(), 1));
      behind = projected.others;
      backend.ProjectedAttention(*attention, projected, rows, slots.view(), attended.view());
    }
    EXPECT_TRUE(backend.Sync().ok());
    for (Matrix* matrix : {&heads, &others, &normed, &attended})
      EXPECT_TRUE(matrix->SentinelsIntact()) << p.description();
    for (const Row& row : rows) {
      const int first = row.num_tokens() > 1 ? std::max(row.begin, row.outputs_from) : row.begin;
      for (int t = first; t < row.end; ++t) {
        results.attended.insert(results.attended.end(), &attended.at(t, 0), &attended.at(t, 0) + a);
        if (p.others == 0) continue;
        const float* other = behind.row<float>(t);
        results.others.insert(results.others.end(), other, other + p.others);
      }
    }
  }
  const PoolView ring = slots.view();
  results.ring.assign(ring.base, ring.base + kSlots * ring.slot_bytes);
  return results;
}

bool SameBits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

// Whether the backend has attention on pairs or bytes, and inputs in a form that tasks prepare.
bool CanPack(absl::string_view backend, const Problem& p) {
  const bool pairs = absl::StrContains(backend, "amx") || absl::StrContains(backend, "avx512bf16");
  const bool bytes = pairs || absl::StrContains(backend, "avx512vnni");
  const auto has = [&](DType type) {
    return type == DType::kBF16 ? pairs : type == DType::kI8 && bytes;
  };
  const bool prepares =
      p.weights == DType::kI8 ? absl::StartsWith(backend, "cpu:") : has(p.weights);
  return prepares && has(p.spec.kv_type) && p.spec.head_dim % 32 == 0 && p.spec.window % 4 == 0;
}

// Most of them such as can be packed.
Problem RandomProblem(std::mt19937& random, const std::vector<DType>& types) {
  const auto pick = [&](std::vector<int> choices) { return choices[random() % choices.size()]; };
  const bool any = random() % 4 == 0;
  const auto pick_type = [&] {
    return any ? types[random() % types.size()] : random() % 2 == 0 ? DType::kBF16 : DType::kI8;
  };
  const int head_dim = any ? pick({24, 32, 70}) : pick({32, 64, 96, 128});
  const int num_heads = pick({1, 2, 3});
  const bool sliding = random() % 3 != 0;
  Problem p = {.spec = {.num_heads = num_heads,
                        .head_dim = head_dim,
                        .window = any ? pick({4, 22, 64}) : pick({20, 64, 100, 132, 160}),
                        .scope = sliding ? AttentionScope::kSliding : AttentionScope::kBlock,
                        .include_self = random() % 2 == 0,
                        .empty_prefix = sliding && random() % 2 == 0 ? EmptyPrefix::kZeros
                                                                     : EmptyPrefix::kMasked,
                        .kv_type = pick_type()},
               .weights = pick_type(),
               .others = pick({0, num_heads * head_dim, 7}),
               .normalizes = random() % 4 != 0,
               .rotates = random() % 2 == 0,
               .has_unread = random() % 3 == 0};
  p.scale = RandomVector(static_cast<size_t>(num_heads), 12);
  for (float& s : p.scale) s = std::abs(s);
  p.bias = RandomVector(static_cast<size_t>(num_heads * (p.spec.window + 1)), 13);
  if (!p.normalizes) p.rotates = false;
  return p;
}

// Documents in chunks that end anywhere, beside others and alone; then single tokens.
TEST_P(ProjectedAttentionTest, IsItsOperators) {
  const std::vector<Step> steps = {{{2, 301}},
                                   {{0, 1}, {2, 270}, {1, 40}},
                                   {{3, 290}, {0, 3}, {2, 257}, {1, 400}},
                                   {{1, 1}, {2, 1}, {3, 1}},
                                   {{1, 512}, {3, 261}},
                                   {{0, 1}, {1, 1}, {2, 1}, {3, 1}}};
  constexpr int kLongRows = 7;
  std::mt19937 random(15);
  int packed = 0, packed_unread = 0, packed_incomplete = 0;
  for (int trial = 0; trial < (kSanitized ? 12 : 40); ++trial) {
    Problem p = RandomProblem(random, Types());
    const Results expected = Attend(*tested_, p, steps, /*apart=*/true);
    const Results got = Attend(*tested_, p, steps, /*apart=*/false);
    const std::string what = absl::StrCat("trial ", trial, ": ", p.description());
    EXPECT_TRUE(SameBits(got.attended, expected.attended)) << what;
    EXPECT_TRUE(SameBits(got.others, expected.others)) << what;
    EXPECT_TRUE(got.ring == expected.ring) << what;
    // Rings of whole steps of W may take more memory than the floats of few tokens would.
    if (!CanPack(GetParam(), p)) {
      EXPECT_EQ(got.packed_rows, 0) << what;
    } else if (p.spec.window >= 64) {
      EXPECT_EQ(got.packed_rows, kLongRows) << what;
    }
    packed += got.packed_rows;
    if (p.has_unread) packed_unread += got.packed_rows;
    // Blocks that end within a step of the values.
    if (p.spec.kv_type == DType::kBF16 && p.spec.window % 32 != 0)
      packed_incomplete += got.packed_rows;
  }
  const bool can_pack = absl::StrContains(GetParam(), "avx512vnni") ||
                        absl::StrContains(GetParam(), "avx512bf16") ||
                        absl::StrContains(GetParam(), "amx");
  if (kSanitized) return;  // too few to have met everything
  EXPECT_EQ(packed > 0, can_pack);
  EXPECT_EQ(packed_unread > 0, can_pack);
  EXPECT_EQ(packed_incomplete > 0, can_pack && !absl::StrContains(GetParam(), "avx512vnni"));
}

INSTANTIATE_TEST_SUITE_P(Cpu, ProjectedAttentionTest,
                         testing::ValuesIn(CpuBackendNames(/*traps=*/false)), BackendTestName);

}  // namespace
}  // namespace bst
