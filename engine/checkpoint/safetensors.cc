#include "engine/checkpoint/safetensors.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <cstring>
#include <limits>
#include <optional>
#include <unordered_set>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "engine/base/annotate.h"
#include "engine/base/status_macros.h"
#include "engine/checkpoint/json.h"
#include "nlohmann/json.hpp"

namespace bst {
namespace {

using nlohmann::json;

static_assert(std::endian::native == std::endian::little, "the format is little-endian");

constexpr std::string_view kMetadataKey = "__metadata__";
constexpr size_t kLengthBytes = sizeof(uint64_t);

// One tensor as the header tells it; nothing is checked against the data yet.
struct HeaderEntry {
  std::string name;
  std::optional<std::string> dtype;
  std::optional<std::vector<uint64_t>> shape;
  std::optional<std::vector<uint64_t>> offsets;
};

// Reads the header event by event. A header may have 100 MB: as a document tree it would take tens
// of times that, here it takes no more memory than the tensors it really names.
class HeaderReader final : public nlohmann::json_sax<json> {
 public:
  bool null() override { return Unexpected("null"); }
  bool boolean(bool /*value*/) override { return Unexpected("a boolean"); }
  bool number_integer(number_integer_t /*value*/) override {
    return Unexpected("a negative number");
  }
  bool number_float(number_float_t /*value*/, const string_t& /*text*/) override {
    return Unexpected("a number that is no integer");
  }
  bool binary(binary_t& /*value*/) override { return Unexpected("binary data"); }

  bool number_unsigned(number_unsigned_t value) override {
    if (place_ == Place::kShape && entry_.shape->size() <= Shape::kMaxRank) {
      entry_.shape->push_back(value);  // One more than allowed is kept, to be reported.
      return true;
    }
    if (place_ == Place::kShape) return true;
    if (place_ == Place::kOffsets && entry_.offsets->size() < 3) {
      entry_.offsets->push_back(value);
      return true;
    }
    return Unexpected("a number");
  }

  bool string(string_t& value) override {
    if (place_ == Place::kMetadata) return true;
    if (place_ == Place::kEntry && key_ == "dtype") {
      entry_.dtype = std::move(value);
      return true;
    }
    return Unexpected("a string");
  }

  bool start_object(size_t /*size*/) override {
    if (place_ == Place::kStart) {
      place_ = Place::kNames;
    } else if (place_ == Place::kNames) {
      place_ = key_ == kMetadataKey ? Place::kMetadata : Place::kEntry;
      entry_ = {};
      entry_.name = key_;
    } else {
      return Unexpected("an object");
    }
    return true;
  }

  bool end_object() override {
    if (place_ == Place::kEntry) {
      if (!entry_.dtype || !entry_.shape || !entry_.offsets) {
        return Fail(absl::StrCat("tensor '", Excerpt(entry_.name),
                                 "' lacks one of dtype, shape, data_offsets"));
      }
      entries_.push_back(std::move(entry_));
    }
    place_ = place_ == Place::kNames ? Place::kEnd : Place::kNames;
    return true;
  }

  bool start_array(size_t /*size*/) override {
    if (place_ != Place::kEntry) return Unexpected("a list");
    if (key_ == "shape") {
      place_ = Place::kShape;
      entry_.shape.emplace();
    } else if (key_ == "data_offsets") {
      place_ = Place::kOffsets;
      entry_.offsets.emplace();
    } else {
      return Unexpected("a list");
    }
    return true;
  }

  bool end_array() override {
    place_ = Place::kEntry;
    return true;
  }

  bool key(string_t& key) override {
    key_ = std::move(key);
    if (place_ == Place::kNames && !names_.insert(key_).second) {
      return Fail(absl::StrCat("tensor '", Excerpt(key_), "' occurs twice"));
    }
    if (place_ == Place::kMetadata && !metadata_keys_.insert(key_).second) {
      return Fail(absl::StrCat("__metadata__ has '", Excerpt(key_), "' twice"));
    }
    if (place_ == Place::kEntry) {
      const bool is_dtype = key_ == "dtype", is_shape = key_ == "shape",
                 is_offsets = key_ == "data_offsets";
      if (!is_dtype && !is_shape && !is_offsets) {
        return Fail(absl::StrCat("tensor '", Excerpt(entry_.name), "' has an unknown key '",
                                 Excerpt(key_), "'"));
      }
      if ((is_dtype && entry_.dtype) || (is_shape && entry_.shape) ||
          (is_offsets && entry_.offsets)) {
        return Fail(absl::StrCat("tensor '", Excerpt(entry_.name), "' has ", key_, " twice"));
      }
    }
    return true;
  }

  bool parse_error(size_t position, const std::string& /*last_token*/,
                   const nlohmann::detail::exception& error) override {
    return Fail(absl::StrCat("header is not JSON at byte ", position, ": ", Excerpt(error.what())));
  }

