#include "engine/tensor/buffer.h"

#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <limits>
#include <map>
#include <string>
#include <utility>

#include "gtest/gtest.h"
#include "tests/support/status_matchers.h"

namespace bst {
namespace {

int g_released = 0;
void CountRelease(void* /*data*/, size_t /*bytes*/) { ++g_released; }

TEST(BufferTest, IsAlignedAndZeroed) {
  for (const size_t bytes : {size_t{0}, size_t{1}, size_t{64}, size_t{1000}, (size_t{2} << 20) - 1,
                             size_t{2} << 20, (size_t{2} << 20) + 1}) {
    const absl::StatusOr<Buffer> buffer = Buffer::Allocate(bytes);
    ASSERT_THAT(buffer, IsOk());
    EXPECT_EQ(buffer->bytes(), bytes);
    ASSERT_NE(buffer->data(), nullptr);
    const size_t alignment = bytes >= (size_t{2} << 20) ? size_t{2} << 20 : 64;
    EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer->data()) % alignment, 0u) << bytes;
    const auto* begin = static_cast<const uint8_t*>(buffer->data());
    EXPECT_TRUE(std::all_of(begin, begin + bytes, [](uint8_t x) { return x == 0; }));
  }
}

TEST(BufferTest, TooLargeIsAnAnswerNotACrash) {
  EXPECT_THAT(Buffer::Allocate(std::numeric_limits<size_t>::max()),
              StatusIs(absl::StatusCode::kResourceExhausted,
                       testing::HasSubstr("18446744073709551615 bytes")));
}

// Of a machine whose files say so; one that is not named is not there.
size_t AvailableWith(const std::map<std::string, std::string>& files) {
  const std::string root = testing::TempDir() + "/bst_machine_" + std::to_string(::getpid()) + "/";
  for (const auto& [name, text] : files) {
    const std::filesystem::path path = root + name;
    std::filesystem::create_directories(path.parent_path());
    std::ofstream(path) << text;
  }
  const size_t available = Buffer::AvailableBytes(root);
  std::filesystem::remove_all(root);
  return available;
}

TEST(BufferTest, TheMachineAndTheContainerSayWhatIsAvailable) {
  EXPECT_EQ(AvailableWith({}), std::numeric_limits<size_t>::max());
  std::map<std::string, std::string> files = {
      {"proc/meminfo", "MemTotal:    900 kB\nMemFree:    7 kB\nMemAvailable:    500 kB\n"}};
  EXPECT_EQ(AvailableWith(files), 500u * 1024);
  files["sys/fs/cgroup/memory.max"] = "max\n";
  files["sys/fs/cgroup/memory.current"] = "300000\n";
  EXPECT_EQ(AvailableWith(files), 500u * 1024);
  files["sys/fs/cgroup/memory.max"] = "400000\n";
  EXPECT_EQ(AvailableWith(files), 100'000u);
  // Pages of files that were read once.
  files["sys/fs/cgroup/memory.stat"] = "anon 250000\ninactive_file 40000\nactive_file 10000\n";
  EXPECT_EQ(AvailableWith(files), 140'000u);
  files["sys/fs/cgroup/memory.max"] = "200000\n";
  EXPECT_EQ(AvailableWith(files), 0u);
}

TEST(BufferTest, ReleasesExactlyOnceWhoeverHoldsItLast) {
  g_released = 0;
  int memory = 0, other_memory = 0;
  {
    Buffer a(&memory, sizeof(memory), CountRelease);
    Buffer b = std::move(a);
    EXPECT_EQ(b.data(), &memory);
    EXPECT_EQ(a.data(), nullptr);
    EXPECT_EQ(g_released, 0);
    Buffer c(&other_memory, sizeof(other_memory), CountRelease);
    c = std::move(b);
    EXPECT_EQ(c.data(), &memory);
  }
  EXPECT_EQ(g_released, 2);
}

TEST(BufferTest, ViewSeesTheBuffer) {
  const absl::StatusOr<Buffer> buffer = Buffer::Allocate(24);
  ASSERT_THAT(buffer, IsOk());
  const TensorView view = buffer->View(DType::kF32, {2, 3});
  EXPECT_EQ(view.data(), buffer->data());
  EXPECT_EQ(view.shape(), Shape({2, 3}));
  EXPECT_EQ(buffer->View(DType::kBF16, {3, 4}).row_stride(), 4);
}

TEST(BufferDeathTest, ViewLargerThanTheBufferIsABug) {
  const absl::StatusOr<Buffer> buffer = Buffer::Allocate(24);
  ASSERT_THAT(buffer, IsOk());
  EXPECT_DEATH(buffer->View(DType::kF32, {7}), "a \\[7\\] view of a buffer of 24 bytes");
}

}  // namespace
}  // namespace bst
