// The convolution with explicit taps, of every CPU instruction set and of the reference: one
// function, whatever the shape; the same bits wherever a document is cut and whatever shares its
// steps. Random numbers come from fixed seeds.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/engine/backend/operator_fixture.h"

namespace bst {
namespace {

// Transforms and sums in float32 measure below 4e-7.
constexpr double kConvolutionTolerance = 3e-6;

struct Convolution {
  Convolution(int inputs, int filters, int block, int taps_per_filter, SsmOutputs outputs)
      : spec{.num_inputs = inputs, .num_filters = filters, .outputs = outputs, .block = block},
        num_taps(taps_per_filter),
        taps(RandomVector(static_cast<size_t>(spec.num_features() * num_taps), 1,
                          1 / std::sqrt(num_taps))),
        d(RandomVector(static_cast<size_t>(spec.num_features()), 2)) {}

  ConvolutionParameters parameters() {
    return {.spec = spec,
            .taps = Contiguous(taps, {spec.num_features(), num_taps}),
            .d = Contiguous(d, {spec.num_features()})};
  }
  bool HasOutput(int64_t position) const {
    return spec.outputs == SsmOutputs::kEveryToken || position % spec.block == spec.block - 1;
  }
  std::string name() const {
    return absl::StrCat("D ", spec.num_inputs, " C ", spec.num_filters, " W ", spec.block, " T ",
                        num_taps, spec.outputs == SsmOutputs::kEveryToken ? " tokens" : " ends");
  }

