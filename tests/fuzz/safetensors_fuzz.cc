// Any bytes as a .safetensors file: an error, or views that lie inside memory of their own.
#include <cstddef>
#include <cstdint>
#include <cstdlib>

#include "engine/checkpoint/safetensors.h"
#include "tests/fuzz/memory_file.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const bst::MemoryFile bytes(data, size);
  const absl::StatusOr<bst::SafetensorsFile> file = bst::SafetensorsFile::Open(bytes.path());
  if (!file.ok()) {
    if (file.status().message().empty()) std::abort();
    return 0;
  }
  // Every byte of every tensor can be read, and together they are no more than the file.
  size_t total = 0;
  volatile unsigned sum = 0;
  for (const auto& [name, view] : file->tensors()) {
    const size_t count =
        static_cast<size_t>(view.shape().num_elements()) * bst::SizeOf(view.dtype());
    const auto* tensor = static_cast<const uint8_t*>(view.data());
    for (size_t i = 0; i < count; ++i) sum = sum + tensor[i];
    if (reinterpret_cast<uintptr_t>(tensor) % bst::SizeOf(view.dtype()) != 0) std::abort();
    total += count;
  }
  if (total > size) std::abort();
  return 0;
}