  const std::string& error() const { return error_; }
  std::vector<HeaderEntry> TakeEntries() { return std::move(entries_); }

 private:
  enum class Place { kStart, kNames, kMetadata, kEntry, kShape, kOffsets, kEnd };

  bool Fail(std::string message) {
    error_ = std::move(message);
    return false;
  }

  bool Unexpected(std::string_view what) {
    const std::string text(what);
    switch (place_) {
      case Place::kEntry:
      case Place::kShape:
      case Place::kOffsets:
        return Fail(
            absl::StrCat("tensor '", Excerpt(entry_.name), "' has ", text, " in ", Excerpt(key_)));
      case Place::kMetadata:
        return Fail(absl::StrCat("__metadata__ has ", text, " for '", Excerpt(key_), "'"));
      case Place::kNames:
        return Fail(absl::StrCat("header has ", text, " for '", Excerpt(key_), "'"));
      case Place::kStart:
      case Place::kEnd:
        break;
    }
    return Fail(absl::StrCat("header is ", text, ", not an object"));
  }

  Place place_ = Place::kStart;
  std::string key_;
  HeaderEntry entry_;
  std::vector<HeaderEntry> entries_;
  // Abseil's hash sets do not survive an allocation that fails.
  std::unordered_set<std::string> names_, metadata_keys_;
  std::string error_;
};

absl::StatusOr<DType> ParseDType(const HeaderEntry& entry) {
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16, DType::kU8}) {
    if (Name(dtype) == *entry.dtype) return dtype;
  }
  for (const char* other :
       {"F64", "I64", "I32", "I16", "I8", "U64", "U32", "U16", "BOOL", "F8_E4M3", "F8_E5M2"}) {
    if (other == *entry.dtype) {
      return absl::FailedPreconditionError(absl::StrCat("tensor '", Excerpt(entry.name),
                                                        "' has dtype ", other,
                                                        "; this program reads F32, F16 and BF16"));
    }
  }
  return absl::FailedPreconditionError(absl::StrCat(
      "tensor '", Excerpt(entry.name), "' has unknown dtype '", Excerpt(*entry.dtype), "'"));
}

// A tensor whose shape, type and range agree with each other and with the size of the data.
struct PlacedTensor {
  std::string name;
  DType dtype = DType::kF32;
  Shape shape;
  uint64_t begin = 0, end = 0;  // bytes from the start of the data
};

absl::StatusOr<PlacedTensor> Place(HeaderEntry entry, uint64_t data_bytes) {
  const std::string tensor = absl::StrCat("tensor '", Excerpt(entry.name), "'");
  PlacedTensor placed;
  BST_ASSIGN_OR_RETURN(placed.dtype, ParseDType(entry));
  if (entry.shape->size() > Shape::kMaxRank) {
    return absl::FailedPreconditionError(
        absl::StrCat(tensor, " has more than ", Shape::kMaxRank, " dimensions"));
  }
  uint64_t bytes = SizeOf(placed.dtype);
  std::array<int64_t, Shape::kMaxRank> dims = {};
  for (size_t i = 0; i < entry.shape->size(); ++i) {
    const uint64_t dim = (*entry.shape)[i];
    if (dim > static_cast<uint64_t>(std::numeric_limits<int64_t>::max()) ||
        __builtin_mul_overflow(bytes, dim, &bytes) ||
        bytes > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
      return absl::FailedPreconditionError(
          absl::StrCat(tensor, " has a shape whose size overflows"));
    }
    dims[i] = static_cast<int64_t>(dim);
  }
  placed.shape = Shape(absl::MakeConstSpan(dims.data(), entry.shape->size()));
  if (entry.offsets->size() != 2) {
    return absl::FailedPreconditionError(
        absl::StrCat(tensor, " has data_offsets that are not two numbers"));
  }
  placed.begin = (*entry.offsets)[0];
  placed.end = (*entry.offsets)[1];
  if (placed.begin > placed.end || placed.end > data_bytes) {
    return absl::FailedPreconditionError(absl::StrCat(tensor, " has data_offsets [", placed.begin,
                                                      ", ", placed.end, "], but the file has ",
                                                      data_bytes, " bytes of data"));
  }
  if (placed.end - placed.begin != bytes) {
    return absl::FailedPreconditionError(
        absl::StrCat(tensor, " of shape ", placed.shape.ToString(), " needs ", bytes,
                     " bytes, its data_offsets hold ", placed.end - placed.begin));
  }
  placed.name = std::move(entry.name);
  return placed;
}

