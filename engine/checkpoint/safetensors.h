// SafetensorsFile: one memory-mapped .safetensors file, checked whole before any view is handed
// out.
//
// Format    8 bytes little-endian header length n, n bytes of JSON
//           {"name": {"dtype": "F32", "shape": [..], "data_offsets": [begin, end]}, "__metadata__":
//           {..}}, then the data; offsets count from its start.
// Checked   n within the file and at most 100 MB; JSON well-formed, no key twice, nothing but
//           the keys above; dtypes F32, F16, BF16 or U8; at most 4 dimensions, their product
//           without overflow and equal to the byte range; ranges inside the file, not overlapping
//           and covering the data without gaps.
// Alignment The format promises none. A tensor that is not aligned for its type in the file is
//           copied into memory of its own.
// Ownership Owns the mapping (PROT_READ, private) and the copies. Move-only; moving it leaves views
//           valid.
// Threads   Immutable after Open.
// Errors    kNotFound, kFailedPrecondition, kResourceExhausted; the message names the file, and the
//           tensor if there is one.
// Tested by tests/engine/checkpoint/safetensors_test.cc, tests/fuzz/safetensors_fuzz.cc
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/tensor/buffer.h"
#include "engine/tensor/tensor_view.h"

namespace bst {

class SafetensorsFile {
 public:
  static constexpr uint64_t kMaxHeaderBytes = 100'000'000;

  static absl::StatusOr<SafetensorsFile> Open(const std::string& path);

  const std::string& path() const { return path_; }
  // By name, in name order.
  const std::map<std::string, TensorView, std::less<>>& tensors() const { return tensors_; }

 private:
  SafetensorsFile() = default;

  std::string path_;
  Buffer mapping_;
  std::vector<Buffer> copies_;  // of unaligned tensors
  std::map<std::string, TensorView, std::less<>> tensors_;
};

}  // namespace bst
