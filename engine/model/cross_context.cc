#include "engine/model/cross_context.h"

#include "engine/model/multi_filter_context.h"
#include "engine/model/recurrent_context.h"
#include "engine/model/token_context.h"

namespace bst {

absl::StatusOr<std::unique_ptr<CrossContext>> MakeCrossContext(const LayerSource& source) {
  if (source.layer().type == LayerType::kBrect) return RecurrentContext::Create(source);
  if (source.layer().type != LayerType::kBst) return nullptr;
  return source.layer().context == ContextKind::kMultiFilter ? MultiFilterContext::Create(source)
                                                             : TokenContext::Create(source);
}

}  // namespace bst
