#include "engine/checkpoint/safetensors_writer.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/base/check.h"
#include "engine/base/status_macros.h"
#include "engine/checkpoint/json.h"
#include "nlohmann/json.hpp"

namespace bst {
namespace {

uint64_t BytesOf(const SafetensorsWriter::Entry& entry) {
  return static_cast<uint64_t>(entry.shape.num_elements()) * SizeOf(entry.dtype);
}

// The JSON header, padded with blanks so that the data begin at a multiple of 8.
absl::StatusOr<std::string> HeaderText(const std::vector<SafetensorsWriter::Entry>& order) {
  std::string text = R"({"__metadata__":{"format":"pt"})";
  absl::flat_hash_set<std::string> names = {"__metadata__"};
  uint64_t offset = 0;
  for (const SafetensorsWriter::Entry& entry : order) {
    if (!names.insert(entry.name).second) {
      return absl::InvalidArgumentError(
          absl::StrCat("tensor name '", Excerpt(entry.name), "' twice"));
    }
    std::string name;
    try {
      name = nlohmann::json(entry.name).dump();
    } catch (const nlohmann::json::exception&) {
      return absl::InvalidArgumentError(
          absl::StrCat("tensor name '", Excerpt(entry.name), "' is not UTF-8"));
    }
    absl::StrAppend(&text, ",", name, R"(:{"dtype":")", std::string(Name(entry.dtype)),
                    R"(","shape":[)", absl::StrJoin(entry.shape.dims(), ","),
                    R"(],"data_offsets":[)", offset, ",", offset + BytesOf(entry), "]}");
    offset += BytesOf(entry);
  }
  text += '}';
  text.append((8 - text.size() % 8) % 8, ' ');
  return text;
}

}  // namespace

SafetensorsWriter::SafetensorsWriter(std::string path, std::vector<Entry> order)
    : path_(std::move(path)), unfinished_path_(path_ + ".unfinished"), order_(std::move(order)) {}

SafetensorsWriter::SafetensorsWriter(SafetensorsWriter&& other) noexcept
    : path_(std::move(other.path_)),
      unfinished_path_(std::exchange(other.unfinished_path_, "")),
      order_(std::move(other.order_)),
      missing_bytes_(other.missing_bytes_),
      file_(std::exchange(other.file_, -1)) {}

SafetensorsWriter::~SafetensorsWriter() {
  if (file_ >= 0) ::close(file_);
  if (!unfinished_path_.empty()) ::unlink(unfinished_path_.c_str());
}

absl::StatusOr<SafetensorsWriter> SafetensorsWriter::Create(const std::string& path,
                                                            std::vector<Entry> tensors) {
  std::stable_sort(tensors.begin(), tensors.end(), [](const Entry& a, const Entry& b) {
    return SizeOf(a.dtype) > SizeOf(b.dtype);
  });
  BST_ASSIGN_OR_RETURN(const std::string header, HeaderText(tensors));

  SafetensorsWriter writer(path, std::move(tensors));
  writer.file_ =
      ::open(writer.unfinished_path_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (writer.file_ < 0) return writer.FileError("create");
  const uint64_t length = header.size();
  writer.missing_bytes_ = sizeof(length) + length;
  for (const Entry& entry : writer.order_) writer.missing_bytes_ += BytesOf(entry);
  BST_RETURN_IF_ERROR(writer.Append(&length, sizeof(length)));
  BST_RETURN_IF_ERROR(writer.Append(header.data(), header.size()));
  return writer;
}

absl::Status SafetensorsWriter::Append(const void* data, size_t bytes) {
  BST_CHECK(bytes <= missing_bytes_, bytes, " bytes appended, room for ", missing_bytes_);
  const char* next = static_cast<const char*>(data);
  for (size_t left = bytes; left > 0;) {
    const ssize_t written = ::write(file_, next, left);
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return FileError("write");
    next += written;
    left -= static_cast<size_t>(written);
  }
  missing_bytes_ -= bytes;
  return absl::OkStatus();
}

absl::Status SafetensorsWriter::Finish() {
  BST_CHECK(missing_bytes_ == 0, missing_bytes_, " bytes were never appended");
  if (::close(std::exchange(file_, -1)) != 0) return FileError("close");
  if (std::rename(unfinished_path_.c_str(), path_.c_str()) != 0) return FileError("rename");
  unfinished_path_.clear();
  return absl::OkStatus();
}

absl::Status SafetensorsWriter::FileError(std::string_view action) const {
  return absl::InternalError(absl::StrCat("cannot ", std::string(action), " ", unfinished_path_,
                                          ": ", std::strerror(errno)));
}

}  // namespace bst
