#include "engine/backend/cpu/self_check.h"

#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "engine/backend/cpu/cpu_backend.h"
#include "engine/backend/cpu/cpu_isa.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/model_runner.h"
#include "tests/support/trapped_tiles.h"

namespace bst {
namespace {

std::vector<float> ValuesOf(const std::string& name) {
  const std::unique_ptr<Backend> backend = *MakeBackend(name);
  return *SelfCheckValues(*backend);
}

TEST(SelfCheck, BackendsAreAlike) {
  const std::vector<float> expected = ValuesOf("reference");
  EXPECT_FALSE(AreAlike(std::vector<float>(expected.size()), expected)) << "nothing was computed";
  std::vector<std::string> backends = CpuBackendNames();
  // What a backend on AMX is compared with when it is made.
  if (DetectCpuIsa() >= CpuIsa::kAvx512) backends.push_back("cpu:amx-emulated:1");
  for (const std::string& backend : backends) {
    EXPECT_TRUE(AreAlike(ValuesOf(backend), expected)) << backend;
  }
}

TEST(SelfCheck, ABackendOnTilesPassesWhenItIsMade) {
  const CpuIsa best = DetectCpuIsa();
  if (!Supports(best, CpuIsa::kAvx512Vnni)) GTEST_SKIP() << "needs AVX-512 with VNNI";
  if (best != CpuIsa::kAmx) TrapTileInstructions();
  const auto backend = *MakeCpuBackend({.threads = 2, .isa = CpuIsa::kAmx, .assume_isa = true});
  EXPECT_THAT(backend->name(), testing::HasSubstr("amx")) << "it fell back";
}

TEST(SelfCheck, ABackendOnBrokenTilesFallsBack) {
  const CpuIsa best = DetectCpuIsa();
  if (best == CpuIsa::kAmx) GTEST_SKIP() << "these tiles are not broken";
  if (!Supports(best, CpuIsa::kAvx512Vnni)) GTEST_SKIP() << "needs AVX-512 with VNNI";
  TrapTileInstructions(/*broken=*/true);
  testing::internal::CaptureStderr();
  const auto backend = MakeCpuBackend({.threads = 2, .isa = CpuIsa::kAmx, .assume_isa = true});
  const std::string log = testing::internal::GetCapturedStderr();
  TrapTileInstructions();
  ASSERT_TRUE(backend.ok());
  EXPECT_THAT((*backend)->name(), testing::HasSubstr("avx512vnni"));
  EXPECT_THAT(log, testing::HasSubstr("amx_self_check_failed"));
}

TEST(SelfCheck, OneWrongValueIsSeen) {
  const std::vector<float> expected = ValuesOf("reference");
  for (const size_t i : {size_t{0}, expected.size() / 2, expected.size() - 1}) {
    std::vector<float> values = expected;
    values[i] += 0.02f;
    EXPECT_FALSE(AreAlike(values, expected)) << i;
    values[i] = std::nanf("");
    EXPECT_FALSE(AreAlike(values, expected)) << i;
  }
}

}  // namespace
}  // namespace bst
