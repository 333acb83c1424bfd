#include "server/stop_string_matcher.h"

#include <algorithm>

#include "engine/base/check.h"

namespace bst {

std::string StopStringMatcher::Push(std::string_view text) {
  BST_CHECK(!match_.has_value());
  if (options_.strings.empty()) return std::string(text);
  held_.append(text);
  size_t first_end = std::string::npos;
  const std::string* found = nullptr;
  for (const std::string& stop : options_.strings) {
    const size_t begin = held_.find(stop);
    if (begin != std::string::npos && begin + stop.size() < first_end) {
      first_end = begin + stop.size();
      found = &stop;
    }
  }
  if (found != nullptr) {
    match_ = *found;
    std::string certain = held_.substr(0, options_.include ? first_end : first_end - found->size());
    held_.clear();
    return certain;
  }
  const size_t held_bytes = HeldBackBytes();
  std::string certain = held_.substr(0, held_.size() - held_bytes);
  held_.erase(0, certain.size());
  return certain;
}

std::string StopStringMatcher::Finish() {
  std::string rest;
  rest.swap(held_);
  return rest;
}

size_t StopStringMatcher::HeldBackBytes() const {
  size_t longest = 0;
  for (const std::string& stop : options_.strings) {
    for (size_t length = std::min(stop.size() - 1, held_.size()); length > longest; --length) {
      if (held_.compare(held_.size() - length, length, stop, 0, length) == 0) {
        longest = length;
        break;
      }
    }
  }
  return longest;
}

}  // namespace bst
