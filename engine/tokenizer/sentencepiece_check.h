// CheckSentencePieceModel: refuses what the SentencePiece library would read beyond its own memory
// for, before the library sees it.
//
// The library (0.1.97) checks that pieces are there, not empty and distinct, but trusts
//   - the rules of a normalizer: a trie as it lies in the file, followed without a look at its size
//     (one of the denormalizer as well), texts that end with NUL, and at most 32 rules that begin
//     with one another, which go to an array of so many;
//   - the user-defined pieces: at most 64 that begin with one another, for the same reason;
//   - the length of a piece: tries are built by recursion, a character deeper each time.
// Texts of rules are limited as well: what a rule puts for a character multiplies a prompt.
//
// Threads   A pure function.
// Errors    kFailedPrecondition, saying what is wrong where; not the file, which it does not know.
// Tested by tests/engine/tokenizer/sentencepiece_check_test.cc, tests/fuzz/tokenizer_fuzz.cc
#pragma once

#include <cstddef>
#include <string_view>

#include "absl/status/status.h"

namespace bst {

// Of a piece. Trained ones have 16 characters or so, user-defined ones may have more.
inline constexpr size_t kMaxPieceBytes = 4096;
// Of what a rule puts. The longest of the library's own has 33, for U+FDFA.
inline constexpr size_t kMaxRuleTextBytes = 256;

// `serialized`: the contents of a tokenizer.model file; any bytes. What is accepted here may still
// be no model to the library.
absl::Status CheckSentencePieceModel(std::string_view serialized, int vocab_size);

}  // namespace bst
