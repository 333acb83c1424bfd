// PromptEnd: whether a part of a prompt is the last one.
//
// Threads   A value.
// Tested by tests/engine/scheduler/scheduler_test.cc
#pragma once

namespace bst {

enum class PromptEnd { kMoreFollows, kComplete };

}  // namespace bst
