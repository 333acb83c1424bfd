#include "engine/model/feed_forward.h"

namespace bst {

absl::StatusOr<FeedForward> FeedForward::Create(const LayerSource& source) {
  const ModelConfig& config = source.config();
  FeedForward ffn;
  ffn.activation_ = config.ffn_activation;
  ffn.norm_eps_ = config.norm_eps;
  ffn.ffn_size_ = config.ffn_size;
  BST_ASSIGN_OR_RETURN(ffn.norm_, source.backend.PackVector(source.Tensor("ffn_norm.weight")));
  std::vector<TensorView> up = {source.Tensor("ffn.up_proj.weight")};
  if (config.ffn_activation == Activation::kGeglu || config.ffn_activation == Activation::kSwiglu) {
    up.insert(up.begin(), source.Tensor("ffn.gate_proj.weight"));
    source.workspace.gated.Reserve(source.max_tokens, ffn.ffn_size_);
  }
  BST_ASSIGN_OR_RETURN(ffn.up_, source.backend.PackLinear(up, source.weights));
  BST_ASSIGN_OR_RETURN(ffn.down_, source.backend.PackLinear({source.Tensor("ffn.down_proj.weight")},
                                                            source.weights));
  source.workspace.normed.Reserve(source.max_tokens, config.hidden_size);
  source.workspace.hidden.Reserve(source.max_tokens, ffn.up_->out_features());
  return ffn;
}

void FeedForward::Forward(Backend& backend, const Workspace& workspace, TensorView x) const {
  const int64_t tokens = x.dim(0), dim = x.dim(1);
  const TensorView normed = workspace.normed.Matrix(tokens, dim);
  const TensorView hidden = workspace.hidden.Matrix(tokens, up_->out_features());
  const TensorView gain = norm_.View(DType::kF32, {dim});
  if (activation_ == Activation::kRelu || activation_ == Activation::kGelu) {
    const LinearEpilogue act =
        activation_ == Activation::kRelu ? LinearEpilogue::kRelu : LinearEpilogue::kGelu;
    backend.FeedForward(x, gain, norm_eps_, *up_, act, *down_, normed, hidden);
    return;
  }
  const TensorView gated = workspace.gated.Matrix(tokens, ffn_size_);
  backend.RmsNorm(x, gain, norm_eps_, normed);
  backend.Linear(normed, *up_, {}, hidden);
  backend.Gate(hidden,
               activation_ == Activation::kGeglu ? GateActivation::kGelu : GateActivation::kSilu,
               gated);
  backend.Linear(gated, *down_, {.epilogue = LinearEpilogue::kAdd}, x);
}

}  // namespace bst
