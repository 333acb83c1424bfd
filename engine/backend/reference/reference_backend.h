// The oracle: every operator as the obvious loop, sums in float64, one thread, never tuned.
//
// Its rings are [2][W][H * dh]: keys, then values, in kv_type; its recurrent states are
// complex float64, [C D][M]. Rounding happens where the contract has it: BF16 and INT8 weights and
// the inputs of their layers, BF16 and INT8 rings, float32 activations. Nothing else is rounded
// below float32.
//
// Threads   Engine thread only.
// Tested by tests/golden (an independent float64 evaluation of the whole model)
#pragma once

#include <memory>

#include "engine/backend/backend.h"

namespace bst {

std::unique_ptr<Backend> MakeReferenceBackend();

}  // namespace bst