// Sorted by place, the ranges must follow each other from 0 to the end of the data.
absl::Status CheckCoverage(std::vector<PlacedTensor>& tensors, uint64_t data_bytes) {
  std::sort(tensors.begin(), tensors.end(), [](const PlacedTensor& a, const PlacedTensor& b) {
    return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
  });
  uint64_t covered = 0;
  for (const PlacedTensor& tensor : tensors) {
    if (tensor.begin != covered) {
      return absl::FailedPreconditionError(
          absl::StrCat("tensor '", Excerpt(tensor.name), "' begins at data byte ", tensor.begin,
                       tensor.begin < covered ? ", overlapping the tensor that ends at "
                                              : ", leaving a gap after the tensor that ends at ",
                       covered));
    }
    covered = tensor.end;
  }
  if (covered != data_bytes) {
    return absl::FailedPreconditionError(absl::StrCat(
        "the tensors hold ", covered, " bytes, the file has ", data_bytes, " bytes of data"));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<PlacedTensor>> ParseFile(const std::byte* data, uint64_t size) {
  uint64_t header_bytes = 0;
  if (size < kLengthBytes) {
    return absl::FailedPreconditionError(
        absl::StrCat("file has ", size, " bytes, too few for a header"));
  }
  std::memcpy(&header_bytes, data, kLengthBytes);
  if (header_bytes > SafetensorsFile::kMaxHeaderBytes) {
    return absl::FailedPreconditionError(absl::StrCat("header of ", header_bytes,
                                                      " bytes, more than the limit of ",
                                                      SafetensorsFile::kMaxHeaderBytes));
  }
  if (header_bytes > size - kLengthBytes) {
    return absl::FailedPreconditionError(
        absl::StrCat("header of ", header_bytes, " bytes in a file of ", size, ": truncated"));
  }
  const char* text = reinterpret_cast<const char*>(data) + kLengthBytes;
  const uint64_t data_bytes = size - kLengthBytes - header_bytes;
  BST_RETURN_IF_ERROR(Annotate(CheckNoNul({text, header_bytes}), "header"));
  HeaderReader reader;
  if (!json::sax_parse(text, text + header_bytes, &reader)) {
    return absl::FailedPreconditionError(reader.error());
  }
  std::vector<PlacedTensor> tensors;
  for (HeaderEntry& entry : reader.TakeEntries()) {
    BST_ASSIGN_OR_RETURN(PlacedTensor placed, Place(std::move(entry), data_bytes));
    tensors.push_back(std::move(placed));
  }
  BST_RETURN_IF_ERROR(CheckCoverage(tensors, data_bytes));
  return tensors;
}

absl::StatusOr<Buffer> MapFile(const std::string& path) {
  // Without O_NONBLOCK, opening a named pipe would wait for a writer.
  const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (file < 0) return absl::NotFoundError(absl::StrCat(path, ": ", std::strerror(errno)));
  const auto close_file = absl::MakeCleanup([file] { ::close(file); });
  struct stat info = {};
  if (::fstat(file, &info) != 0 || !S_ISREG(info.st_mode)) {
    return absl::FailedPreconditionError(absl::StrCat(path, ": not a regular file"));
  }
  const auto size = static_cast<size_t>(info.st_size);
  if (size == 0) return absl::FailedPreconditionError(absl::StrCat(path, ": file is empty"));
  void* data = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, file, 0);
  if (data == MAP_FAILED) {
    return absl::ResourceExhaustedError(
        absl::StrCat(path, ": cannot map ", size, " bytes: ", std::strerror(errno)));
  }
  return Buffer(data, size, [](void* mapped, size_t bytes) { ::munmap(mapped, bytes); });
}

}  // namespace

absl::StatusOr<SafetensorsFile> SafetensorsFile::Open(const std::string& path) {
  SafetensorsFile file;
  file.path_ = path;
  BST_ASSIGN_OR_RETURN(file.mapping_, MapFile(path));
  auto* bytes = static_cast<std::byte*>(file.mapping_.data());
  absl::StatusOr<std::vector<PlacedTensor>> tensors = ParseFile(bytes, file.mapping_.bytes());
  if (!tensors.ok()) return Annotate(tensors.status(), path);

  uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, bytes, kLengthBytes);
  std::byte* data = bytes + kLengthBytes + header_bytes;
  for (const PlacedTensor& tensor : *tensors) {
    void* at = data + tensor.begin;
    if (reinterpret_cast<uintptr_t>(at) % SizeOf(tensor.dtype) != 0) {
      const size_t size = tensor.end - tensor.begin;
      BST_ASSIGN_OR_RETURN(Buffer copy, Buffer::Allocate(size));
      std::memcpy(copy.data(), at, size);
      at = copy.data();
      file.copies_.push_back(std::move(copy));
    }
    file.tensors_.emplace(tensor.name, TensorView(at, tensor.dtype, tensor.shape));
  }
  return file;
}

}  // namespace bst
