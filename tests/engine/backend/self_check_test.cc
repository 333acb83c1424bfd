#include "engine/backend/cpu/self_check.h"

#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "engine/backend/cpu/cpu_isa.h"
#include "gtest/gtest.h"
#include "tests/support/model_runner.h"

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
  if (DetectCpuIsa() >= CpuIsa::kAvx512) backends.push_back("cpu:amx-emulated:1");  // as at start
  for (const std::string& backend : backends) {
    EXPECT_TRUE(AreAlike(ValuesOf(backend), expected)) << backend;
  }
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
