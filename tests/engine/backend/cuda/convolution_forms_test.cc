// The two forms of an explicit filter on the CUDA backend, chosen by length: they are one function.
// That cuts do not show and that no output sees later inputs:
// tests/engine/backend/convolution_test.cc.
#include <cmath>
#include <random>
#include <vector>

#include "engine/backend/cuda/cuda_backend.h"
#include "engine/backend/cuda/kernels.h"
#include "engine/backend/cuda/runtime.h"
#include "gtest/gtest.h"
#include "tests/support/cuda_on_cpu/libraries.h"
#include "tests/support/model_runner.h"

namespace bst {
namespace {

using cuda_on_cpu::NumFftPlans;
using cuda_on_cpu::NumTransforms;
using cuda_on_cpu::SetFftMissing;

constexpr int kInputs = 35, kFilters = 2, kFeatures = kInputs * kFilters, kTokens = 210;

// y of two documents, the first in two steps.
std::vector<float> Convolve(int block, int num_taps) {
  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  const auto fill = [&](size_t n) {
    std::vector<float> values(n);
    for (float& x : values) x = normal(random);
    return values;
  };
  std::vector<float> taps = fill(static_cast<size_t>(kFeatures * num_taps)), d = fill(kFeatures),
                     u = fill(2 * kTokens * kInputs), y(2 * kTokens * kFeatures);
  const auto backend = *MakeCudaBackend({.panel_rows = {}});
  const int transforms = NumTransforms();
  const auto weights = *backend->PackConvolution(
      {.spec = {.num_inputs = kInputs, .num_filters = kFilters, .block = block},
       .taps = {taps.data(), DType::kF32, {kFeatures, num_taps}},
       .d = {d.data(), DType::kF32, {kFeatures}}});
  // One way for inputs, the other for sums: that of the filters is done.
  EXPECT_EQ(NumFftPlans(), NumTransforms() > transforms ? 2 : 0);
  const size_t slot_bytes = backend->SsmStateBytes(*weights);
  const Buffer memory = *backend->Allocate(2 * slot_bytes);
  const PoolView state = {static_cast<std::byte*>(memory.data()), slot_bytes};
  const auto run = [&](int first, const std::vector<Row>& rows) {
    const int n = rows.back().end;
    backend->Ssm(*weights, TensorView(u.data() + first * kInputs, DType::kF32, {n, kInputs}), rows,
                 state, TensorView(y.data() + first * kFeatures, DType::kF32, {n, kFeatures}));
  };
  run(0, {{.slot = SlotId(0), .begin = 0, .end = 130, .position = 0},
          {.slot = SlotId(1), .begin = 130, .end = 130 + kTokens, .position = 0}});
  run(130 + kTokens, {{.slot = SlotId(0), .begin = 0, .end = kTokens - 130, .position = 130}});
  EXPECT_TRUE(backend->Sync().ok());
  return y;
}

TEST(ConvolutionFormsTest, TheDirectAndThePartitionedFormAreOneFunction) {
  for (const int block : {16, 48}) {
    const int before = NumTransforms();
    const std::vector<float> partitioned = Convolve(block, 3 * block + 1);
    EXPECT_GT(NumTransforms(), before);
    SetFftMissing(true);
    const int transforms = NumTransforms();
    const std::vector<float> direct = Convolve(block, 3 * block + 1);
    EXPECT_EQ(NumTransforms(), transforms);
    SetFftMissing(false);
    // Transforms and sums in float32.
    EXPECT_LT(RelativeRms(partitioned, direct), 1e-6);
    EXPECT_GT(RelativeRms(partitioned, direct), 0);
  }
}

// 32 filters of 2,048 inputs and one more input: a grid has 65,535 rows.
TEST(ConvolutionFormsTest, TakeMoreFeaturesThanAGridHasRows) {
  constexpr int kManyInputs = 2049, kManyFeatures = 32 * kManyInputs, kPoints = 2;
  std::vector<float> spectra(2 * kManyInputs * kPoints), filters(2 * kManyFeatures * kPoints),
      sums(filters.size());
  for (size_t i = 0; i < spectra.size(); i += 2) spectra[i] = static_cast<float>(i / 2);
  for (size_t i = 0; i < filters.size(); ++i) filters[i] = static_cast<float>(i % 1000);
  const cuda::StreamPtr stream = *cuda::CreateStream();
  cuda::MultiplySpectra(*stream, {.inputs_spectra = spectra.data(),
                                  .filters = filters.data(),
                                  .sums = sums.data(),
                                  .points = kPoints,
                                  .inputs = kManyInputs,
                                  .features = kManyFeatures,
                                  .ring = 1,
                                  .newest = 0,
                                  .count = 1});
  EXPECT_TRUE(cuda::Synchronize(*stream).ok());
  for (size_t i = 0; i < filters.size(); ++i) {
    const size_t number = i / 2 % (kManyInputs * kPoints);
    ASSERT_EQ(sums[i], static_cast<float>(number) * filters[i]) << i;
  }
}

TEST(ConvolutionFormsTest, ShortFiltersAreSummedDirectly) {
  const int before = NumTransforms();
  Convolve(/*block=*/16, /*num_taps=*/17);
  Convolve(/*block=*/8, /*num_taps=*/60);
  EXPECT_EQ(NumTransforms(), before);
}

}  // namespace
}  // namespace bst
