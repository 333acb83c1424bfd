// Attention to contexts: every CPU instruction set against the reference backend over awkward
// shapes, and what a query gives independently of its neighbours.
#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/engine/backend/operator_fixture.h"

namespace bst {
namespace {

using ContextAttentionTest = OperatorTest;

struct Problem {
  ContextSpec spec;
  std::vector<float> scale;  // [H]
  int num_contexts;
  uint32_t seed;
};

// The type of the rows is the caller's.
Problem RandomProblem(std::mt19937& random) {
  const auto pick = [&](std::vector<int> choices) { return choices[random() % choices.size()]; };
  Problem problem = {.spec = {.num_heads = pick({1, 2, 3}),
                              .head_dim = pick({1, 7, 16, 24, 64, 80}),
                              .capacity = pick({1, 2, 7, 15, 16, 17, 32, 40, 128, 256}),
                              .kv_type = DType::kF32},
                     .scale = {},
                     .num_contexts = 3,
                     .seed = static_cast<uint32_t>(random())};
  problem.scale = RandomVector(static_cast<size_t>(problem.spec.num_heads), 12);
  for (float& s : problem.scale)
    s = std::fabs(s) / std::sqrt(static_cast<float>(problem.spec.head_dim));
  return problem;
}

// Stores three contexts, the second in two parts and only partly read, and attends to them.
Matrix Attend(Backend& backend, Problem& problem, const std::vector<int>& queries_per_use) {
  const ContextSpec& spec = problem.spec;
  const int64_t width = int64_t{spec.num_heads} * spec.head_dim;
  const int rows = spec.capacity;
  const auto weights = *backend.PackContextAttention(
      {.spec = spec, .scale = Contiguous(problem.scale, {spec.num_heads})});
  const Slots memory(backend, backend.ContextBytes(spec), 3);
  const PoolView contexts = memory.view();
  Matrix k = Matrix::Random(3 * rows, width, problem.seed + 1);
  Matrix v = Matrix::Random(3 * rows, width, problem.seed + 2);
  const int cut = rows / 2;
  std::vector<ContextRows> stores = {
      {.begin = 0, .end = rows, .slot = SlotId(2), .first_row = 0},
      {.begin = rows + cut, .end = 2 * rows, .slot = SlotId(0), .first_row = cut},
      {.begin = 2 * rows, .end = 3 * rows, .slot = SlotId(1), .first_row = 0}};
  if (cut > 0)
    stores.push_back({.begin = rows, .end = rows + cut, .slot = SlotId(0), .first_row = 0});
  backend.StoreContext(*weights, k.view(), v.view(), stores, contexts);

  int total = 0;
  for (const int n : queries_per_use) total += n;
  Matrix q = Matrix::Random(total, width, problem.seed + 3), out(total, width);
  std::vector<ContextUse> uses;
  int begin = 0;
  for (const int n : queries_per_use) {
    const int slot = static_cast<int>(uses.size()) % 3;
    uses.push_back({.begin = begin,
                    .end = begin + n,
                    .context = contexts.slot<std::byte>(SlotId(slot)),
                    .num_rows = slot == 0 ? std::max(1, cut) : rows});
    begin += n;
  }
  backend.ContextAttention(*weights, q.view(), uses, out.view());
  return out;
}

TEST_P(ContextAttentionTest, AgreesWithTheReference) {
  std::mt19937 random(1);
  for (int trial = 0; trial < 80; ++trial) {
    Problem problem = RandomProblem(random);
    problem.spec.kv_type = AnyType(static_cast<uint32_t>(random()));
    ExpectAgreement(
        [&](Backend& backend) {
          return Attend(backend, problem, {1, 5, 13, 1, 6, 29, 12});
        },
        absl::StrCat("trial ", trial, ": H ", problem.spec.num_heads, " dh ", problem.spec.head_dim,
                     " capacity ", problem.spec.capacity, " ",
                     std::string(Name(problem.spec.kv_type))),
        AttentionTolerance(problem.spec.kv_type));
  }
}

// The same queries against one context in groups of any size give the same bits.
TEST_P(ContextAttentionTest, AQueryDoesNotDependOnItsNeighbours) {
  std::mt19937 random(2);
  for (int trial = 0; trial < 20; ++trial) {
    Problem problem = RandomProblem(random);
    problem.spec.kv_type = AnyType(static_cast<uint32_t>(trial));
    // Uses take contexts 0, 1, 2 in turn: the same 31 queries of context 1 in one group and in
    // many.
    const std::vector<float> whole = Attend(*tested_, problem, {1, 31}).values();
    Matrix parts = [&] {
      const ContextSpec& spec = problem.spec;
      const int64_t width = int64_t{spec.num_heads} * spec.head_dim;
      const auto weights = *tested_->PackContextAttention(
          {.spec = spec, .scale = Contiguous(problem.scale, {spec.num_heads})});
      const Slots memory(*tested_, tested_->ContextBytes(spec), 1);
      const PoolView context = memory.view();
      Matrix k = Matrix::Random(3 * spec.capacity, width, problem.seed + 1);
      Matrix v = Matrix::Random(3 * spec.capacity, width, problem.seed + 2);
      tested_->StoreContext(*weights, k.view(), v.view(),
                            {ContextRows{.begin = 2 * spec.capacity,
                                         .end = 3 * spec.capacity,
                                         .slot = SlotId(0),
                                         .first_row = 0}},
                            context);
      Matrix q = Matrix::Random(32, width, problem.seed + 3), out(32, width);
      std::vector<ContextUse> uses;
      for (int begin = 0; begin < 32;) {
        const int n = std::min(32 - begin, 1 + static_cast<int>(random() % 9));
        uses.push_back({begin, begin + n, context.slot<std::byte>(SlotId(0)), spec.capacity});
        begin += n;
      }
      tested_->ContextAttention(*weights, q.view(), uses, out.view());
      return out;
    }();
    const std::vector<float> got = parts.values();
    const auto width = static_cast<size_t>(problem.spec.num_heads * problem.spec.head_dim);
    EXPECT_TRUE(std::equal(got.begin() + static_cast<std::ptrdiff_t>(width), got.end(),
                           whole.begin() + static_cast<std::ptrdiff_t>(width)))
        << "trial " << trial;
  }
}

// Neighbouring rows may lie in one word of memory, whose halves threads must not both write.
TEST_P(ContextAttentionTest, PartsMayBeSingleRows) {
  constexpr int kCapacity = 256, kHeadDim = 128;  // enough for more than one thread
  std::vector<float> scale = {1.0f};
  for (const DType type : Types()) {
    const ContextSpec spec = {
        .num_heads = 1, .head_dim = kHeadDim, .capacity = kCapacity, .kv_type = type};
    const auto weights =
        *tested_->PackContextAttention({.spec = spec, .scale = Contiguous(scale, {1})});
    Matrix k = Matrix::Random(kCapacity, kHeadDim, 1), v = Matrix::Random(kCapacity, kHeadDim, 2);
    const auto store = [&](const std::vector<ContextRows>& parts) {
      const Slots memory(*tested_, tested_->ContextBytes(spec), 2);
      tested_->StoreContext(*weights, k.view(), v.view(), parts, memory.view());
      EXPECT_TRUE(tested_->Sync().ok());
      const PoolView contexts = memory.view();
      return std::vector<std::byte>(contexts.base, contexts.base + 2 * contexts.slot_bytes);
    };
    std::vector<ContextRows> rows;
    for (int r = 0; r < kCapacity; ++r) {
      for (const SlotId slot : {SlotId(1), SlotId(0)}) rows.push_back({r, r + 1, slot, r});
    }
    const std::vector<std::byte> whole =
        store({{0, kCapacity, SlotId(0), 0}, {0, kCapacity, SlotId(1), 0}});
    for (int i = 0; i < 20; ++i) ASSERT_TRUE(store(rows) == whole) << std::string(Name(type));
  }
}

// One use: so many queries, of the first rows of a context. The first `left_out` are in no use.
struct Use {
  int queries, slot, num_rows, left_out = 0;
};

// Two contexts, whole, and uses of them one after the other.
Matrix AttendTo(Backend& backend, Problem& problem, const std::vector<Use>& uses) {
  const ContextSpec& spec = problem.spec;
  const int64_t width = int64_t{spec.num_heads} * spec.head_dim;
  const auto weights = *backend.PackContextAttention(
      {.spec = spec, .scale = Contiguous(problem.scale, {spec.num_heads})});
  const Slots memory(backend, backend.ContextBytes(spec), 2);
  const PoolView contexts = memory.view();
  Matrix k = Matrix::Random(2 * spec.capacity, width, problem.seed + 1);
  Matrix v = Matrix::Random(2 * spec.capacity, width, problem.seed + 2);
  backend.StoreContext(
      *weights, k.view(), v.view(),
      {{{.begin = 0, .end = spec.capacity, .slot = SlotId(0), .first_row = 0},
        {.begin = spec.capacity, .end = 2 * spec.capacity, .slot = SlotId(1), .first_row = 0}}},
      contexts);
  std::vector<ContextUse> places;
  int total = 0;
  for (const Use& use : uses) {
    if (use.left_out < use.queries) {
      places.push_back({.begin = total + use.left_out,
                        .end = total + use.queries,
                        .context = contexts.slot<std::byte>(SlotId(use.slot)),
                        .num_rows = use.num_rows});
    }
    total += use.queries;
  }
  Matrix q = Matrix::Random(total, width, problem.seed + 3), out(total, width);
  backend.ContextAttention(*weights, q.view(), places, out.view());
  return out;
}

// Any number of queries of any number of rows, in heads of any width; and the same bits when every
// use is cut into several.
TEST_P(ContextAttentionTest, UsesOfAnyLengthMayBeCutAnywhere) {
  std::mt19937 random(3);
  const auto below = [&](int n) { return static_cast<int>(random() % static_cast<uint32_t>(n)); };
  for (const DType type : Types()) {
    for (const int head_dim : {8, 13, 64, 127, 128, 129}) {
      Problem problem = RandomProblem(random);
      problem.spec.head_dim = head_dim;
      problem.spec.capacity = 140;
      problem.spec.kv_type = type;
      problem.scale.assign(problem.scale.size(), 1 / std::sqrt(static_cast<float>(head_dim)));
      std::vector<Use> uses = {{1, 0, 1}, {40, 1, 140}, {16, 0, 64}, {17, 1, 65}};
      for (int i = 0; i < 3; ++i) uses.push_back({1 + below(40), below(2), 1 + below(140)});
      const std::string what = absl::StrCat("dh ", head_dim, " ", std::string(Name(type)));
      ExpectAgreement([&](Backend& backend) { return AttendTo(backend, problem, uses); }, what,
                      AttentionTolerance(type));
      std::vector<Use> cut;
      for (const Use& use : uses) {
        for (int left = use.queries; left > 0; left -= cut.back().queries)
          cut.push_back({1 + below(std::min(left, 20)), use.slot, use.num_rows});
      }
      EXPECT_EQ(AttendTo(*tested_, problem, cut).values(),
                AttendTo(*tested_, problem, uses).values())
          << what;
    }
  }
}

// Queries that no use covers change nothing for the others.
TEST_P(ContextAttentionTest, UsesMayLeaveQueriesOut) {
  std::mt19937 random(5);
  for (int trial = 0; trial < 20; ++trial) {
    Problem problem = RandomProblem(random);
    problem.spec.kv_type = AnyType(static_cast<uint32_t>(trial));
    const int capacity = problem.spec.capacity;
    std::vector<Use> uses = {{9, 0, capacity}, {1, 1, 1}, {40, 1, capacity}, {3, 0, 1}};
    Matrix all = AttendTo(*tested_, problem, uses);
    for (size_t u = 0; u < uses.size(); ++u) {
      uses[u].left_out = static_cast<int>(random() % static_cast<unsigned>(uses[u].queries));
      if (u == 1 || (u == 3 && trial % 2 == 0)) uses[u].left_out = uses[u].queries;
    }
    Matrix got = AttendTo(*tested_, problem, uses);
    int64_t first = 0;
    for (const Use& use : uses) {
      for (int64_t i = first + use.left_out; i < first + use.queries; ++i) {
        for (int64_t c = 0; c < int64_t{problem.spec.num_heads} * problem.spec.head_dim; ++c)
          ASSERT_EQ(got.at(i, c), all.at(i, c)) << "trial " << trial << ", query " << i;
      }
      first += use.queries;
    }
  }
}

// What the CUDA backend gives for no rows, which nobody asks for.
TEST(CudaContextAttentionTest, WithoutRowsThereIsZero) {
  for (const std::string& name : EmulatedBackendNames()) {
    const auto backend = *MakeBackend(name + ":blocking");
    std::mt19937 random(4);
    Problem problem = RandomProblem(random);
    problem.spec.kv_type = DType::kBF16;
    problem.spec.capacity = 7;
    const std::vector<float> got = AttendTo(*backend, problem, {{3, 0, 7}, {2, 1, 0}}).values();
    const auto width = static_cast<size_t>(problem.spec.num_heads * problem.spec.head_dim);
    for (size_t i = 3 * width; i < got.size(); ++i) EXPECT_EQ(got[i], 0.0f);
  }
}

INSTANTIATE_TEST_SUITE_P(All, ContextAttentionTest, testing::ValuesIn(OperatorBackendNames()),
                         BackendTestName);

}  // namespace
}  // namespace bst
