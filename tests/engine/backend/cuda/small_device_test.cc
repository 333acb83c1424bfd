// A device whose blocks have little shared memory: 163 KB on 8.0, 99 KB on 8.6 and 8.9, where
// attention goes without tiles; and one whose driver cannot run the kernels.
#include <string>
#include <vector>

#include "engine/backend/cuda/cuda_backend.h"
#include "gtest/gtest.h"
#include "tests/support/cuda_on_cpu/emulator.h"
#include "tests/support/cuda_on_cpu/libraries.h"
#include "tests/support/model_runner.h"

namespace bst {
namespace {

class SmallDeviceTest : public testing::TestWithParam<int> {
 protected:
  void TearDown() override { cuda_on_cpu::SetMostShared(227 << 10); }

  static std::vector<float> Logits(int shared_bytes, bool one_by_one) {
    cuda_on_cpu::SetMostShared(shared_bytes);
    const auto backend = *MakeCudaBackend({.panel_rows = {}});
    const std::vector<TokenId> tokens = *ReadTokens(kGolden + "/tokens.json");
    const auto count = static_cast<int>(tokens.size());
    const auto runner = *ModelRunner::Create(kGolden, *backend, DType::kBF16, count);
    const std::vector<int> rows =
        one_by_one ? std::vector<int>(tokens.size(), 1) : std::vector<int>{count};
    std::vector<float> logits = runner->Logits(tokens, rows);
    EXPECT_TRUE(backend->Sync().ok()) << backend->Sync();
    return logits;
  }

  static inline const std::string kGolden = "tests/golden/bst_single_head_s4d";
};

TEST_P(SmallDeviceTest, ComputesTheSameModel) {
  if (EmulatedBackendNames().empty()) GTEST_SKIP() << "a whole model is slow under sanitizers";
  const std::vector<float> prompt = Logits(GetParam(), /*one_by_one=*/false);
  EXPECT_EQ(Logits(GetParam(), /*one_by_one=*/true), prompt) << "prompt and decode differ";
  EXPECT_LT(RelativeRms(prompt, Logits(227 << 10, /*one_by_one=*/false)), 1e-2);
}

// So that --backend=auto serves on the CPU.
TEST(UnknownDeviceTest, IsUnavailable) {
  cuda_on_cpu::SetKernelsUnknown(true);
  const absl::Status status = MakeCudaBackend({.panel_rows = {}}).status();
  cuda_on_cpu::SetKernelsUnknown(false);
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
  EXPECT_NE(status.message().find("cannot run this build's kernels: bst_"), std::string::npos)
      << status;
  EXPECT_TRUE(MakeCudaBackend({.panel_rows = {}}).ok());
}

INSTANTIATE_TEST_SUITE_P(All, SmallDeviceTest, testing::Values(163 << 10, 99 << 10, 48 << 10));

}  // namespace
}  // namespace bst
