// CrossContext: the second half of a layer's attention, which looks beyond the window: to the
// context states of a `bst` layer, or to the recurrent states of a `brect` layer.
//
// Threads   Engine thread only.
// Tested by tests/engine/model/golden_test.cc, model_test.cc
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "engine/model/layer.h"

namespace bst {

class CrossContext {
 public:
  // Views into the layer's projections, [T, A] each.
  struct Inputs {
    TensorView queries;       // qc; l2-normalised in place where the model asks for it
    TensorView keys, values;  // the tokens' own; keys normalised, not yet rotated
  };

  virtual ~CrossContext() = default;
  // Whether it reads the tokens' own keys and values, or leaves Inputs' empty.
  virtual bool TakesKeys() const { return false; }
  // out [T, A], of tokens before their row's outputs_from anything; the rows' slots advance.
  virtual void Forward(Backend& backend, const Step& step, const Inputs& inputs,
                       TensorView out) const = 0;
  virtual size_t weight_bytes() const = 0;
};

// Of the layer's type and context; null for a `transformer` layer.
absl::StatusOr<std::unique_ptr<CrossContext>> MakeCrossContext(const LayerSource& source);

}  // namespace bst