  SsmSpec spec;
  int num_taps;
  std::vector<float> taps, d;
};

// The next `length` tokens of a document; a step is one piece of each document that takes part.
struct Piece {
  size_t document;
  int length;
};
using Step = std::vector<Piece>;

// Outputs of each document, [outputs, C D].
std::vector<std::vector<float>> Convolve(Backend& backend, Convolution& convolution,
                                         std::vector<Matrix>& documents,
                                         const std::vector<Step>& steps) {
  const int64_t inputs = convolution.spec.num_inputs;
  const auto weights = *backend.PackConvolution(convolution.parameters());
  const Slots memory(backend, backend.SsmStateBytes(*weights),
                     static_cast<int>(documents.size()) + 1);
  const PoolView state = memory.view();
  std::vector<std::vector<float>> outputs(documents.size());
  std::vector<int64_t> positions(documents.size(), 0);
  for (const Step& step : steps) {
    std::vector<Row> rows;
    std::vector<size_t> owners;  // document of each output
    int total = 0;
    for (const auto& [document, length] : step) {
      const auto slot = static_cast<int>(documents.size() - document);
      rows.push_back({.slot = SlotId(slot),
                      .begin = total,
                      .end = total + length,
                      .position = positions[document]});
      for (int i = 0; i < length; ++i) {
        if (convolution.HasOutput(positions[document] + i)) owners.push_back(document);
      }
      total += length;
    }
    Matrix u(total, inputs);
    for (size_t r = 0; r < rows.size(); ++r) {
      for (int t = rows[r].begin; t < rows[r].end; ++t) {
        const int64_t position = rows[r].position + (t - rows[r].begin);
        std::copy_n(&documents[step[r].document].at(position, 0), inputs, &u.at(t, 0));
      }
      positions[step[r].document] += step[r].length;
    }
    Matrix y(static_cast<int64_t>(owners.size()), convolution.spec.num_features());
    backend.Ssm(*weights, u.view(), rows, state, y.view());
    EXPECT_TRUE(y.SentinelsIntact()) << convolution.name();
    for (size_t i = 0; i < owners.size(); ++i) {
      const float* row = &y.at(static_cast<int64_t>(i), 0);
      outputs[owners[i]].insert(outputs[owners[i]].end(), row,
                                row + convolution.spec.num_features());
    }
  }
  return outputs;
}

// Both documents in pieces of up to `longest` tokens, sometimes only one of them in a step, their
// order changing.
std::vector<Step> RandomSteps(const std::vector<int>& lengths, int longest, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<int> left = lengths;
  std::vector<Step> steps;
  while (std::any_of(left.begin(), left.end(), [](int n) { return n > 0; })) {
    Step step;
    const size_t first = random() % left.size();
    for (size_t i = 0; i < left.size(); ++i) {
      const size_t document = (first + i) % left.size();
      if (left[document] == 0 || (i > 0 && random() % 4 == 0)) continue;
      const int wanted =
          random() % 3 == 0 ? 1 : 1 + static_cast<int>(random() % static_cast<unsigned>(longest));
      step.push_back({document, std::clamp(wanted, 1, left[document])});
      left[document] -= step.back().length;
    }
    if (!step.empty()) steps.push_back(step);
  }
  return steps;
}

// The definition, in float64.
std::vector<float> DirectSum(Convolution& convolution, Matrix& document, int length) {
  const int inputs = convolution.spec.num_inputs;
  std::vector<float> out;
  for (int t = 0; t < length; ++t) {
    if (!convolution.HasOutput(t)) continue;
    for (int feature = 0; feature < convolution.spec.num_features(); ++feature) {
      const auto first = static_cast<size_t>(feature * convolution.num_taps);
      double sum =
          double{convolution.d[static_cast<size_t>(feature)]} * document.at(t, feature % inputs);
      for (int s = 0; s < convolution.num_taps && s <= t; ++s) {
        sum += double{convolution.taps[first + static_cast<size_t>(s)]} *
               document.at(t - s, feature % inputs);
      }
      out.push_back(static_cast<float>(sum));
    }
  }
  return out;
}

class ConvolutionTest : public OperatorTest {};

TEST_P(ConvolutionTest, AgreesWithTheReferenceOverAwkwardShapes) {
  uint32_t seed = 0;
  for (const int block : {1, 4, 7, 16, 128}) {
    for (const int num_taps : std::set<int>{1, 2, block - 1, block, block + 1, 4 * block + 3}) {
      if (num_taps < 1) continue;
      for (const int inputs : {1, 15, 16, 17, 50}) {
        for (const int filters : {1, 3}) {
          ++seed;
          if ((block == 128 && seed % 4 != 0) || LeftOutUnderSanitizers(seed)) continue;
          const std::vector<int> lengths = {num_taps + 3 * block, num_taps + 2 * block + 1};
          std::vector<Matrix> documents;
          for (const int length : lengths) {
            documents.push_back(
                Matrix::Random(length, inputs, seed + static_cast<uint32_t>(length)));
          }
          const std::vector<Step> steps = RandomSteps(lengths, 2 * block + 3, seed);
          for (const SsmOutputs outputs : {SsmOutputs::kEveryToken, SsmOutputs::kBlockEnds}) {
            Convolution convolution(inputs, filters, block, num_taps, outputs);
            const auto expected = Convolve(*reference_, convolution, documents, steps);
            const auto got = Convolve(*tested_, convolution, documents, steps);
            for (size_t i = 0; i < documents.size(); ++i) {
              EXPECT_LT(RelativeRms(got[i], expected[i]), kConvolutionTolerance)
                  << convolution.name() << " document " << i;
            }
          }
        }
      }
    }
  }
}

TEST_P(ConvolutionTest, IsTheDirectSum) {
  for (const SsmOutputs outputs : {SsmOutputs::kEveryToken, SsmOutputs::kBlockEnds}) {
    Convolution convolution(3, 2, 32, 700, outputs);
    std::vector<Matrix> documents = {Matrix::Random(1500, 3, 3)};
    const std::vector<float> expected = DirectSum(convolution, documents[0], 1500);
    for (Backend* backend : {reference_.get(), tested_.get()}) {
      const auto got =
          Convolve(*backend, convolution, documents, {{{0, 900}}, {{0, 1}}, {{0, 599}}});
      EXPECT_LT(RelativeRms(got[0], expected), kConvolutionTolerance)
          << backend->name() << " " << convolution.name();
    }
  }
}

// An impulse returns the taps one by one: no tap is missing, doubled or misplaced between the
// newest taps and the partitions, and nothing comes before it.
TEST_P(ConvolutionTest, AnImpulseReturnsTheTaps) {
  for (const int block : {4, 6}) {
    for (const int at : {0, 1, 3, 5, 8, 11}) {
      Convolution convolution(1, 1, block, 21, SsmOutputs::kEveryToken);
      std::vector<Matrix> documents = {Matrix(60, 1)};
      for (int t = 0; t < 60; ++t) documents[0].at(t, 0) = 0.0f;
      documents[0].at(at, 0) = 1.0f;
      const auto got = Convolve(*tested_, convolution, documents, {{{0, 60}}});
      for (int t = 0; t < 60; ++t) {
        const int s = t - at;
        float expected = s >= 0 && s < 21 ? convolution.taps[static_cast<size_t>(s)] : 0.0f;
        if (s == 0) expected += convolution.d[0];
        EXPECT_NEAR(got[0][static_cast<size_t>(t)], expected, s < 0 ? 0 : 2e-7)
            << "W " << block << " impulse at " << at << " output " << t;
      }
    }
  }
}

TEST_P(ConvolutionTest, BitsDoNotDependOnCutsAndNeighbours) {
  unsigned int number = 0;
  for (const SsmOutputs outputs : {SsmOutputs::kEveryToken, SsmOutputs::kBlockEnds}) {
    for (const int block : {1, 7, 32}) {
      for (const int num_taps : {1, block, 5 * block + 2, 300}) {
        for (const int filters : {1, 5}) {
          if (LeftOutUnderSanitizers(number++)) continue;
          Convolution convolution(37, filters, block, num_taps, outputs);
          const std::vector<int> lengths = {640, 333};
          std::vector<Matrix> documents = {Matrix::Random(640, 37, 10),
                                           Matrix::Random(333, 37, 11)};
          const auto whole = Convolve(*tested_, convolution, documents, {{{0, 640}}, {{1, 333}}});
          const std::vector<Step> tokens = [&] {
            std::vector<Step> steps;
            for (int t = 0; t < 640; ++t)
              steps.push_back(t < 333 ? Step{{1, 1}, {0, 1}} : Step{{0, 1}});
            return steps;
          }();
          std::vector<std::vector<Step>> schedules = {tokens};
          for (uint32_t seed = 0; seed < 3; ++seed)
            schedules.push_back(RandomSteps(lengths, seed == 0 ? 6 : 5 * block + 60, seed));
          for (const std::vector<Step>& steps : schedules) {
            const auto cut = Convolve(*tested_, convolution, documents, steps);
            for (size_t i = 0; i < documents.size(); ++i) {
              ASSERT_EQ(cut[i].size(), whole[i].size());
              EXPECT_EQ(std::memcmp(cut[i].data(), whole[i].data(), cut[i].size() * sizeof(float)),
                        0)
                  << convolution.name() << " document " << i << " in " << steps.size() << " steps";
            }
          }
        }
      }
    }
  }
}

TEST_P(ConvolutionTest, NoOutputSeesLaterInputs) {
  constexpr int kLength = 100, kChanged = 41;
  for (const auto& [outputs, block] : {std::pair{SsmOutputs::kEveryToken, 6},
                                       {SsmOutputs::kEveryToken, 21},
                                       {SsmOutputs::kBlockEnds, 6}}) {
    Convolution convolution(5, 2, block, 50, outputs);  // 41 ends a block
    std::vector<Matrix> before = {Matrix::Random(kLength, 5, 20)};
    std::vector<Matrix> after = before;
    for (int i = 0; i < 5; ++i) after[0].at(kChanged, i) += 1.0f;
    const auto a = Convolve(*tested_, convolution, before, {{{0, kLength}}});
    const auto b = Convolve(*tested_, convolution, after, {{{0, kLength}}});
    size_t same = 0;
    while (same < a[0].size() && a[0][same] == b[0][same]) ++same;
    int64_t earlier = 0;  // outputs before the change
    for (int t = 0; t < kChanged; ++t) earlier += convolution.HasOutput(t) ? 1 : 0;
    EXPECT_EQ(static_cast<int64_t>(same), earlier * convolution.spec.num_features())
        << convolution.name();
  }
}

TEST_P(ConvolutionTest, AClearedSlotRemembersNothing) {
  for (const SsmOutputs outputs : {SsmOutputs::kEveryToken, SsmOutputs::kBlockEnds}) {
    Convolution convolution(18, 1, 8, 45, outputs);
    const auto weights = *tested_->PackConvolution(convolution.parameters());
    const Slots memory(*tested_, tested_->SsmStateBytes(*weights), 1);
    const PoolView state = memory.view();
    Matrix other = Matrix::Random(96, 18, 30, 100.0), u = Matrix::Random(96, 18, 31);
    const int64_t num_outputs = outputs == SsmOutputs::kEveryToken ? 96 : 12;
    Matrix fresh(num_outputs, 18), reused(num_outputs, 18);
    const Row row = {.slot = SlotId(0), .begin = 0, .end = 96, .position = 0};
    tested_->Ssm(*weights, u.view(), {row}, state, fresh.view());
    tested_->ClearSlot(state, SlotId(0));
    tested_->Ssm(*weights, other.view(), {row}, state, reused.view());
    tested_->ClearSlot(state, SlotId(0));
    tested_->Ssm(*weights, u.view(), {row}, state, reused.view());
    EXPECT_EQ(fresh.values(), reused.values()) << convolution.name();
  }
}

INSTANTIATE_TEST_SUITE_P(All, ConvolutionTest, testing::ValuesIn(OperatorBackendNames()),
                         BackendTestName);

}  // namespace
}  // namespace bst
