// Distinct integer types for the things this engine numbers, so that a slot can never be passed
// where a token is meant.
//
// Threads     Values; immutable.
// Tested by   tests/engine/base/ids_test.cc (there, too: nothing converts to or from an integer)
#pragma once

#include <compare>
#include <cstdint>
#include <functional>
#include <ostream>

namespace bst {

template <typename Tag, typename Rep>
class StrongId {
 public:
  using rep_type = Rep;

  constexpr StrongId() = default;
  constexpr explicit StrongId(Rep value) : value_(value) {}

  constexpr Rep value() const { return value_; }

  friend constexpr auto operator<=>(StrongId, StrongId) = default;

  template <typename H>
  friend H AbslHashValue(H state, StrongId id) {
    return H::combine(std::move(state), id.value_);
  }
  friend std::ostream& operator<<(std::ostream& out, StrongId id) { return out << id.value_; }

 private:
  Rep value_ = 0;
};

// One entry of the vocabulary, 0 .. vocab_size - 1.
using TokenId = StrongId<struct TokenIdTag, int32_t>;
// One place in the state pool, 0 .. num_slots - 1.
using SlotId = StrongId<struct SlotIdTag, int32_t>;
// One stream of tokens, numbered in order of arrival, never reused within a process.
using SequenceId = StrongId<struct SequenceIdTag, uint64_t>;

}  // namespace bst

template <typename Tag, typename Rep>
struct std::hash<bst::StrongId<Tag, Rep>> {
  size_t operator()(bst::StrongId<Tag, Rep> id) const { return std::hash<Rep>()(id.value()); }
};
