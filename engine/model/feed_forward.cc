#include "engine/model/feed_forward.h"

namespace bst {

absl::StatusOr<FeedForward> FeedForward::Create(const LayerSource& source) {
  const ModelConfig& config = source.checkpoint.config();
  FeedForward ffn;
  ffn.activation_ = config.ffn_activation;
  ffn.norm_eps_ = config.norm_eps;
  ffn.ffn_size_ = config.ffn_size;
  BST_ASSIGN_OR_RETURN(ffn.norm_, source.backend.PackVector(source.Tensor("ffn_norm.weight")));
  std::vector<TensorView> up = {source.Tensor("ffn.up_proj.weight")};
  if (config.ffn_activation == Activation::kGeglu || config.ffn_activation == Activation::kSwiglu) {
    up.insert(up.begin(), source.Tensor("ffn.gate_proj.weight"));
  }
  BST_ASSIGN_OR_RETURN(ffn.up_, source.backend.PackLinear(up, source.weights));
  BST_ASSIGN_OR_RETURN(ffn.down_, source.backend.PackLinear({source.Tensor("ffn.down_proj.weight")},
                                                            source.weights));
  return ffn;
}

void FeedForward::Forward(Backend& backend, const Step& step) const {
  backend.RmsNorm(step.x, norm_.View(DType::kF32, {step.x.dim(1)}), norm_eps_, step.normed);
  TensorView hidden = step.hidden.Columns(0, ffn_size_);
  switch (activation_) {
    case Activation::kRelu:
      backend.Linear(step.normed, *up_, {.epilogue = LinearEpilogue::kRelu}, hidden);
      break;
    case Activation::kGelu:
      backend.Linear(step.normed, *up_, {.epilogue = LinearEpilogue::kGelu}, hidden);
      break;
    case Activation::kGeglu:
    case Activation::kSwiglu:
      backend.Linear(step.normed, *up_, {}, step.hidden);
      backend.Gate(
          step.hidden,
          activation_ == Activation::kGeglu ? GateActivation::kGelu : GateActivation::kSilu,
          step.gated);
      hidden = step.gated;
      break;
  }
  backend.Linear(hidden, *down_, {.epilogue = LinearEpilogue::kAdd}, step.x);
}

}  // namespace bst
