// SpaceCuts: at which spaces a text may be cut so that its parts, encoded one by one by a
// SentencePiece model, have the tokens of the whole.
//
// Proved from the model file itself; what cannot be proved counts as no. A cut stands at one space
// between two other characters, and holds for a BPE model when
//   - no piece has a space behind another character, so that no merge crosses the cut; "▁" is a
//     piece, so that no unknown character in front grows across it; no piece is unused (undoing
//     those looks at the whole text);
//   - the normalizer works on both sides of the space alike: it has no rules, or none that sees a
//     space beside an ASCII letter or digit, and those stand on both sides;
//   - the space comes back in front of the second part: it stays there, or is what the model puts
//     in front of every text.
// A unigram model compares sums of scores over the whole text, in single precision: what it chooses
// may hang on what is far away, so there is no such place.
//
// Threads   Pure functions.
// Tested by tests/engine/tokenizer/stream_encoder_test.cc, tests/fuzz/stream_encode_fuzz.cc
#pragma once

#include <cstddef>
#include <optional>
#include <string_view>

namespace bst {

struct SpaceCuts {
  bool exist = false;        // whether there is any such place
  bool ascii_sides = false;  // only between two ASCII letters or digits
  bool drop_space = false;   // the second part is encoded without the space in front

  // `serialized`: the contents of a tokenizer.model file; any bytes.
  static SpaceCuts Of(std::string_view serialized);

  // The last space of `text` at `from` or behind where it may be cut.
  std::optional<size_t> Last(std::string_view text, size_t from) const;
};

}  // namespace bst
