// PromptEnd: whether a part of a prompt is the last one.
//
// Threads   A value.
#pragma once

namespace bst {

enum class PromptEnd { kMoreFollows, kComplete };

}  // namespace bst
