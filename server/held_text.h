// HeldText: how much text all uploads hold back together, because the tokenizer cannot cut it yet.
//
// No step of the engine makes it less, only more of the same upload does: who would exceed the
// limit cannot be made to wait for others and is refused.
//
// Invariant   The shares above kWordBytes sum to at most the limit, or there is one such share. Up
//             to kWordBytes are free, so that an upload whose text can be cut is never refused for
//             what others hold.
// Ownership   Outlives what its shares hold. It counts; the text is the uploads'.
// Threads     HeldText is thread-safe, a share thread-compatible.
// Tested by   tests/server/held_text_test.cc, tests/server/upload_service_test.cc
#pragma once

#include <cstdint>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"

namespace bst {

class HeldText {
 public:
  // What stands behind the last place where a text can be cut: a long word, hundreds of times.
  static constexpr int64_t kWordBytes = 4096;

  explicit HeldText(int64_t limit_bytes) : limit_bytes_(limit_bytes) {}

  // What one upload holds; given back when it is destroyed.
  class Share {
   public:
    explicit Share(HeldText& all) : all_(all) {}
    ~Share() { Release(); }
    Share(const Share&) = delete;
    Share& operator=(const Share&) = delete;

    // The upload holds `bytes` now. Errors: kResourceExhausted when it holds more than before and
    // that is too much; the share stays what it was.
    absl::Status Hold(int64_t bytes);
    void Release();

   private:
    HeldText& all_;
    int64_t bytes_ = 0;  // that count
  };

  int64_t bytes() const ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  const int64_t limit_bytes_;
  mutable absl::Mutex mutex_;
  int64_t bytes_ ABSL_GUARDED_BY(mutex_) = 0;  // of all shares
};

}  // namespace bst
