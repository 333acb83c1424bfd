// SafetensorsFile: one memory-mapped .safetensors file, checked whole before any view is handed out.
//
// Format    8 bytes little-endian header length n, n bytes of JSON
//           {"name": {"dtype": "F32", "shape": [..], "data_offsets": [begin, end]}, "__metadata__": {..}},
//           then the data; offsets count from its start.
// Checked   n within the file and at most 100 MB; JSON well-formed, no duplicate names; known dtypes;
//           shape product without overflow and equal to the byte range; ranges inside the file,
//           aligned for their type when mapped, not overlapping and without gaps.
// Ownership Owns the mapping (PROT_READ, private). Move-only.
// Threads   Immutable after Open.
// Errors    kNotFound, kFailedPrecondition; the message names the file, and the tensor if there is one.
// Tested by tests/engine/checkpoint/safetensors_test.cc, tests/fuzz/safetensors_fuzz.cc
#pragma once

#include <cstddef>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/tensor/buffer.h"
#include "engine/tensor/tensor_view.h"

namespace bst {

class SafetensorsFile {
 public:
  static absl::StatusOr<SafetensorsFile> Open(const std::string& path);

  const std::string& path() const { return path_; }
  // By name, in name order.
  const std::map<std::string, TensorView, std::less<>>& tensors() const { return tensors_; }

 private:
  SafetensorsFile() = default;

  std::string path_;
  Buffer mapping_;
  std::map<std::string, TensorView, std::less<>> tensors_;
};

// Writes tensors (contiguous views in host memory) in the order given. Used by bst-init and tests.
struct NamedTensor {
  std::string name;
  TensorView data;
};
absl::Status WriteSafetensors(const std::string& path, const std::vector<NamedTensor>& tensors);

}  // namespace bst
