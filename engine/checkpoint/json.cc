#include "engine/checkpoint/json.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>
#include <vector>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"

namespace bst {
namespace {

using nlohmann::json;

// Builds the document event by event, because only events show a key's second occurrence.
class StrictBuilder final : public nlohmann::json_sax<json> {
 public:
  bool null() override { return Add(nullptr) != nullptr; }
  bool boolean(bool value) override { return Add(value) != nullptr; }
  bool number_integer(number_integer_t value) override { return Add(value) != nullptr; }
  bool number_unsigned(number_unsigned_t value) override { return Add(value) != nullptr; }
  bool number_float(number_float_t value, const string_t& /*text*/) override {
    return Add(value) != nullptr;
  }
  bool string(string_t& value) override { return Add(std::move(value)) != nullptr; }
  bool binary(binary_t& /*value*/) override { return false; }  // Not in JSON text.

  bool start_object(size_t /*size*/) override { return Open(json::object()); }
  bool end_object() override { return Close(); }
  bool start_array(size_t /*size*/) override { return Open(json::array()); }
  bool end_array() override { return Close(); }

  bool key(string_t& key) override {
    Frame& frame = open_.back();
    const bool repeated = frame.node->contains(key);
    frame.key = std::move(key);
    if (repeated)
      status_ = absl::FailedPreconditionError(absl::StrCat("`", Path(), "` occurs twice"));
    return !repeated;
  }

  bool parse_error(size_t position, const std::string& /*last_token*/,
                   const nlohmann::detail::exception& error) override {
    status_ = absl::FailedPreconditionError(
        absl::StrCat("not JSON at byte ", position, ": ", Excerpt(error.what())));
    return false;
  }

  const absl::Status& status() const { return status_; }
  json TakeRoot() { return std::move(root_); }

 private:
  struct Frame {
    json* node;       // An open object or array; does not move while it is open.
    std::string key;  // Objects: the key whose value is being read.
  };

  json* Add(json value) {
    if (open_.empty()) return &(root_ = std::move(value));
    Frame& frame = open_.back();
    if (frame.node->is_object()) return &((*frame.node)[frame.key] = std::move(value));
    frame.node->push_back(std::move(value));
    return &frame.node->back();
  }

  bool Open(json container) {
    if (open_.size() >= static_cast<size_t>(kMaxJsonDepth)) {
      status_ = absl::FailedPreconditionError(
          absl::StrCat("`", Path(), "` is nested deeper than ", kMaxJsonDepth, " levels"));
      return false;
    }
    json* node = Add(std::move(container));
    open_.push_back({node, ""});
    return true;
  }

  bool Close() {
    open_.pop_back();
    return true;
  }

  // Of the value being read: layers[2].ssm.kernel.
  std::string Path() const {
    std::string path;
    for (const Frame& frame : open_) {
      if (frame.node->is_array()) {
        absl::StrAppend(&path, "[", frame.node->size() - 1, "]");
      } else {
        absl::StrAppend(&path, path.empty() ? "" : ".", Excerpt(frame.key));
      }
    }
    return path;
  }

  json root_;
  std::vector<Frame> open_;
  absl::Status status_;
};

}  // namespace

absl::StatusOr<json> ParseJson(std::string_view text) {
  StrictBuilder builder;
  if (!json::sax_parse(text.begin(), text.end(), &builder)) return builder.status();
  return builder.TakeRoot();
}

absl::StatusOr<std::string> ReadTextFile(const std::string& path, size_t max_bytes) {
  // Without O_NONBLOCK, opening a named pipe would wait for a writer.
  const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (file < 0) return absl::NotFoundError(absl::StrCat(path, ": ", std::strerror(errno)));
  const auto close_file = absl::MakeCleanup([file] { ::close(file); });
  struct stat info = {};
  if (::fstat(file, &info) != 0 || !S_ISREG(info.st_mode)) {
    return absl::FailedPreconditionError(absl::StrCat(path, ": not a regular file"));
  }
  std::string text;
  char chunk[1 << 14];
  for (;;) {
    const ssize_t count = ::read(file, chunk, sizeof(chunk));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) {
      return absl::FailedPreconditionError(absl::StrCat(path, ": ", std::strerror(errno)));
    }
    if (count == 0) return text;
    text.append(chunk, static_cast<size_t>(count));
    if (text.size() > max_bytes) {
      return absl::FailedPreconditionError(
          absl::StrCat(path, ": larger than the limit of ", max_bytes, " bytes"));
    }
  }
}

std::string Excerpt(std::string_view text) {
  constexpr size_t kMaxBytes = 100;
  const std::string escaped = absl::CHexEscape(std::string(text.substr(0, kMaxBytes)));
  return text.size() > kMaxBytes ? absl::StrCat(escaped, "...") : escaped;
}

bool IsPlainFileName(std::string_view name) {
  return !name.empty() && name.size() <= 255 && name != "." && name != ".." &&
         name.find_first_of(std::string_view("/\\\0", 3)) == std::string_view::npos;
}

absl::Status Annotate(const absl::Status& status, std::string_view prefix) {
  return absl::Status(status.code(), absl::StrCat(std::string(prefix), ": ", status.message()));
}

}  // namespace bst
