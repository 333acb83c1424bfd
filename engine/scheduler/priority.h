// Priority: which of waiting requests goes first.
//
// Threads   A value.
// Tested by tests/engine/scheduler/scheduler_test.cc
#pragma once

namespace bst {

// A level is worth so much waiting time (EngineOptions::priority_ageing), so that the lower ones
// are overtaken for so long only.
enum class Priority { kLow, kNormal, kHigh };

}  // namespace bst
