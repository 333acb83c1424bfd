#include "server/held_text.h"

#include "absl/strings/str_cat.h"

namespace bst {

absl::Status HeldText::Share::Hold(int64_t bytes) {
  const int64_t counted = bytes > kWordBytes ? bytes : 0;
  absl::MutexLock lock(&all_.mutex_);
  const int64_t others = all_.bytes_ - bytes_;
  if (counted > bytes_ && others > 0 && counted > all_.limit_bytes_ - others) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "uploads hold ", others, " bytes of text that cannot be tokenised before its end, ",
        counted, " more exceed the limit of ", all_.limit_bytes_));
  }
  all_.bytes_ = others + counted;
  bytes_ = counted;
  return absl::OkStatus();
}

void HeldText::Share::Release() {
  if (bytes_ == 0) return;
  absl::MutexLock lock(&all_.mutex_);
  all_.bytes_ -= bytes_;
  bytes_ = 0;
}

int64_t HeldText::bytes() const {
  absl::MutexLock lock(&mutex_);
  return bytes_;
}

}  // namespace bst
