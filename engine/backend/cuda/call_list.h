// CallList: calls that a stream was given and that were not made yet: what a step enqueues, kept so
// that it can be compared with an earlier step's, and made later, once or as a graph.
//
// Two lists are equal if they make the same calls with the same arguments, byte for byte; pointers
// among them count as they are.
// Ownership   Arguments are copied; what they point to is the caller's until the calls have run.
// Threads     Thread-compatible.
// Tested by   tests/engine/backend/cuda/step_graph_test.cc
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

namespace bst::cuda {

class Stream;

class CallList {
 public:
  using Run = void (*)(Stream& stream, const void* arguments);

  template <typename Arguments>
  void Add(Run run, Arguments arguments) {
    static_assert(std::is_trivially_copyable_v<Arguments> &&
                  alignof(Arguments) <= sizeof(uint64_t));
    __builtin_clear_padding(&arguments);
    const size_t words = (sizeof(Arguments) + sizeof(uint64_t) - 1) / sizeof(uint64_t);
    const size_t at = words_.size();
    words_.resize(at + 2 + words);
    words_[at] = reinterpret_cast<uintptr_t>(run);
    words_[at + 1] = words;
    std::memcpy(&words_[at + 2], &arguments, sizeof(Arguments));
  }
  void RunAll(Stream& stream) const {
    for (size_t at = 0; at < words_.size(); at += 2 + words_[at + 1])
      reinterpret_cast<Run>(words_[at])(stream, &words_[at + 2]);
  }

  bool empty() const { return words_.empty(); }
  void clear() { words_.clear(); }
  uint64_t hash() const {  // FNV-1a over words
    uint64_t hash = 0xcbf29ce484222325u;
    for (const uint64_t word : words_) hash = (hash ^ word) * 0x100000001b3u;
    return hash;
  }
  friend bool operator==(const CallList& a, const CallList& b) { return a.words_ == b.words_; }

 private:
  std::vector<uint64_t> words_;  // of each call: function, words of arguments, arguments
};

// The list that `stream` keeps its calls in at present, or null (runtime.h).
CallList* Recording(const Stream& stream);

// Calls function(stream, arguments), or keeps the call while the stream records.
template <auto kFunction, typename Arguments>
void CallOrKeep(Stream& stream, const Arguments& arguments) {
  if (CallList* const list = Recording(stream)) {
    list->Add(
        [](Stream& s, const void* kept) { kFunction(s, *static_cast<const Arguments*>(kept)); },
        arguments);
  } else {
    kFunction(stream, arguments);
  }
}

}  // namespace bst::cuda
