// What a checkpoint says about itself: the fields of ModelInfo that no option changes.
//
// Threads   Pure function; reads config.json again, for the text of it.
// Errors    kNotFound when config.json has gone since the checkpoint was opened.
// Tested by tests/engine/engine_options_test.cc
#pragma once

#include "absl/status/statusor.h"
#include "engine/checkpoint/checkpoint.h"
#include "engine/engine.h"

namespace bst {

absl::StatusOr<ModelInfo> DescribeCheckpoint(const Checkpoint& checkpoint);

}  // namespace bst
