// The line that a generation ends with on stderr.
//
// Threads     Pure function.
// Tested by   tests/clients/terminal_text_test.cc
#pragma once

#include <string>

#include "bst/v1/generation.pb.h"

namespace bst::cli {

// "[12 tokens (prompt 5), first after 0.123 s, 45.6 tokens/s, MAX_TOKENS]"; without the rate where
// there is none, as of a single token.
std::string ClosingLine(const v1::Finished& finished);

}  // namespace bst::cli
