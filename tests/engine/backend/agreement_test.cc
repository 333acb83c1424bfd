// Every operator of every CPU instruction set against the reference backend, over awkward shapes:
// below, at and above one vector, one register tile, one panel and one task; strided views with
// sentinels around the outputs. Random numbers come from fixed seeds.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <iterator>
#include <limits>
#include <numeric>
#include <optional>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "engine/backend/cpu/cpu_isa.h"
#include "tests/engine/backend/operator_fixture.h"

namespace bst {
namespace {

using AgreementTest = OperatorTest;

TEST_P(AgreementTest, Linear) {
  uint32_t seed = 0;
  for (const int in : {1, 2, 3, 16, 33, 96, 257}) {
    for (const int out : {1, 15, 16, 31, 32, 33, 64, 161, 300}) {
      for (const int rows : {1, 2, 3, 5, 6, 7, 11, 12, 13, 25, 47, 48, 49, 100}) {
        if ((in + out + rows) % 3 != 0 && in * out * rows > 20'000)
          continue;  // a third of the larger ones
        if (LeftOutUnderSanitizers(++seed)) continue;
        std::vector<float> w = RandomVector(static_cast<size_t>(in * out), seed, 1 / std::sqrt(in));
        for (const DType type : Types()) {
          for (const LinearEpilogue epilogue : {LinearEpilogue::kStore, LinearEpilogue::kRelu,
                                                LinearEpilogue::kGelu, LinearEpilogue::kAdd}) {
            const auto apply = [&](Backend& backend) {
              const auto packed = *backend.PackLinear({Contiguous(w, {out, in})}, type);
              Matrix x = Matrix::Random(rows, in, seed + 1000);
              Matrix y = Matrix::Random(rows, out, seed + 2000);
              backend.Linear(
                  x.view(), *packed,
                  {.epilogue = epilogue, .scale = epilogue == LinearEpilogue::kStore ? 0.5f : 1.0f},
                  y.view());
              return y;
            };
            ExpectAgreement(apply, absl::StrCat("in ", in, " out ", out, " rows ", rows, " ",
                                                std::string(Name(type)), " epilogue ",
                                                static_cast<int>(epilogue)));
          }
        }
      }
    }
  }
}

// Some of K at a time, where that is what a backend does.
TEST_P(AgreementTest, LinearInBlocksOfInputs) {
  std::vector<float> w = RandomVector(70 * 1100, 7, 1 / std::sqrt(1100.0f));
  for (const DType type : Types()) {
    for (const int rows : {1, 17, 40, 150, 300}) {
      if (LeftOutUnderSanitizers(static_cast<uint32_t>(rows))) continue;
      ExpectAgreement(
          [&](Backend& backend) {
            const auto packed = *backend.PackLinear({Contiguous(w, {70, 1100})}, type);
            Matrix x = Matrix::Random(rows, 1100, 8), y(rows, 70);
            backend.Linear(x.view(), *packed, {}, y.view());
            return y;
          },
          absl::StrCat(rows, " rows ", std::string(Name(type))));
    }
  }
}

TEST_P(AgreementTest, LinearStacksItsPartsInOrder) {
  std::vector<float> a = RandomVector(7 * 20, 1), b = RandomVector(40 * 20, 2);
  for (const DType type : Types()) {
    ExpectAgreement(
        [&](Backend& backend) {
          const auto packed =
              *backend.PackLinear({Contiguous(a, {7, 20}), Contiguous(b, {40, 20})}, type);
          Matrix x = Matrix::Random(5, 20, 3), y(5, 47);
          backend.Linear(x.view(), *packed, {}, y.view());
          return y;
        },
        "stacked");
  }
}

// A row's result must not depend on how many rows there are: the batch law at its root.
TEST_P(AgreementTest, LinearRowsDoNotDependOnTheirNumber) {
  constexpr int kRows = 600;
  for (const int in : {333, 1100}) {
    for (const DType type : Types()) {
      std::vector<float> w = RandomVector(static_cast<size_t>(in * 90), 4);
      const auto packed = *tested_->PackLinear({Contiguous(w, {90, in})}, type);
      Matrix x = Matrix::Random(kRows, in, 5);
      Matrix all(kRows, 90);
      tested_->Linear(x.view(), *packed, {}, all.view());
      uint32_t number = 0;
      for (const int rows :
           {1, 2, 3, 4, 6, 7, 12, 13, 16, 17, 32, 33, 37, 48, 49, 97, 128, 241, 256, 257, 331}) {
        if (LeftOutUnderSanitizers(++number)) continue;
        Matrix some(rows, 90);
        tested_->Linear(x.view().Rows(kRows - rows, kRows), *packed, {}, some.view());
        for (int r = 0; r < rows; ++r) {
          ASSERT_EQ(std::memcmp(&some.at(r, 0), &all.at(kRows - rows + r, 0), 90 * sizeof(float)),
                    0)
              << in << " inputs, " << rows << " rows, row " << r << " " << std::string(Name(type));
        }
      }
    }
  }
}

// Two layers and what goes through them, by FeedForward and by the operators it stands for.
struct FeedForwardProblem {
  int rows, dim, hidden;
  DType up_type, down_type;
  LinearEpilogue act = LinearEpilogue::kRelu;
};
void ExpectFeedForwardIsItsOperators(Backend& backend, const FeedForwardProblem& problem,
                                     bool is_fused) {
  const auto [rows, dim, hidden, up_type, down_type, act] = problem;
  const std::string what = absl::StrCat(
      backend.name(), ": ", rows, " rows, ", dim, " x ", hidden, " ", std::string(Name(up_type)),
      " ", std::string(Name(down_type)), " epilogue ", static_cast<int>(act));
  std::vector<float> w1 = RandomVector(static_cast<size_t>(dim * hidden), 1),
                     w2 = RandomVector(static_cast<size_t>(dim * hidden), 2),
                     gain = RandomVector(static_cast<size_t>(dim), 3);
  const auto up = *backend.PackLinear({Contiguous(w1, {hidden, dim})}, up_type);
  const auto down = *backend.PackLinear({Contiguous(w2, {dim, hidden})}, down_type);
  Matrix expected = Matrix::Random(rows, dim, 4), got = Matrix::Random(rows, dim, 4);
  Matrix normed(rows, dim), h(rows, hidden);
  backend.FeedForward(got.view(), Contiguous(gain, {dim}), 1e-6f, *up, act, *down, normed.view(),
                      h.view());
  // A backend that keeps rows in its caches leaves them alone.
  EXPECT_EQ(normed.at(rows - 1, 0) == kSentinel && h.at(0, hidden - 1) == kSentinel, is_fused)
      << what;
  backend.Backend::FeedForward(expected.view(), Contiguous(gain, {dim}), 1e-6f, *up, act, *down,
                               normed.view(), h.view());
  EXPECT_TRUE(got.SentinelsIntact()) << what;
  for (int r = 0; r < rows; ++r) {
    ASSERT_EQ(std::memcmp(&got.at(r, 0), &expected.at(r, 0), static_cast<size_t>(dim) * 4), 0)
        << "row " << r << " of " << what;
  }
}

// Whether a backend of few threads takes rows through both layers.
bool IsFused(absl::string_view backend, int rows, DType type) {
  if (!absl::StartsWith(backend, "cpu:")) return false;
  const bool has_tiles = absl::StrContains(backend, "amx");
  const bool packs_bf16 = has_tiles || absl::StrContains(backend, "avx512bf16");
  return rows > (has_tiles ? 256 : 240) &&
         (type == DType::kI8 || (type == DType::kBF16 && packs_bf16));
}

// The bits of its parts, whichever rows a backend takes together.
TEST_P(AgreementTest, FeedForwardIsItsOperators) {
  struct Sizes {
    int rows, dim, hidden;
  };
  for (const Sizes& sizes :
       {Sizes{1, 33, 72}, Sizes{40, 16, 100}, Sizes{240, 20, 31}, Sizes{256, 20, 31},
        Sizes{257, 40, 97}, Sizes{333, 70, 31}, Sizes{700, 24, 128}}) {
    for (const DType type : Types()) {
      for (const LinearEpilogue act : {LinearEpilogue::kRelu, LinearEpilogue::kGelu}) {
        ExpectFeedForwardIsItsOperators(*tested_,
                                        {sizes.rows, sizes.dim, sizes.hidden, type, type, act},
                                        IsFused(GetParam(), sizes.rows, type));
      }
    }
  }
  // Of two types.
  ExpectFeedForwardIsItsOperators(*tested_, {300, 32, 31, DType::kBF16, DType::kF32}, false);
}

// An infinite input makes every hidden number of its row infinite, or zero. None may meet the
// zeros that pad a row of 31: that product would be NaN.
TEST_P(AgreementTest, FeedForwardOfInfinities) {
  constexpr int kRows = 300, kDim = 32, kHidden = 31;
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  std::vector<float> w1 = RandomVector(kHidden * kDim, 1), w2 = RandomVector(kDim * kHidden, 2),
                     gain(kDim, 1.0f);
  gain[0] = 3e38f;
  for (size_t h = 0; h < kHidden; ++h) w1[h * kDim] = 1.0f;
  for (size_t i = 0; i < w2.size(); ++i)  // each output sums infinities of one sign
    w2[i] = std::copysign(w2[i], i / kHidden % 2 == 0 ? 1.0f : -1.0f);
  for (const DType type : {DType::kF32, DType::kBF16}) {
    const auto up = *tested_->PackLinear({Contiguous(w1, {kHidden, kDim})}, type);
    const auto down = *tested_->PackLinear({Contiguous(w2, {kDim, kHidden})}, type);
    Matrix x = Matrix::Random(kRows, kDim, 4), normed(kRows, kDim), hidden(kRows, kHidden);
    const auto is_above = [](int row) { return row % 3 != 1; };
    for (int r = 0; r < kRows; ++r) x.at(r, 0) = is_above(r) ? 10.0f : -10.0f;
    Matrix before = x;
    tested_->FeedForward(x.view(), Contiguous(gain, {kDim}), 1e-6f, *up, LinearEpilogue::kRelu,
                         *down, normed.view(), hidden.view());
    EXPECT_EQ(normed.at(0, 0) == kSentinel, IsFused(GetParam(), kRows, type));
    for (int r = 0; r < kRows; ++r) {
      for (int o = 0; o < kDim; ++o) {
        const float expected =
            is_above(r) ? std::copysign(kInfinity, o % 2 == 0 ? 1.0f : -1.0f) : before.at(r, o);
        ASSERT_EQ(x.at(r, o), expected)
            << std::string(Name(type)) << ", row " << r << ", output " << o;
      }
    }
  }
}

// A layer's heads, by ProjectHeads and by the operators it stands for.
struct HeadsProblem {
  int rows, dim, head_dim;
  int normalized, others;  // heads
  DType type;
  bool rotates = false;
};
std::string Description(const HeadsProblem& p) {
  return absl::StrCat(p.rows, " rows, ", p.dim, " x (", p.normalized, " + ", p.others,
                      ") heads of ", p.head_dim, " ", std::string(Name(p.type)),
                      p.rotates ? " rotated" : "");
}
Matrix Project(Backend& backend, const HeadsProblem& p, bool apart, bool* left_normed_alone) {
  const int columns = p.normalized * p.head_dim, out = columns + p.others * p.head_dim;
  std::vector<float> w = RandomVector(static_cast<size_t>(out * p.dim), 1),
                     gain = RandomVector(static_cast<size_t>(p.dim), 2);
  const auto packed = *backend.PackLinear({Contiguous(w, {out, p.dim})}, p.type);
  Matrix x = Matrix::Random(p.rows, p.dim, 3), normed(p.rows, p.dim), heads(p.rows, out),
         table(p.rows, p.head_dim);
  HeadOptions options = {.normalized = columns, .head_dim = p.head_dim};
  if (p.rotates) {
    const Row row = {.slot = SlotId(0), .begin = 0, .end = p.rows, .position = 1'003};
    backend.RotaryTable({row}, 10000.0, table.view());
    options.rotary = table.view();
  }
  const TensorView gains = Contiguous(gain, {p.dim});
  if (apart) {
    backend.RmsNorm(x.view(), gains, 1e-6f, normed.view());
    backend.Linear(normed.view(), *packed, {}, heads.view());
    const TensorView first = heads.view().Columns(0, columns);
    if (columns > 0) backend.NormalizeHeads(first, p.head_dim, options.rotary);
  } else {
    backend.ProjectHeads(x.view(), gains, 1e-6f, *packed, options, normed.view(), heads.view());
  }
  EXPECT_TRUE(backend.Sync().ok());
  EXPECT_TRUE(normed.SentinelsIntact()) << Description(p);
  *left_normed_alone = normed.at(0, 0) == kSentinel && normed.at(p.rows - 1, 0) == kSentinel;
  return heads;
}
void ExpectHeadsAreTheirOperators(Backend& backend, const HeadsProblem& problem, bool is_fused) {
  const std::string what = absl::StrCat(backend.name(), ": ", Description(problem));
  bool got_fused = false, unused = false;
  Matrix got = Project(backend, problem, /*apart=*/false, &got_fused);
  Matrix expected = Project(backend, problem, /*apart=*/true, &unused);
  EXPECT_EQ(got_fused, is_fused) << what;
  EXPECT_TRUE(got.SentinelsIntact()) << what;
  const std::vector<float> bits = got.values(), expected_bits = expected.values();
  EXPECT_EQ(std::memcmp(bits.data(), expected_bits.data(), bits.size() * sizeof(float)), 0) << what;
}

// Normalised heads that end with a panel of 32, within one, and with the layer.
TEST_P(AgreementTest, ProjectedHeadsAreTheirOperators) {
  struct Heads {
    int head_dim, normalized, others;
  };
  uint32_t shape = 0;
  for (const int rows : {1, 7, 33, 240, 241, 256, 257, 300, 520}) {
    for (const Heads& heads : {Heads{24, 3, 2}, Heads{24, 0, 3}, Heads{24, 3, 0}, Heads{32, 2, 1},
                               Heads{2, 1, 1}, Heads{70, 2, 1}}) {
      for (const DType type : Types()) {
        for (const bool rotates : {false, true}) {
          if ((rotates && heads.normalized == 0) || LeftOutUnderSanitizers(++shape)) continue;
          const HeadsProblem problem = {rows,         45,   heads.head_dim, heads.normalized,
                                        heads.others, type, rotates};
          ExpectHeadsAreTheirOperators(*tested_, problem, IsFused(GetParam(), rows, type));
          ExpectAgreement(
              [&](Backend& backend) {
                bool unused = false;
                return Project(backend, problem, /*apart=*/false, &unused);
              },
              Description(problem));
        }
      }
    }
  }
}

// Threads that have rows of their own, and threads that share the panels of the same rows.
TEST(LinearThreadsTest, BitsDoNotDependOnTheNumberOfThreads) {
  std::vector<std::string> levels = {"cpu:avx2"};
  const CpuIsa best = DetectCpuIsa();
  if (best >= CpuIsa::kAvx512) levels.push_back("cpu:amx-emulated");
  if (Supports(best, CpuIsa::kAvx512Bf16)) levels.push_back("cpu:avx512bf16");
  uint32_t shape = 0;
  for (const std::string& level : levels) {
    for (const int rows : {241, 257, 300, 1100}) {
      for (const DType type : {DType::kBF16, DType::kI8}) {
        for (const int out : {1, 33, 230}) {
          if (LeftOutUnderSanitizers(++shape)) continue;
          std::vector<float> w = RandomVector(static_cast<size_t>(out * 70), 9);
          const auto run = [&](int threads) {
            const auto backend = *MakeBackend(absl::StrCat(level, ":", threads));
            const auto packed = *backend->PackLinear({Contiguous(w, {out, 70})}, type);
            Matrix x = Matrix::Random(rows, 70, 10), y(rows, out);
            backend->Linear(x.view(), *packed, {}, y.view());
            return y.values();
          };
          const std::vector<float> alone = run(1);
          for (const int threads : {2, 3, 8, 16}) EXPECT_EQ(run(threads), alone) << threads;
        }
      }
    }
    const int many = absl::StrContains(level, "amx") ? 16 : 32;  // too many for 300 rows
    for (const int threads : {1, 3, many}) {
      const auto backend = *MakeBackend(absl::StrCat(level, ":", threads));
      for (const DType type : {DType::kBF16, DType::kI8}) {
        ExpectFeedForwardIsItsOperators(*backend, {300, 24, 70, type, type},
                                        threads < many && IsFused(level, 300, type));
        ExpectFeedForwardIsItsOperators(*backend, {1100, 70, 24, type, type},
                                        IsFused(level, 1100, type));
        ExpectHeadsAreTheirOperators(*backend, {300, 70, 24, 3, 2, type, /*rotates=*/true},
                                     threads < many && IsFused(level, 300, type));
        ExpectHeadsAreTheirOperators(*backend, {1100, 70, 24, 3, 2, type, /*rotates=*/true},
                                     IsFused(level, 1100, type));
      }
    }
  }
}

// More inputs than one segment of a sum has, for few rows and for many; a row's bits stay its own.
TEST_P(AgreementTest, LinearOverManyInputs) {
  constexpr int kIn = 8300, kOut = 19, kRows = 37;
  std::vector<float> w = RandomVector(kIn * kOut, 6, 0.01);
  for (const DType type : Types()) {
    for (const LinearEpilogue epilogue :
         {LinearEpilogue::kStore, LinearEpilogue::kGelu, LinearEpilogue::kAdd}) {
      const auto apply = [&](Backend& backend, int rows) {
        const auto packed = *backend.PackLinear({Contiguous(w, {kOut, kIn})}, type);
        Matrix x = Matrix::Random(kRows, kIn, 7), y = Matrix::Random(kRows, kOut, 8);
        backend.Linear(x.view().Rows(kRows - rows, kRows), *packed, {.epilogue = epilogue},
                       y.view().Rows(kRows - rows, kRows));
        return y;
      };
      const std::string what =
          absl::StrCat(std::string(Name(type)), " epilogue ", static_cast<int>(epilogue));
      ExpectAgreement([&](Backend& backend) { return apply(backend, kRows); }, what);
      Matrix all = apply(*tested_, kRows), last = apply(*tested_, 1);
      EXPECT_EQ(std::memcmp(&all.at(kRows - 1, 0), &last.at(kRows - 1, 0), kOut * sizeof(float)), 0)
          << what;
    }
  }
}

TEST_P(AgreementTest, NormsGatesAndRotations) {
  for (const int dim : {1, 2, 15, 16, 17, 48, 100, 768}) {
    for (const int rows : {1, 3, 70}) {
      const std::string what = absl::StrCat("dim ", dim, " rows ", rows);
      std::vector<float> gain = RandomVector(static_cast<size_t>(dim), 6);
      ExpectAgreement(
          [&](Backend& backend) {
            Matrix x = Matrix::Random(rows, dim, 7, 3.0), y(rows, dim);
            backend.RmsNorm(x.view(), Contiguous(gain, {dim}), 1e-3f, y.view());
            return y;
          },
          "rms_norm " + what);
      for (const GateActivation activation : {GateActivation::kGelu, GateActivation::kSilu}) {
        ExpectAgreement(
            [&](Backend& backend) {
              Matrix x = Matrix::Random(rows, 2 * dim, 8, 3.0), y(rows, dim);
              backend.Gate(x.view(), activation, y.view());
              return y;
            },
            "gate " + what);
      }
      for (const int heads : {1, 3}) {
        ExpectAgreement(
            [&](Backend& backend) {
              Matrix x = Matrix::Random(rows, heads * dim, 9, 0.01);
              backend.NormalizeHeads(x.view(), dim, /*rotary=*/{});
              return x;
            },
            "normalize_heads " + what);
        if (dim % 2 != 0) continue;
        ExpectAgreement(
            [&](Backend& backend) {
              Matrix x = Matrix::Random(rows, heads * dim, 10), table(rows, dim);
              const Row row = {.slot = SlotId(0), .begin = 0, .end = rows, .position = 1'000'003};
              backend.RotaryTable({row}, 10000.0, table.view());
              backend.Rotate(x.view(), dim, table.view());
              return x;
            },
            "rotate " + what);
        ExpectAgreement(
            [&](Backend& backend) {
              Matrix x = Matrix::Random(rows, heads * dim, 11, 3.0), table(rows, dim);
              const Row row = {.slot = SlotId(0), .begin = 0, .end = rows, .position = 1'000'003};
              backend.RotaryTable({row}, 10000.0, table.view());
              Matrix apart = x;
              backend.NormalizeHeads(x.view(), dim, table.view());
              backend.NormalizeHeads(apart.view(), dim, /*rotary=*/{});
              backend.Rotate(apart.view(), dim, table.view());
              EXPECT_TRUE(backend.Sync().ok());
              EXPECT_EQ(x.values(), apart.values()) << "at once and one by one, " << what;
              return x;
            },
            "normalize and rotate " + what);
      }
    }
  }
}

// Squares beyond float32: the sum goes on in float64; NaN reaches every output of its row.
TEST_P(AgreementTest, NormsOfHugeNumbersAndNan) {
  std::vector<float> gain(37, 1.5f);
  const auto apply = [&](Backend& backend) {
    Matrix x = Matrix::Random(3, 37, 50, 1e25), y(3, 37);
    backend.RmsNorm(x.view(), Contiguous(gain, {37}), 1e-6f, y.view());
    return y;
  };
  ExpectAgreement(apply, "huge");
  Matrix x = Matrix::Random(1, 37, 51), y(1, 37);
  x.at(0, 20) = std::nanf("");
  tested_->RmsNorm(x.view(), Contiguous(gain, {37}), 1e-6f, y.view());
  for (int i = 0; i < 37; ++i) EXPECT_TRUE(std::isnan(y.at(0, i))) << i;
}

// The right limits, and NaN stays NaN.
TEST_P(AgreementTest, ActivationsAtTheirLimits) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  constexpr float kHuge = 0x1p100f;  // BF16 has it
  struct Limit {
    float input, relu;
    std::optional<float> gelu;  // none: half of it times a difference that may be zero
  };
  constexpr Limit kLimits[] = {{-100.0f, 0.0f, 0.0f},
                               {100.0f, 100.0f, 100.0f},
                               {0.0f, 0.0f, 0.0f},
                               {-kHuge, 0.0f, 0.0f},
                               {kHuge, kHuge, kHuge},
                               {-kInfinity, 0.0f, {}},
                               {kInfinity, kInfinity, kInfinity}};
  constexpr int kRows = std::size(kLimits) + 1;  // and one of NaN
  std::vector<float> one = {1.0f};
  for (Backend* backend : {reference_.get(), tested_.get()}) {
    for (const DType type : {DType::kF32, DType::kBF16}) {
      const auto packed = *backend->PackLinear({Contiguous(one, {1, 1})}, type);
      Matrix x(kRows, 1), relu(kRows, 1), gelu(kRows, 1);
      for (int r = 0; r + 1 < kRows; ++r) x.at(r, 0) = kLimits[r].input;
      x.at(kRows - 1, 0) = std::nanf("");
      backend->Linear(x.view(), *packed, {.epilogue = LinearEpilogue::kRelu}, relu.view());
      backend->Linear(x.view(), *packed, {.epilogue = LinearEpilogue::kGelu}, gelu.view());
      const std::string what = absl::StrCat(backend->name(), " ", std::string(Name(type)), " of ");
      for (int r = 0; r + 1 < kRows; ++r) {
        const Limit& limit = kLimits[r];
        EXPECT_EQ(relu.at(r, 0), limit.relu) << what << limit.input;
        if (limit.gelu.has_value()) {
          EXPECT_EQ(gelu.at(r, 0), *limit.gelu) << what << limit.input;
        }
      }
      EXPECT_TRUE(std::isnan(gelu.at(kRows - 1, 0))) << what << "NaN";
      EXPECT_TRUE(std::isnan(relu.at(kRows - 1, 0))) << what << "NaN";
    }
  }
}

struct AttentionProblem {
  AttentionSpec spec;
  std::vector<float> scale, bias;
  bool has_bias;
  uint32_t seed;

  int64_t width() const { return int64_t{spec.num_heads} * spec.head_dim; }
  AttentionParameters parameters() {
    return {.spec = spec,
            .scale = Contiguous(scale, {spec.num_heads}),
            .bias = has_bias ? Contiguous(bias, {spec.num_heads, spec.window + 1}) : TensorView()};
  }
  std::string description() const {
    return absl::StrCat("H ", spec.num_heads, " dh ", spec.head_dim, " W ", spec.window,
                        spec.scope == AttentionScope::kSliding ? " sliding" : " block",
                        spec.include_self ? " self" : " strict",
                        spec.empty_prefix == EmptyPrefix::kZeros ? " zeros " : " masked ",
                        has_bias ? "bias " : "", std::string(Name(spec.kv_type)));
  }
};

AttentionProblem RandomAttention(std::mt19937& random, DType kv_type) {
  const auto pick = [&](std::vector<int> choices) { return choices[random() % choices.size()]; };
  const bool sliding = random() % 2 == 0;
  AttentionProblem problem = {
      .spec = {.num_heads = pick({1, 2, 3}),
               .head_dim = pick({1, 7, 8, 16, 24, 64, 80, 136}),
               .window = pick({1, 2, 7, 15, 16, 17, 32, 33, 40, 128, 160, 300}),
               .scope = sliding ? AttentionScope::kSliding : AttentionScope::kBlock,
               .include_self = random() % 2 == 0,
               .empty_prefix =
                   sliding && random() % 2 == 0 ? EmptyPrefix::kZeros : EmptyPrefix::kMasked,
               .kv_type = kv_type},
      .scale = {},
      .bias = {},
      .has_bias = random() % 2 == 0,
      .seed = static_cast<uint32_t>(random())};
  problem.scale = RandomVector(static_cast<size_t>(problem.spec.num_heads), 12);
  for (float& s : problem.scale)
    s = std::fabs(s) / std::sqrt(static_cast<float>(problem.spec.head_dim));
  problem.bias =
      RandomVector(static_cast<size_t>(problem.spec.num_heads * (problem.spec.window + 1)), 13);
  return problem;
}

// Two documents in changing rows, one call for each of `lengths`: the first one's rows of a call,
// then the second's. `edit` may change keys and values before. Of each row in turn so many of its
// first tokens' outputs as `unread` says are not asked for.
Matrix AttendDocuments(
    Backend& backend, AttentionProblem& problem, const std::vector<int>& lengths,
    const std::function<void(Matrix&, Matrix&)>& edit = [](Matrix&, Matrix&) {},
    absl::Span<const int> unread = {}) {
  const auto weights = *backend.PackAttention(problem.parameters());
  const size_t slot_bytes = (backend.RingBytes(problem.spec) + 63) / 64 * 64;
  const Buffer memory = *backend.Allocate(slot_bytes * 3);
  const PoolView ring = {static_cast<std::byte*>(memory.data()), slot_bytes};
  int64_t total = 0;
  for (const int length : lengths) total += 2 * length;
  const int64_t width = problem.width();
  Matrix q = Matrix::Random(total, width, problem.seed),
         k = Matrix::Random(total, width, problem.seed + 1),
         v = Matrix::Random(total, width, problem.seed + 2), out(total, width);
  edit(k, v);
  int64_t begin = 0, position = 0;
  for (const int length : lengths) {
    std::vector<Row> rows = {
        {.slot = SlotId(2), .begin = 0, .end = length, .position = position},
        {.slot = SlotId(0), .begin = length, .end = 2 * length, .position = position}};
    for (size_t r = 0; r < rows.size() && !unread.empty(); ++r, unread.remove_prefix(1))
      rows[r].outputs_from = rows[r].begin + unread[0];
    const auto part = [&](Matrix& m) { return m.view().Rows(begin, begin + 2 * length); };
    backend.Attention(*weights, part(q), part(k), part(v), rows, ring, part(out));
    begin += 2 * length;
    position += length;
  }
  return out;
}

// Three steps of up to two windows and a bit, then single tokens.
std::vector<int> RandomLengths(std::mt19937& random, int window) {
  std::vector<int> lengths;
  for (int step = 0; step < 3; ++step)
    lengths.push_back(1 + static_cast<int>(random() % (2 * static_cast<unsigned>(window) + 3)));
  lengths.insert(lengths.end(), 3, 1);
  return lengths;
}

TEST_P(AgreementTest, AttentionOverChunksAndSteps) {
  std::mt19937 random(11);
  for (int trial = 0; trial < (kSanitized ? 24 : 120); ++trial) {
    AttentionProblem problem = RandomAttention(random, AnyType(static_cast<uint32_t>(trial)));
    const std::vector<int> lengths = RandomLengths(random, problem.spec.window);
    ExpectAgreement([&](Backend& backend) { return AttendDocuments(backend, problem, lengths); },
                    absl::StrCat("trial ", trial, ": ", problem.description()),
                    AttentionTolerance(problem.spec.kv_type));
  }
}

// With scores of zero every visible value weighs the same, exactly (but for the scales of INT8):
// who is visible, and which value an index stands for.
TEST_P(AgreementTest, AttentionToEveryVisibleValueAlike) {
  std::mt19937 random(12);
  for (int trial = 0; trial < (kSanitized ? 8 : 40); ++trial) {
    AttentionProblem problem = RandomAttention(random, AnyType(static_cast<uint32_t>(trial)));
    std::fill(problem.scale.begin(), problem.scale.end(), 0.0f);
    const std::vector<int> lengths = RandomLengths(random, problem.spec.window);
    ExpectAgreement(
        [&](Backend& backend) { return AttendDocuments(backend, problem, lengths); },
        absl::StrCat("trial ", trial, ": ", problem.description()),
        problem.spec.kv_type == DType::kI8 ? AttentionTolerance(DType::kI8) : kTolerance);
  }
}

// Sums of bytes are exact: dot products and tiles, by instructions and in plain code, are the same
// bits.
TEST_P(AgreementTest, AttentionOnBytesIsTheSameOnTiles) {
  if (GetParam().find("avx512vnni") == std::string::npos) GTEST_SKIP() << "one level is enough";
  for (const char* name : {"cpu:amx-emulated", "cpu:amx"}) {
    const auto tiles = *MakeBackend(name);
    std::mt19937 random(14);
    for (int trial = 0; trial < 20; ++trial) {
      AttentionProblem problem = RandomAttention(random, DType::kI8);
      const std::vector<int> lengths = RandomLengths(random, problem.spec.window);
      const std::vector<float> expected = AttendDocuments(*tested_, problem, lengths).values();
      const std::vector<float> got = AttendDocuments(*tiles, problem, lengths).values();
      EXPECT_EQ(std::memcmp(expected.data(), got.data(), got.size() * sizeof(float)), 0)
          << name << ", " << trial << ": " << problem.description();
    }
  }
}

// From any token on, or of none, outputs are what they are when all are asked for, and so are those
// of later steps. The others are not touched but for single tokens.
TEST_P(AgreementTest, AttentionWithoutOutputsThatNobodyReads) {
  const bool is_cpu = absl::StartsWith(GetParam(), "cpu");
  std::mt19937 random(15);
  for (int trial = 0; trial < (kSanitized || !is_cpu ? 8 : 60); ++trial) {
    AttentionProblem problem = RandomAttention(random, AnyType(static_cast<uint32_t>(trial)));
    const std::vector<int> lengths = RandomLengths(random, problem.spec.window);
    std::vector<int> unread;
    for (const int length : lengths) {
      for (int row = 0; row < 2; ++row) {
        const auto any = static_cast<int>(random() % (static_cast<unsigned>(length) + 1));
        const std::vector<int> choices = {0, length - 1, length, any, any};
        unread.push_back(choices[random() % choices.size()]);
      }
    }
    Matrix all = AttendDocuments(*tested_, problem, lengths);
    Matrix got = AttendDocuments(
        *tested_, problem, lengths, [](Matrix&, Matrix&) {}, unread);
    int64_t first = 0;
    for (size_t row = 0; row < unread.size(); ++row) {
      const int length = lengths[row / 2];
      for (int i = 0; i < length; ++i) {
        const bool is_read = i >= unread[row];
        if (!is_read && length == 1) continue;
        for (int64_t c = 0; c < problem.width(); ++c) {
          const float expected = is_read ? all.at(first + i, c) : kSentinel;
          ASSERT_EQ(std::memcmp(&got.at(first + i, c), &expected, sizeof(float)), 0)
              << trial << ": " << problem.description() << ", row " << row << ", token " << i
              << " of " << length << ", " << unread[row] << " unread";
        }
      }
      first += length;
    }
  }
}

// One document in one chunk, in pieces cut anywhere and token by token: the same bits.
TEST_P(AgreementTest, AttentionDoesNotDependOnTheCut) {
  std::mt19937 random(13);
  for (int trial = 0; trial < (kSanitized ? 8 : 40); ++trial) {
    AttentionProblem problem = RandomAttention(random, AnyType(static_cast<uint32_t>(trial)));
    const int window = problem.spec.window, total = 3 * window + 5;
    const int64_t width = problem.width();
    const auto attend = [&](const std::vector<int>& lengths) {
      const auto weights = *tested_->PackAttention(problem.parameters());
      const Buffer memory = *tested_->Allocate(tested_->RingBytes(problem.spec));
      const PoolView ring = {static_cast<std::byte*>(memory.data()), memory.bytes()};
      Matrix q = Matrix::Random(total, width, problem.seed),
             k = Matrix::Random(total, width, problem.seed + 1),
             v = Matrix::Random(total, width, problem.seed + 2), out(total, width);
      int position = 0;
      for (const int length : lengths) {
        const auto part = [&](Matrix& m) { return m.view().Rows(position, position + length); };
        tested_->Attention(
            *weights, part(q), part(k), part(v),
            {Row{.slot = SlotId(0), .begin = 0, .end = length, .position = position}}, ring,
            part(out));
        position += length;
      }
      return out.values();
    };
    std::vector<int> pieces;
    for (int left = total; left > 0; left -= pieces.back())
      pieces.push_back(std::min(left, 1 + static_cast<int>(random() % 45)));
    const std::vector<float> whole = attend({total});
    for (const std::vector<int>& lengths :
         {pieces, std::vector<int>(static_cast<size_t>(total), 1)}) {
      EXPECT_EQ(std::memcmp(whole.data(), attend(lengths).data(), whole.size() * sizeof(float)), 0)
          << trial << ": " << problem.description();
    }
  }
}

// A query's bits depend on its position alone: neither on the cut nor on the queries beside it.
// Several tiles of keys and of queries.
TEST_P(AgreementTest, AttentionBitsDoNotDependOnCuts) {
  constexpr int kHeadDim = 24;
  for (const DType type : Types()) {
    for (const auto& [window, scope] :
         {std::pair(90, AttentionScope::kSliding), std::pair(90, AttentionScope::kBlock),
          std::pair(300, AttentionScope::kSliding)}) {
      const int total = 2 * window + 40;
      const AttentionSpec spec = {.num_heads = 1,
                                  .head_dim = kHeadDim,
                                  .window = window,
                                  .scope = scope,
                                  .include_self = scope == AttentionScope::kBlock,
                                  .kv_type = type};
      std::vector<float> scale = {0.3f}, bias = RandomVector(static_cast<size_t>(window + 1), 20);
      const auto weights = *tested_->PackAttention({.spec = spec,
                                                    .scale = Contiguous(scale, {1}),
                                                    .bias = Contiguous(bias, {1, window + 1})});
      const auto run = [&](const std::vector<int>& lengths) {
        const Buffer memory = *tested_->Allocate(tested_->RingBytes(spec));
        const PoolView ring = {static_cast<std::byte*>(memory.data()), memory.bytes()};
        Matrix q = Matrix::Random(total, kHeadDim, 21), k = Matrix::Random(total, kHeadDim, 22),
               v = Matrix::Random(total, kHeadDim, 23), out(total, kHeadDim);
        int64_t begin = 0;
        for (const int length : lengths) {
          const auto part = [&](Matrix& m) { return m.view().Rows(begin, begin + length); };
          tested_->Attention(*weights, part(q), part(k), part(v),
                             {Row{.slot = SlotId(0), .begin = 0, .end = length, .position = begin}},
                             ring, part(out));
          begin += length;
        }
        return out.values();
      };
      const std::vector<float> whole = run({total});
      for (const std::vector<int>& lengths : {std::vector<int>(static_cast<size_t>(total), 1),
                                              {1, 70, 17, total - 88},
                                              {100, 3, 50, total - 153}}) {
        const std::vector<float> cut = run(lengths);
        EXPECT_EQ(std::memcmp(cut.data(), whole.data(), whole.size() * sizeof(float)), 0)
            << std::string(Name(type)) << " in " << lengths.size() << " steps";
      }
    }
  }
}

// A key or a value that is not finite reaches no other sequence, no other head and no query that
// does not see it. A value of BF16 does reach queries that lie in one step of 32 ring indices with
// it, by their weights of zero. It reaches its own column alone; the numbers of an INT8 value share
// a scale.
TEST_P(AgreementTest, AttentionKeepsWhatIsNotFiniteToItself) {
  constexpr int kColumn = 5, kStep = 32;
  // Head widths and windows; the last is of two chunks (grouped_ring.h).
  const std::vector<std::pair<int, int>> shapes = {{24, 70}, {48, 70}, {80, 70}, {48, 170}};
  for (const DType type : Types()) {
    for (const auto& [head_dim, window] : shapes) {
      if (kSanitized && (head_dim != 48 || window != 70)) continue;
      const int bad = window + 5;
      const std::vector<int> lengths = {window + 30, 1, 1, 1, 2 * window};
      AttentionProblem problem = {.spec = {.num_heads = 2,
                                           .head_dim = head_dim,
                                           .window = window,
                                           .include_self = true,
                                           .kv_type = type},
                                  .scale = {0.2f, 0.3f},
                                  .bias = {},
                                  .has_bias = false,
                                  .seed = 31};
      Matrix expected = AttendDocuments(*tested_, problem, lengths);
      for (const bool is_key : {true, false}) {
        Matrix got =
            AttendDocuments(*tested_, problem, lengths,
                            [&](Matrix& k, Matrix& v) {  // an infinite key may weigh nothing
                              (is_key ? k : v).at(bad, kColumn) =
                                  is_key ? std::nanf("") : std::numeric_limits<float>::infinity();
                            });
        const int64_t more = !is_key && type == DType::kBF16 ? kStep - 1 : 0;
        int64_t row = 0, position = 0;
        for (const int length : lengths) {
          for (int document = 0; document < 2; ++document) {
            for (int i = 0; i < length; ++i, ++row) {
              const int64_t distance = position + i - bad;
              const bool sees = document == 0 && 0 <= distance && distance < window;
              const bool may_meet = document == 0 && -more <= distance && distance < window + more;
              for (int64_t c = 0; c < problem.width(); ++c) {
                const bool is_same =
                    std::memcmp(&got.at(row, c), &expected.at(row, c), sizeof(float)) == 0;
                const bool is_its = c < head_dim && (is_key || type == DType::kI8 || c == kColumn);
                const std::string what =
                    absl::StrCat(std::string(Name(type)), is_key ? " key" : " value", ", head_dim ",
                                 head_dim, ", W ", window, ", document ", document, ", position ",
                                 position + i, ", column ", c);
                if (sees && is_its) {
                  ASSERT_FALSE(std::isfinite(got.at(row, c))) << what;
                } else if (!may_meet || !is_its) {
                  ASSERT_TRUE(is_same) << what;
                }
              }
            }
          }
          position += length;
        }
      }
    }
  }
}

// So many single tokens that a task of one of two threads takes three of one's heads, or two.
// Beside chunks too. A head that is taken twice shows where a query does not see itself: it finds
// its own key in place of the oldest.
TEST_P(AgreementTest, AttentionOfManyTokens) {
  constexpr int kDocuments = 7, kHeads = 5, kHeadDim = 16, kWidth = kHeads * kHeadDim;
  // Tokens of each document in each call.
  const std::vector<int> singles(kDocuments, 1);
  const std::vector<std::vector<int>> calls = {
      {50, 3, 17, 40, 1, 81, 5}, singles, {1, 30, 1, 1, 45, 1, 2}, singles};
  int rows_of_all = 0;
  for (const std::vector<int>& lengths : calls)
    rows_of_all = std::accumulate(lengths.begin(), lengths.end(), rows_of_all);
  for (const DType type : Types()) {
    std::vector<float> scale(kHeads, 0.25f);
    for (const bool include_self : {true, false}) {
      const AttentionSpec spec = {.num_heads = kHeads,
                                  .head_dim = kHeadDim,
                                  .window = 40,
                                  .include_self = include_self,
                                  .kv_type = type};
      const auto apply = [&](Backend& backend) {
        const auto weights = *backend.PackAttention(
            {.spec = spec, .scale = Contiguous(scale, {kHeads}), .bias = {}});
        const size_t slot_bytes = (backend.RingBytes(spec) + 63) / 64 * 64;
        const Buffer memory = *backend.Allocate(slot_bytes * kDocuments);
        const PoolView ring = {static_cast<std::byte*>(memory.data()), slot_bytes};
        std::vector<int64_t> positions(kDocuments);
        Matrix all(rows_of_all, kWidth);
        int total = 0;
        for (const std::vector<int>& lengths : calls) {
          std::vector<Row> rows;
          int count = 0;
          for (int d = 0; d < kDocuments; ++d) {
            const int n = lengths[static_cast<size_t>(d)];
            int64_t& position = positions[static_cast<size_t>(d)];
            rows.push_back({.slot = SlotId(kDocuments - 1 - d),
                            .begin = count,
                            .end = count + n,
                            .position = position});
            count += n, position += n;
          }
          const auto seed = static_cast<uint32_t>(total);
          Matrix q = Matrix::Random(count, kWidth, seed),
                 k = Matrix::Random(count, kWidth, seed + 1),
                 v = Matrix::Random(count, kWidth, seed + 2);
          backend.Attention(*weights, q.view(), k.view(), v.view(), rows, ring,
                            all.view().Rows(total, total + count));
          total += count;
        }
        return all;
      };
      ExpectAgreement(apply,
                      absl::StrCat(std::string(Name(type)), include_self ? " self" : " strict"),
                      AttentionTolerance(type));
    }
  }
}

// Rows so short that one thread takes several, and so wide that one row is several tasks.
TEST_P(AgreementTest, ElementwiseOperators) {
  for (const int dim : {1, 15, 16, 17, 50, 20'000}) {
    for (const int rows : {1, 6, 30}) {
      const std::string what = absl::StrCat(" dim ", dim, " rows ", rows);
      for (const int filters : {1, 3}) {
        std::vector<float> gain = RandomVector(static_cast<size_t>(filters * dim), 60);
        ExpectAgreement(
            [&](Backend& backend) {
              Matrix x = Matrix::Random(rows, dim, 61);
              Matrix y = Matrix::Random(rows, filters * dim, 62);
              backend.AddScaled(x.view(), Contiguous(gain, {filters * dim}), y.view());
              return y;
            },
            "add_scaled" + what);
      }
      ExpectAgreement(
          [&](Backend& backend) {
            Matrix x = Matrix::Random(rows, dim, 63), y = Matrix::Random(rows, dim, 64);
            backend.Multiply(x.view(), y.view());
            return y;
          },
          "multiply" + what);
      for (const int size : {1, 3, rows}) {
        if (rows % size != 0) continue;
        std::vector<float> table = RandomVector(static_cast<size_t>(size * dim), 65);
        ExpectAgreement(
            [&](Backend& backend) {
              Matrix x = Matrix::Random(rows, dim, 66);
              backend.AddTable(Contiguous(table, {size, dim}), x.view());
              return x;
            },
            "add_table" + what);
      }
      std::vector<float> gate = RandomVector(static_cast<size_t>(dim), 67);
      for (float& g : gate) g = 1 / (1 + std::exp(-g));
      ExpectAgreement(
          [&](Backend& backend) {
            Matrix s = Matrix::Random(rows, dim, 68), z = Matrix::Random(rows, dim, 69);
            backend.Interpolate(s.view(), Contiguous(gate, {dim}), z.view());
            return z;
          },
          "interpolate" + what);
    }
  }
}

TEST_P(AgreementTest, CopySlotTakesOneSlotAndNoMore) {
  for (Backend* backend : {reference_.get(), tested_.get()}) {
    std::vector<float> from(3 * 16), to(2 * 20);
    for (size_t i = 0; i < from.size(); ++i) from[i] = static_cast<float>(i + 1);
    const PoolView source = {reinterpret_cast<std::byte*>(from.data()), 16 * sizeof(float)};
    const PoolView target = {reinterpret_cast<std::byte*>(to.data()), 20 * sizeof(float)};
    backend->CopySlot(source, SlotId(2), target, SlotId(1));
    for (size_t i = 0; i < to.size(); ++i) {
      EXPECT_EQ(to[i], i >= 20 && i < 36 ? static_cast<float>(i + 13) : 0.0f) << i;
    }
    backend->CopySlot(target, SlotId(1), source, SlotId(0));
    for (size_t i = 0; i < from.size(); ++i) {
      EXPECT_EQ(from[i], static_cast<float>(i < 16 ? i + 33 : i + 1)) << i;
    }
  }
}

TEST_P(AgreementTest, EmbeddingGatherAndLogprobs) {
  for (const int vocab : {1, 2, 16, 33, 5000}) {
    std::vector<float> table = RandomVector(static_cast<size_t>(vocab * 21), 40);
    std::vector<TokenId> tokens;
    std::vector<int> indices;
    for (int i = 0; i < 9; ++i) {
      tokens.emplace_back((i * 7919) % vocab);
      indices.push_back(8 - i);
    }
    for (const DType type : {DType::kF32, DType::kBF16}) {
      ExpectAgreement(
          [&](Backend& backend) {
            const auto packed = *backend.PackEmbedding(Contiguous(table, {vocab, 21}), type);
            Matrix x(9, 21), y(9, 21);
            backend.Embed(*packed, tokens, x.view());
            backend.GatherRows(x.view(), indices, y.view());
            return y;
          },
          "embed", 1e-9);
    }
    ExpectAgreement(
        [&](Backend& backend) {
          Matrix logits = Matrix::Random(9, vocab, 41, 5.0), out(1, 9);
          backend.TargetLogprobs(logits.view(), tokens, absl::MakeSpan(&out.at(0, 0), 9));
          for (int i = 0; i < 9; ++i) out.at(0, i) -= 1.0f;  // vocabulary of one: all zero
          return out;
        },
        absl::StrCat("logprobs of ", vocab), 1e-6);
  }
}

// The largest logit, in every place of a vector and of the rest, is what the others are measured
// against: e^200 is no float32, and neither is the sum of a thousand e^-200.
TEST_P(AgreementTest, LogprobsFarFromZero) {
  for (Backend* backend : {reference_.get(), tested_.get()}) {
    for (const int vocab : {1, 2, 15, 16, 17, 40, 1100}) {
      const int step = vocab > 100 ? 61 : 1;
      for (int place = 0; place < vocab; place += step) {
        for (const float others : {0.0f, -200.0f}) {
          const std::string what = absl::StrCat(backend->name(), ": largest of ", vocab, " at ",
                                                place, ", others ", others);
          Matrix logits(2, vocab);
          for (int c = 0; c < vocab; ++c) logits.at(0, c) = logits.at(1, c) = others;
          logits.at(0, place) = 200.0f;         // beside which the others are nothing
          logits.at(1, place) = others + 1.0f;  // e times as likely as each of the others
          float got[2];
          const int target = (place + 1) % vocab;
          backend->TargetLogprobs(logits.view(), {TokenId(place), TokenId(target)},
                                  absl::MakeSpan(got));
          EXPECT_EQ(got[0], 0.0f) << what;
          const double expected =
              (target == place ? 1.0 : 0.0) - std::log(std::exp(1.0) + vocab - 1);
          EXPECT_NEAR(got[1], expected, 2e-6 * (1 - expected)) << what;
          backend->TargetLogprobs(logits.view(), {TokenId(target), TokenId(place)},
                                  absl::MakeSpan(got));
          EXPECT_EQ(got[0], target == place ? 0.0f : others - 200.0f) << what;
          logits.at(0, place) = std::nanf("");
          backend->TargetLogprobs(logits.view(), {TokenId(target), TokenId(place)},
                                  absl::MakeSpan(got));
          EXPECT_TRUE(std::isnan(got[0])) << what;
        }
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, AgreementTest, testing::ValuesIn(OperatorBackendNames()),
                         BackendTestName);

}  // namespace
}  // namespace bst
