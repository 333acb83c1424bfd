#include "engine/checkpoint/json.h"

#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/base/status_macros.h"
#include "nlohmann/json.hpp"

namespace bst {
namespace {

using nlohmann::json;

// The library's words without its name for the error, the position and what was read last.
std::string_view Reason(std::string_view what) {
  for (const std::string_view before : {"] ", "column ", ": "}) {
    if (const size_t at = what.find(before); at != std::string_view::npos) {
      what.remove_prefix(at + before.size());
    }
  }
  return what.substr(0, what.find("; last read"));
}

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

  bool parse_error(size_t position, const std::string& last_token,
                   const nlohmann::detail::exception& error) override {
    // The token at fault is the end of what was read last.
    constexpr size_t kMaxTokenBytes = 20;
    const size_t cut = last_token.size() - std::min(last_token.size(), kMaxTokenBytes);
    const std::string path = Path();
    status_ = absl::FailedPreconditionError(absl::StrCat(
        "not JSON at byte ", position, path.empty() ? "" : absl::StrCat(", at `", path, "`"), ": ",
        Excerpt(Reason(error.what())), ", last read '", Excerpt(last_token.substr(cut)), "'"));
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
      const bool innermost = &frame == &open_.back();
      if (frame.node->is_array()) {
        // An element that is being read is among them once it is open.
        absl::StrAppend(&path, "[", frame.node->size() - (innermost ? 0 : 1), "]");
      } else if (!innermost || !frame.key.empty()) {  // else it stands before its first key
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

absl::Status CheckNoNul(std::string_view text) {
  const size_t at = text.find('\0');
  if (at == std::string_view::npos) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat("not JSON at byte ", at + 1, ": a NUL byte"));
}

absl::StatusOr<json> ParseJson(std::string_view text) {
  BST_RETURN_IF_ERROR(CheckNoNul(text));
  StrictBuilder builder;
  if (!json::sax_parse(text.begin(), text.end(), &builder)) return builder.status();
  return builder.TakeRoot();
}

std::string Excerpt(std::string_view text) {
  constexpr size_t kMaxBytes = 100;
  std::string excerpt;
  for (const char c : text.substr(0, kMaxBytes)) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte >= 0x20 && byte < 0x7f) {
      excerpt += c;
    } else {
      absl::StrAppend(&excerpt, "\\x", absl::Hex(byte, absl::kZeroPad2));
    }
  }
  if (text.size() > kMaxBytes) excerpt += "...";
  return excerpt;
}

bool IsPlainFileName(std::string_view name) {
  return !name.empty() && name.size() <= 255 && name != "." && name != ".." &&
         name.find_first_of(std::string_view("/\\\0", 3)) == std::string_view::npos;
}

}  // namespace bst
