// Linear layers on the CUDA backend: cuBLAS is used where it gives the kernels' bits and nowhere
// else, and a row's bits do not depend on the number of rows: emulated, and on a GPU where there is
// one.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/backend/cuda/cuda_backend.h"
#include "engine/backend/cuda/cuda_plugin.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/cuda_on_cpu/libraries.h"
#include "tests/support/model_runner.h"

namespace bst {
namespace {

using cuda_on_cpu::BlasKind;
using cuda_on_cpu::NumProducts;
using cuda_on_cpu::SetBlas;
using testing::HasSubstr;

struct Size {
  int in, out;
};

// One layer, its operands where kernels reach them.
class Layer {
 public:
  Layer(Backend& backend, Size size, DType type, int max_rows) : backend_(backend), size_(size) {
    std::mt19937 random(1);
    std::normal_distribution<float> normal;
    std::vector<float> w(static_cast<size_t>(size.in) * static_cast<size_t>(size.out));
    for (float& x : w) x = normal(random) / std::sqrt(static_cast<float>(size.in));
    weights_ = *backend.PackLinear({TensorView(w.data(), DType::kF32, {size.out, size.in})}, type);
    numbers_.resize(static_cast<size_t>(max_rows) * static_cast<size_t>(size.in));
    for (float& x : numbers_) x = normal(random);
    const auto floats = [&](int columns) {
      return static_cast<size_t>(max_rows) * static_cast<size_t>(columns) * sizeof(float);
    };
    x_ = *backend.AllocateHostReadable(floats(size.in));
    y_ = *backend.AllocateHostReadable(floats(size.out));
  }

  // Of the last `rows` rows, which are moved to where buffers begin.
  std::vector<float> Run(int rows, const LinearOptions& options = {}) {
    std::copy(numbers_.end() - int64_t{rows} * size_.in, numbers_.end(),
              static_cast<float*>(x_.data()));
    const TensorView y = y_.View(DType::kF32, {rows, size_.out});
    for (int64_t i = 0; i < int64_t{rows} * size_.out; ++i)
      y.as<float>()[i] = static_cast<float>(i % 17);
    backend_.Linear(x_.View(DType::kF32, {rows, size_.in}), *weights_, options, y);
    const absl::Status status = backend_.Sync();
    EXPECT_TRUE(status.ok()) << status;
    return {y.as<float>(), y.as<float>() + int64_t{rows} * size_.out};
  }

