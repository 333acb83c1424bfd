#include "engine/tensor/buffer.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <string>
#include <utility>

#include "absl/status/status.h"

namespace bst {
namespace {

constexpr size_t kCacheLineBytes = 64;
constexpr size_t kHugePageBytes = size_t{2} << 20;

size_t RoundUp(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }

// Of what a cgroup uses, pages of files that nobody has read of late. They make room when memory is
// asked for.
size_t InactiveFileBytes(const std::string& cgroup) {
  std::ifstream statistics(cgroup + "memory.stat");
  size_t count = 0;
  for (std::string key; statistics >> key >> count;) {
    if (key == "inactive_file") return count;
  }
  return 0;
}

void FreeHost(void* data, size_t /*bytes*/) { std::free(data); }

}  // namespace

size_t Buffer::AvailableBytes(const std::string& root) {
  size_t available = SIZE_MAX;
  std::ifstream memory(root + "proc/meminfo");
  for (std::string key, unit; memory >> key;) {
    size_t kilobytes = 0;
    memory >> kilobytes;
    std::getline(memory, unit);
    if (key != "MemAvailable:") continue;
    available = kilobytes * 1024;
    break;
  }
  const std::string cgroup = root + "sys/fs/cgroup/";
  size_t limit = 0, used = 0;
  if (std::ifstream(cgroup + "memory.max") >> limit &&
      std::ifstream(cgroup + "memory.current") >> used) {
    used -= std::min(used, InactiveFileBytes(cgroup));
    available = std::min(available, limit > used ? limit - used : 0);
  }
  return available;
}

absl::StatusOr<Buffer> Buffer::Allocate(size_t bytes) {
  const size_t alignment = bytes >= kHugePageBytes ? kHugePageBytes : kCacheLineBytes;
  if (bytes >= kHugePageBytes) {
    if (const size_t available = AvailableBytes(); bytes > available) {
      return absl::ResourceExhaustedError(absl::StrCat(
          "cannot allocate ", bytes, " bytes of memory, ", available, " are available"));
    }
  }
  const size_t rounded = RoundUp(bytes == 0 ? 1 : bytes, alignment);
  void* data = rounded >= bytes ? std::aligned_alloc(alignment, rounded) : nullptr;
  if (data == nullptr) {
    return absl::ResourceExhaustedError(
        absl::StrCat("cannot allocate ", bytes, " bytes of memory"));
  }
  // Advice only: fewer TLB misses on weights and state.
  if (alignment == kHugePageBytes) ::madvise(data, rounded, MADV_HUGEPAGE);
  std::memset(data, 0, rounded);
  return Buffer(data, bytes, FreeHost);
}

Buffer::Buffer(Buffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      bytes_(std::exchange(other.bytes_, 0)),
      release_(other.release_) {}

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  std::swap(release_, other.release_);
  return *this;
}

Buffer::~Buffer() {
  if (data_ != nullptr) release_(data_, bytes_);
}

TensorView Buffer::View(DType dtype, Shape shape) const {
  BST_CHECK(static_cast<size_t>(shape.num_elements()) * SizeOf(dtype) <= bytes_, "a ",
            shape.ToString(), " view of a buffer of ", bytes_, " bytes");
  return {data_, dtype, shape};
}

}  // namespace bst
