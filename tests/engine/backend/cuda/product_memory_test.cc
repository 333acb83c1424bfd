// Counts bytes of operator new, for the whole program: hence a test binary of its own. That a
// product is looked for may not need more of the host's memory than the weights did.
#include <atomic>
#include <cstdlib>
#include <new>
#include <vector>

#include "engine/backend/cuda/cuda_backend.h"
#include "gtest/gtest.h"

namespace {
std::atomic<size_t> g_bytes{0};
}

void* operator new(size_t bytes) {
  g_bytes.fetch_add(bytes, std::memory_order_relaxed);
  void* memory = std::malloc(bytes);
  if (memory == nullptr) std::abort();
  return memory;
}
void* operator new(size_t bytes, const std::nothrow_t& /*tag*/) noexcept {
  g_bytes.fetch_add(bytes, std::memory_order_relaxed);
  return std::malloc(bytes);
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, size_t /*bytes*/) noexcept { std::free(memory); }

namespace bst {
namespace {

TEST(ProductMemoryTest, ChoosingAProductTakesLittleOfTheHostsMemory) {
  constexpr int kIn = 256, kOut = 10'000;  // more than is staged at once
  const std::vector<float> numbers(size_t{kIn} * kOut, 0.5f);
  const TensorView w(const_cast<float*>(numbers.data()), DType::kF32, {kOut, kIn});
  for (const DType type : {DType::kF32, DType::kBF16}) {
    const auto bytes_of_packing = [&](const std::vector<int>& panel_rows) {
      const auto backend =
          *MakeCudaBackend({.panel_rows = panel_rows, .product_seconds = CudaOptions::kUnlimited});
      const size_t before = g_bytes;
      EXPECT_TRUE(backend->PackLinear({w}, type).ok());
      EXPECT_EQ(backend->name(), panel_rows.empty() ? "cuda (emulated, no cuBLAS: not asked for)"
                                                    : "cuda (emulated, cuBLAS for 1 of 1 shapes)");
      return g_bytes - before;
    };
    const size_t alone = bytes_of_packing({});
    EXPECT_GE(alone, numbers.size() * sizeof(float));
    EXPECT_LT(bytes_of_packing({1}), alone + numbers.size()) << Name(type);
  }
}

}  // namespace
}  // namespace bst