 private:
  Backend& backend_;
  Size size_;
  std::vector<float> numbers_;
  std::unique_ptr<LinearWeights> weights_;
  Buffer x_, y_;
};

bool IsTail(const std::vector<float>& tail, const std::vector<float>& all) {
  return std::memcmp(tail.data(), all.data() + (all.size() - tail.size()),
                     tail.size() * sizeof(float)) == 0;
}

class CudaProductsTest : public testing::Test {
 protected:
  void TearDown() override { SetBlas(BlasKind::kAsTheKernels); }
};

// One segment of inputs and several; panels, panels and rows beside them, fewer rows than a panel.
TEST_F(CudaProductsTest, GiveTheKernelsBitsInEveryEpilogue) {
  for (const DType type : {DType::kF32, DType::kBF16}) {
    for (const Size size : {Size{36, 72}, Size{300, 20}, Size{8300, 8}}) {
      const auto with =
          *MakeCudaBackend({.panel_rows = {16, 5}, .product_seconds = CudaOptions::kUnlimited});
      const auto without = *MakeCudaBackend({.panel_rows = {}});
      Layer a(*with, size, type, 40), b(*without, size, type, 40);
      EXPECT_EQ(with->name(), "cuda (emulated, cuBLAS for 1 of 1 shapes)");
      for (const LinearOptions& options :
           {LinearOptions{.scale = 0.3f}, LinearOptions{.epilogue = LinearEpilogue::kRelu},
            LinearOptions{.epilogue = LinearEpilogue::kGelu},
            LinearOptions{.epilogue = LinearEpilogue::kAdd}}) {
        for (const int rows : {40, 5, 3}) {
          const int before = NumProducts();
          const std::vector<float> got = a.Run(rows, options);
          // 40 = 2 x 16 + 5 + 3; a scale over several segments is the kernels'.
          const int segments = (size.in + 4095) / 4096;
          const bool is_compared = segments == 1 || options.scale == 1.0f;
          const int panels = rows == 40 ? 3 : rows == 5 ? 1 : 0;
          EXPECT_EQ(NumProducts() - before, is_compared ? panels * segments : 0);
          EXPECT_EQ(got, b.Run(rows, options))
              << size.in << " x " << size.out << " epilogue " << static_cast<int>(options.epilogue);
        }
      }
    }
  }
}

TEST_F(CudaProductsTest, AreNotUsedWhereTheirBitsAreOthers) {
  SetBlas(BlasKind::kOtherBits);
  const auto backend =
      *MakeCudaBackend({.panel_rows = {16}, .product_seconds = CudaOptions::kUnlimited});
  Layer layer(*backend, {100, 70}, DType::kBF16, 40);
  EXPECT_EQ(backend->name(), "cuda (emulated, cuBLAS for 0 of 1 shapes)");
  const int before = NumProducts();
  EXPECT_TRUE(IsTail(layer.Run(1), layer.Run(40)));
  EXPECT_EQ(NumProducts(), before);
}

// For zeros all sums are alike.
TEST_F(CudaProductsTest, AreComparedByOtherWeightsThanTheLayers) {
  SetBlas(BlasKind::kOtherBits);
  const auto backend =
      *MakeCudaBackend({.panel_rows = {16}, .product_seconds = CudaOptions::kUnlimited});
  std::vector<float> zeros(70 * 100);
  const auto pruned =
      *backend->PackLinear({TensorView(zeros.data(), DType::kF32, {70, 100})}, DType::kF32);
  Layer layer(*backend, {100, 70}, DType::kF32, 40);
  EXPECT_EQ(backend->name(), "cuda (emulated, cuBLAS for 0 of 1 shapes)");
  EXPECT_TRUE(IsTail(layer.Run(1), layer.Run(40)));
}

TEST_F(CudaProductsTest, ArePassedOverWhereTheyDoNotStart) {
  SetBlas(BlasKind::kFails);
  for (const Size size : {Size{100, 72}, Size{4200, 8}}) {
    const auto backend =
        *MakeCudaBackend({.panel_rows = {16}, .product_seconds = CudaOptions::kUnlimited});
    Layer layer(*backend, size, DType::kBF16, 40);
    EXPECT_TRUE(backend->Sync().ok());
    EXPECT_EQ(backend->name(), "cuda (emulated, cuBLAS for 1 of 1 shapes)");
    const int before = NumProducts();
    EXPECT_TRUE(IsTail(layer.Run(1), layer.Run(40)));
    EXPECT_GT(NumProducts(), before);
  }
}

// Of the two that are proposed the first has other bits.
TEST_F(CudaProductsTest, AreNotLookedForWhenTheTimeIsUp) {
  for (const auto& [seconds, found] : {std::pair(0.0, 0), {60.0, 1}}) {
    const auto backend = *MakeCudaBackend({.panel_rows = {16}, .product_seconds = seconds});
    Layer layer(*backend, {100, 70}, DType::kBF16, 40);
    EXPECT_EQ(backend->name(), absl::StrCat("cuda (emulated, cuBLAS for ", found, " of 1 shapes)"));
    EXPECT_TRUE(IsTail(layer.Run(1), layer.Run(40)));
  }
}

TEST_F(CudaProductsTest, MayBeMissing) {
  SetBlas(BlasKind::kMissing);
  const auto backend = *MakeCudaBackend();
  EXPECT_EQ(backend->name(), "cuda (emulated, no cuBLAS: a test took it away)");
  Layer layer(*backend, {33, 70}, DType::kBF16, 40);
  EXPECT_TRUE(IsTail(layer.Run(1), layer.Run(40)));
}

// Columns of a wider matrix, rows that do not begin at 256 bytes.
TEST_F(CudaProductsTest, AreNotUsedForOperandsThatWereNotCompared) {
  const auto backend =
      *MakeCudaBackend({.panel_rows = {16}, .product_seconds = CudaOptions::kUnlimited});
  std::vector<float> w(70 * 33, 0.5f);
  const auto weights =
      *backend->PackLinear({TensorView(w.data(), DType::kF32, {70, 33})}, DType::kF32);
  const auto floats = [&](int n) {
    return *backend->AllocateHostReadable(static_cast<size_t>(n) * sizeof(float));
  };
  const Buffer inputs = floats(17 * 33), wide = floats(16 * 80), outputs = floats(17 * 70);
  const TensorView x = inputs.View(DType::kF32, {17, 33}), y = outputs.View(DType::kF32, {17, 70});
  std::fill_n(x.as<float>(), 17 * 33, 1.0f);
  const int before = NumProducts();
  EXPECT_EQ(backend->name(), "cuda (emulated, cuBLAS for 1 of 1 shapes)");
  const TensorView slice = wide.View(DType::kF32, {16, 80}).Columns(3, 73);
  backend->Linear(x.Rows(0, 16), *weights, {}, slice);
  EXPECT_EQ(backend->name(), "cuda (emulated, cuBLAS for 0 of 0 shapes)");
  backend->Linear(x.Rows(1, 17), *weights, {}, y.Rows(0, 16));
  backend->Linear(x.Rows(0, 16), *weights, {}, y.Rows(1, 17));
  EXPECT_TRUE(backend->Sync().ok());
  EXPECT_EQ(backend->name(), "cuda (emulated, cuBLAS for 1 of 1 shapes)");
  EXPECT_EQ(NumProducts(), before);
  EXPECT_EQ(slice.row<float>(0)[0], 16.5f);
  EXPECT_EQ(slice.row<float>(0)[-1], 0.0f);
  EXPECT_EQ(y.row<float>(16)[69], 16.5f);
  backend->Linear(x.Rows(0, 16), *weights, {}, y.Rows(0, 16));
  EXPECT_TRUE(backend->Sync().ok());
  EXPECT_EQ(NumProducts(), before + 1);
}

// The batch law at its root, and that cuBLAS does not show. Both sides of every border between
// kernels and panels, emulated; on a GPU 1 to 256 rows, whole chunks, and shapes of real models.
TEST(CudaLinearLawTest, EmulatedARowsBitsDoNotDependOnTheNumberOfRows) {
  const auto backend =
      *MakeCudaBackend({.panel_rows = {80, 24}, .product_seconds = CudaOptions::kUnlimited});
  for (const DType type : {DType::kF32, DType::kBF16}) {
    // The last: several tiles to a block.
    for (const Size size : {Size{152, 40}, Size{4200, 8}, Size{60, 2200}}) {
      Layer layer(*backend, size, type, 130);
      const std::vector<float> all = layer.Run(130);
      const std::vector<int> numbers =
          size.in > 4096 || size.out > 2048
              ? std::vector<int>{1, 5, 25, 33, 104}
              : std::vector<int>{1, 2, 4, 5, 8, 9, 23, 24, 25, 32, 33, 64, 65, 80, 81, 104};
      for (const int rows : numbers)
        EXPECT_TRUE(IsTail(layer.Run(rows), all)) << rows << " of " << size.in << " x " << size.out;
    }
  }
}

// A block has room for the segments of one row side by side, for those of 32 rows in two rounds.
TEST(CudaLinearLawTest, EmulatedSegmentsSideBySideAreThoseInRounds) {
  const auto backend = *MakeCudaBackend({.panel_rows = {}});
  Layer layer(*backend, {24700, 20}, DType::kBF16, 33);
  const LinearOptions options = {.scale = 0.3f};
  const std::vector<float> all = layer.Run(33, options);
  for (const int rows : {1, 5, 32}) EXPECT_TRUE(IsTail(layer.Run(rows, options), all)) << rows;
}

TEST(CudaLinearLawTest, OnAGpuARowsBitsDoNotDependOnTheNumberOfRows) {
  const absl::StatusOr<std::unique_ptr<Backend>> backend = OpenCudaBackend();
  if (!backend.ok()) GTEST_SKIP() << backend.status().message();
  const auto kernels = *OpenCudaBackend({.panel_rows = {}});
  for (const DType type : {DType::kF32, DType::kBF16}) {
    for (const Size size :
         {Size{1024, 3072}, Size{1000, 1024}, Size{4133, 2200}, Size{12288, 1024}}) {
      constexpr int kRows = 2048 + 256 + 19;
      Layer layer(**backend, size, type, kRows), without(*kernels, size, type, kRows);
      for (const LinearEpilogue epilogue : {LinearEpilogue::kStore, LinearEpilogue::kRelu,
                                            LinearEpilogue::kGelu, LinearEpilogue::kAdd}) {
        EXPECT_TRUE(IsTail(layer.Run(kRows, {.epilogue = epilogue}),
                           without.Run(kRows, {.epilogue = epilogue})))
            << size.in << " x " << size.out << " epilogue " << static_cast<int>(epilogue);
      }
      const std::vector<float> all = layer.Run(kRows);
      std::vector<int> numbers = {300, 511, 512, 1024, 2047, 2048, 2049, 2304};
      for (int rows = 1; rows <= 256; ++rows) numbers.push_back(rows);
      for (const int rows : numbers) {
        const std::vector<float> some = layer.Run(rows);
        EXPECT_TRUE(IsTail(some, all)) << rows << " of " << size.in << " x " << size.out;
        EXPECT_TRUE(IsTail(some, without.Run(rows)))
            << rows << " of " << size.in << " x " << size.out << " without cuBLAS";
      }
    }
  }
  std::printf("%s\n", (*backend)->name().c_str());
}

}  // namespace
}  // namespace bst
