#include "engine/scheduler/prompt_split.h"

#include <algorithm>
#include <numeric>
#include <vector>

namespace bst {
namespace {

class Splitter {
 public:
  Splitter(const SplitLimits& limits, int budget, absl::Span<PromptClaim> claims)
      : limits_(limits), left_(budget), claims_(claims), shortest_first_(claims.size()) {
    std::iota(shortest_first_.begin(), shortest_first_.end(), size_t{0});
    std::stable_sort(shortest_first_.begin(), shortest_first_.end(), [claims](size_t a, size_t b) {
      return claims[a].remaining < claims[b].remaining;
    });
  }

  // Each gives at most `share` tokens and returns how many it gave.
  int GiveToShortest(int share) {
    int given = 0;
    for (const size_t i : shortest_first_) {
      // Who waits for the first token of one that ends here should not wait for others' chunks.
      if (ends_a_prompt_ && claims_[i].remaining > share - given) break;
      const int tokens = Give(claims_[i], share - given);
      if (tokens == 0) break;  // Whoever has more left would only take crumbs of it.
      given += tokens;
    }
    return given;
  }
  int GiveToOldest(int share) {
    int given = 0;
    for (PromptClaim& claim : claims_) given += Give(claim, share - given);
    return given;
  }

  int left() const { return left_; }
  bool ends_a_prompt() const { return ends_a_prompt_; }

 private:
  int Give(PromptClaim& claim, int most) {
    most = std::min({most, left_, limits_.chunk_tokens - claim.tokens});
    int64_t tokens = claim.readable - claim.tokens;
    // A chunk that does not end what can be read starts and ends at a multiple of window.
    if (tokens > most) tokens = most / limits_.window * limits_.window;
    claim.tokens += static_cast<int>(tokens);
    left_ -= static_cast<int>(tokens);
    if (tokens > 0 && claim.tokens == claim.remaining) ends_a_prompt_ = true;
    return static_cast<int>(tokens);
  }

  const SplitLimits limits_;
  int left_;  // of the budget
  const absl::Span<PromptClaim> claims_;
  std::vector<size_t> shortest_first_;
  bool ends_a_prompt_ = false;
};

}  // namespace

void SplitPromptTokens(const SplitLimits& limits, int budget, SplitTurn turn,
                       absl::Span<PromptClaim> claims) {
  Splitter splitter(limits, budget, claims);
  if (budget < 2 * limits.window) {
    if (turn == SplitTurn::kShortest) splitter.GiveToShortest(budget);
    splitter.GiveToOldest(splitter.left());
    return;
  }
  const int given = splitter.GiveToShortest(budget / 2);
  if (!splitter.ends_a_prompt()) {
    splitter.GiveToOldest(splitter.left());
  } else if (turn == SplitTurn::kOldest) {
    splitter.GiveToOldest(std::max(limits.window, given));
  }
}

}  // namespace bst
