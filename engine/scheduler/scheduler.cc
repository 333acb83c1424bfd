#include "engine/scheduler/scheduler.h"

#include <algorithm>
#include <iterator>
#include <optional>
#include <utility>

#include "absl/algorithm/container.h"
#include "absl/container/btree_map.h"
#include "absl/container/btree_set.h"
#include "absl/container/flat_hash_map.h"
#include "engine/base/check.h"
#include "engine/scheduler/prompt_split.h"

namespace bst {
namespace {

enum class Stage { kWaiting, kPrefill, kDecode };

// Virtual arrival, then id: who is first in everything that goes by age.
using Order = std::pair<absl::Time, SequenceId>;

absl::Time VirtualArrival(const SequenceSpec& spec, absl::Duration ageing) {
  switch (spec.priority) {
    case Priority::kLow:
      return spec.arrival + ageing;
    case Priority::kNormal:
      return spec.arrival;
    case Priority::kHigh:
      return spec.arrival - ageing;
  }
  return spec.arrival;
}

// One of the request's sequences that has not ended.
struct Continuation {
  std::optional<SlotLease> lease = std::nullopt;  // kPrefill, kDecode
  TokenId last_token = TokenId(0);                // kDecode: drawn, not yet seen by the model
  int generated = 0;
};

struct Request {
  Request(SequenceSpec s, const SchedulerLimits& limits)
      : spec(std::move(s)),
        order(VirtualArrival(spec, limits.priority_ageing), spec.id),
        prompt_tokens(static_cast<int64_t>(spec.prompt.size())),
        is_complete(!spec.prompt_open) {
    for (int i = 0; i < spec.num_sequences; ++i) live.try_emplace(live.end(), i);
  }

  SequenceSpec spec;  // its prompt: tokens from prompt_begin on; dropped once it has been read
  const Order order;
  int64_t prompt_begin = 0;
  int64_t prompt_tokens;  // that have come
  bool is_complete;       // no more will come
  Stage stage = Stage::kWaiting;
  // By index; the first one's slot reads the prompt. A map, for all of them may end in one step.
  absl::btree_map<int, Continuation> live;
  int64_t prompt_done = 0;                        // tokens of the prompt in committed steps
  bool passed_over = false;                       // as the oldest, and has read nothing since
  absl::Time dry_since = absl::InfiniteFuture();  // an open prompt: nothing of it can be read
  absl::Time watched = absl::InfiniteFuture();    // its entry in Impl::deadlines; infinite: none

  int num_slots() const { return static_cast<int>(live.size()); }
  // Tokens of the prompt that may be read now. Of an incomplete one whole blocks, and not its last
  // token: if that turns out to be the end, its logits are wanted.
  int64_t Readable(int window) const {
    const int64_t left = prompt_tokens - prompt_done;
    if (is_complete) return left;
    return left == 0 ? 0 : (left - 1) / window * window;
  }
  bool IsLong(const SchedulerLimits& limits) const {
    return !is_complete || prompt_tokens > limits.long_prompt_tokens;
  }
};

// When the request ends by itself unless something happens before, and how.
struct Deadline {
  absl::Time time = absl::InfiniteFuture();
  SequenceEnd end = SequenceEnd::kTimeLimit;
};

Deadline DeadlineOf(const Request& request, const SchedulerLimits& limits) {
  Deadline first = {request.spec.finish_by, SequenceEnd::kTimeLimit};
  const absl::Time dry_until = request.dry_since + limits.upload_timeout;
  if (dry_until < first.time) first = {dry_until, SequenceEnd::kUploadTimeout};
  if (request.stage == Stage::kWaiting && request.spec.start_by <= first.time) {
    first = {request.spec.start_by, SequenceEnd::kStartTimeout};
  }
  return first;
}

}  // namespace

struct Scheduler::Impl {
  Impl(const SchedulerLimits& l, StatePool& p) : limits(l), pool(p) {}

  using Queue = absl::btree_map<Order, Request*>;

  Request* Find(SequenceId id) {
    const auto it = requests.find(id);
    return it == requests.end() ? nullptr : it->second.get();
  }
  // Where a waiting request waits, as it is now.
  Queue& QueueOf(const Request& request) {
    if (request.Readable(limits.window) == 0) return waiting_dry;
    return request.IsLong(limits) ? waiting_long : waiting_short;
  }
  void Watch(Request& request);
  void End(Request& request, SequenceEnd end, std::vector<SequenceUpdate>& updates);
  void EndContinuation(Request& request, int index, SequenceEnd end,
                       std::vector<SequenceUpdate>& updates);
  void EndStoppedAndExpired(absl::Time now, std::vector<SequenceUpdate>& updates);
  void PlanDecode(const Request& request);
  std::vector<Request*> Startable();
  void PlanPrompts(int short_step_tokens, std::vector<SequenceUpdate>& updates);
  void Start(Request& request, std::vector<SequenceUpdate>& updates);
  void PlanChunk(const Request& request, int tokens);
  void CommitChunk(Request& request, const PlannedRow& row, std::vector<SequenceUpdate>& updates);
  void CommitToken(Request& request, int index, const SampledRow& sampled,
                   std::vector<SequenceUpdate>& updates);

  const SchedulerLimits limits;
  StatePool& pool;
  absl::flat_hash_map<SequenceId, std::unique_ptr<Request>> requests;  // waiting and running
  Queue waiting_short, waiting_long;
  Queue waiting_dry;              // open prompts of which no block has come
  std::vector<Request*> prefill;  // by Order
  std::vector<Request*> decode;   // in the order in which their prompts ended
  SplitTurn turn = SplitTurn::kOldest;
  // An ordered set, not a look at every request: a step costs O(running), however many wait.
  absl::btree_set<std::pair<absl::Time, SequenceId>> deadlines;
  std::vector<SequenceId> cancelled;                // to be ended by the next Plan
  std::vector<std::pair<SequenceId, int>> stopped;  // likewise, of one continuation
  bool plan_outstanding = false;
  StepPlan plan;  // under construction; its memory comes back with Commit
};

void Scheduler::Impl::Watch(Request& request) {
  const absl::Time time = DeadlineOf(request, limits).time;
  if (time == request.watched) return;
  if (request.watched != absl::InfiniteFuture()) {
    deadlines.erase({request.watched, request.spec.id});
  }
  if (time != absl::InfiniteFuture()) deadlines.insert({time, request.spec.id});
  request.watched = time;
}

void Scheduler::Impl::End(Request& request, SequenceEnd end, std::vector<SequenceUpdate>& updates) {
  switch (request.stage) {
    case Stage::kWaiting:
      QueueOf(request).erase(request.order);
      break;
    case Stage::kPrefill:
      prefill.erase(absl::c_find(prefill, &request));
      break;
    case Stage::kDecode:
      decode.erase(absl::c_find(decode, &request));
      break;
  }
  const SequenceId id = request.spec.id;
  deadlines.erase({request.watched, id});
  updates.push_back({.kind = SequenceUpdate::Kind::kEnded,
                     .id = id,
                     .prompt_tokens_done = request.prompt_done,
                     .end = end});
  requests.erase(id);  // The leases go with it.
}

void Scheduler::Impl::EndContinuation(Request& request, int index, SequenceEnd end,
                                      std::vector<SequenceUpdate>& updates) {
  const auto it = request.live.find(index);
  if (it == request.live.end()) return;
  updates.push_back({.kind = SequenceUpdate::Kind::kSequenceEnded,
                     .id = request.spec.id,
                     .prompt_tokens_done = request.prompt_done,
                     .sequence_index = index,
                     .end = end});
  if (request.live.size() == 1) {
    End(request, end, updates);
    return;
  }
  // The slot that reads the prompt stays with the first that is left.
  if (it == request.live.begin() && request.stage == Stage::kPrefill) {
    std::swap(it->second.lease, std::next(it)->second.lease);
  }
  request.live.erase(it);  // The lease goes with it.
}

void Scheduler::Impl::EndStoppedAndExpired(absl::Time now, std::vector<SequenceUpdate>& updates) {
  for (const SequenceId id : cancelled) {
    if (Request* request = Find(id)) End(*request, SequenceEnd::kCancelled, updates);
  }
  cancelled.clear();
  for (const auto& [id, index] : stopped) {
    if (Request* request = Find(id)) {
      EndContinuation(*request, index, SequenceEnd::kStoppedByCaller, updates);
    }
  }
  stopped.clear();
  while (!deadlines.empty() && deadlines.begin()->first <= now) {
    Request& request = *Find(deadlines.begin()->second);
    const SequenceEnd end = DeadlineOf(request, limits).end;
    if (request.stage != Stage::kDecode) {
      End(request, end, updates);
      continue;
    }
    for (int left = request.num_slots(); left > 0; --left) {  // The last one ends the request.
      EndContinuation(request, request.live.begin()->first, end, updates);
    }
  }
}

void Scheduler::Impl::PlanDecode(const Request& request) {
  for (const auto& [index, continuation] : request.live) {
    const int begin = static_cast<int>(plan.tokens_.size());
    plan.tokens_.push_back(continuation.last_token);
    plan.samples_.push_back({static_cast<int>(plan.rows_.size()), index, continuation.lease->id()});
    plan.rows_.push_back({.id = request.spec.id,
                          .row = {.slot = continuation.lease->id(),
                                  .begin = begin,
                                  .end = begin + 1,
                                  .position = request.prompt_tokens + continuation.generated - 1},
                          .num_samples = 1});
  }
}

// Those waiting that may start now, all of them together, in order.
std::vector<Request*> Scheduler::Impl::Startable() {
  std::vector<Request*> startable;
  int free = pool.num_free();
  int64_t held_by_long = 0, held_by_open = 0;
  for (const std::vector<Request*>* running : {&prefill, &decode}) {
    for (const Request* request : *running) {
      if (request->IsLong(limits)) held_by_long += request->num_slots();
      if (!request->is_complete) held_by_open += request->num_slots();
    }
  }
  bool one_waits_for_clients = false;
  auto next_short = waiting_short.begin();
  auto next_long = waiting_long.begin();
  while (next_short != waiting_short.end() || next_long != waiting_long.end()) {
    const bool is_long = next_short == waiting_short.end() ||
                         (next_long != waiting_long.end() && next_long->first < next_short->first);
    auto& next = is_long ? next_long : next_short;
    Request* request = next->second;
    const int slots = request->num_slots();
    const bool exceeds_long_slots =
        is_long && held_by_long > 0 && held_by_long + slots > limits.long_slots;
    // Another client to wait for, and who waits for clients would never start if more come.
    const bool prolongs_a_wait = one_waits_for_clients && !request->is_complete;
    if (exceeds_long_slots || prolongs_a_wait) {
      next_long = waiting_long.end();  // Long ones let short ones pass, but not one another.
      continue;
    }
    if (slots > pool.num_slots() - held_by_open) {
      ++next;  // It waits for clients, who may take their time: nothing is kept for it meanwhile.
      one_waits_for_clients = true;
      continue;
    }
    if (slots > free) break;  // What is free is kept for this one.
    free -= slots;
    if (is_long) held_by_long += slots;
    startable.push_back(request);
    ++next;
  }
  return startable;
}

void Scheduler::Impl::PlanPrompts(int short_step_tokens, std::vector<SequenceUpdate>& updates) {
  std::vector<Request*> readers = Startable();
  const auto num_startable = static_cast<ptrdiff_t>(readers.size());
  absl::c_copy_if(prefill, std::back_inserter(readers),
                  [this](const Request* request) { return request->Readable(limits.window) > 0; });
  if (readers.empty()) return;
  std::inplace_merge(readers.begin(), readers.begin() + num_startable, readers.end(),
                     [](const Request* a, const Request* b) { return a->order < b->order; });

  const int decode_rows = static_cast<int>(plan.tokens_.size());
  int budget = limits.max_step_tokens - decode_rows;
  bool must_be_short = decode_rows > 0;
  std::vector<PromptClaim> claims;
  claims.reserve(readers.size());
  for (const Request* request : readers) {
    PromptClaim claim = {.readable = request->Readable(limits.window)};
    if (request->is_complete) claim.remaining = claim.readable;
    // One that ends alone in its step keeps nobody waiting.
    must_be_short |= readers.size() > 1 && claim.remaining <= limits.chunk_tokens;
    claims.push_back(claim);
  }
  if (must_be_short) {
    budget = std::min(budget, std::max(limits.window, short_step_tokens - decode_rows));
  }
  // The oldest may be another one than last time: an upload can be read now and then. So it counts
  // both that somebody was passed over and whether this one was.
  Request& oldest = *readers.front();
  if (oldest.passed_over) turn = SplitTurn::kOldest;
  SplitPromptTokens({.chunk_tokens = limits.chunk_tokens, .window = limits.window}, budget, turn,
                    absl::MakeSpan(claims));
  oldest.passed_over = claims.front().tokens == 0;
  turn = oldest.passed_over ? SplitTurn::kOldest : SplitTurn::kShortest;

  for (size_t i = 0; i < readers.size(); ++i) {
    if (claims[i].tokens == 0) continue;
    readers[i]->passed_over = false;
    if (readers[i]->stage == Stage::kWaiting) Start(*readers[i], updates);
    PlanChunk(*readers[i], claims[i].tokens);
  }
}

void Scheduler::Impl::Start(Request& request, std::vector<SequenceUpdate>& updates) {
  QueueOf(request).erase(request.order);
  for (auto& [index, continuation] : request.live) {
    continuation.lease = pool.Acquire();
    BST_CHECK(continuation.lease.has_value(), "no slot for what may start");
  }
  request.stage = Stage::kPrefill;
  const auto after = absl::c_upper_bound(
      prefill, &request, [](const Request* a, const Request* b) { return a->order < b->order; });
  prefill.insert(after, &request);
  Watch(request);
  updates.push_back({.kind = SequenceUpdate::Kind::kStarted, .id = request.spec.id});
}

void Scheduler::Impl::PlanChunk(const Request& request, int chunk_tokens) {
  const int begin = static_cast<int>(plan.tokens_.size());
  const auto from = request.spec.prompt.begin() + (request.prompt_done - request.prompt_begin);
  const auto to = from + chunk_tokens;
  plan.tokens_.insert(plan.tokens_.end(), from, to);
  const SlotId slot = request.live.begin()->second.lease->id();
  PlannedRow row = {.id = request.spec.id,
                    .row = {.slot = slot,
                            .begin = begin,
                            .end = begin + chunk_tokens,
                            .position = request.prompt_done},
                    .is_prompt = true,
                    .scores = request.spec.logits_everywhere};
  if (to != request.spec.prompt.end()) row.following = *to;
  const bool is_last =
      request.is_complete && request.prompt_done + chunk_tokens == request.prompt_tokens;
  if (is_last && request.spec.max_new_tokens > 0) {
    row.num_samples = request.num_slots();
    for (const auto& [index, continuation] : request.live) {
      plan.samples_.push_back(
          {static_cast<int>(plan.rows_.size()), index, continuation.lease->id()});
      if (continuation.lease->id() == slot) continue;
      plan.copies_.push_back({slot, continuation.lease->id()});
    }
  }
  plan.rows_.push_back(row);
}

void Scheduler::Impl::CommitChunk(Request& request, const PlannedRow& row,
                                  std::vector<SequenceUpdate>& updates) {
  request.prompt_done += row.row.num_tokens();
  updates.push_back({.kind = SequenceUpdate::Kind::kPrefilled,
                     .id = row.id,
                     .prompt_tokens_done = request.prompt_done});
  if (!request.is_complete || request.prompt_done < request.prompt_tokens) return;
  if (request.spec.max_new_tokens == 0) {
    End(request, SequenceEnd::kScored, updates);
    return;
  }
  prefill.erase(absl::c_find(prefill, &request));
  decode.push_back(&request);
  request.stage = Stage::kDecode;
  request.spec.prompt = std::vector<TokenId>();  // `= {}` would keep the memory
}

void Scheduler::Impl::CommitToken(Request& request, int index, const SampledRow& sampled,
                                  std::vector<SequenceUpdate>& updates) {
  if (sampled.failed) {
    End(request, SequenceEnd::kFailed, updates);
    return;
  }
  Continuation& continuation = request.live.at(index);
  continuation.last_token = sampled.token;
  ++continuation.generated;
  if (sampled.ends_sequence) {
    EndContinuation(request, index, SequenceEnd::kStopped, updates);
  } else if (continuation.generated == request.spec.max_new_tokens) {
    EndContinuation(request, index, SequenceEnd::kMaxTokens, updates);
  }
}

Scheduler::Scheduler(const SchedulerLimits& limits, StatePool& pool)
    : impl_(std::make_unique<Impl>(limits, pool)) {
  BST_CHECK(limits.window >= 1, "window is ", limits.window);
  BST_CHECK(limits.chunk_tokens >= limits.window && limits.chunk_tokens % limits.window == 0,
            "chunk_tokens is ", limits.chunk_tokens, ", window is ", limits.window);
  BST_CHECK(limits.max_step_tokens >= limits.window + pool.num_slots() - 1, "max_step_tokens is ",
            limits.max_step_tokens, ", window is ", limits.window, ", slots are ",
            pool.num_slots());
}

Scheduler::~Scheduler() = default;

void Scheduler::Enqueue(SequenceSpec spec) {
  BST_CHECK(spec.prompt_open || !spec.prompt.empty(), "sequence ", spec.id.value(),
            " has no prompt");
  BST_CHECK(1 <= spec.num_sequences && spec.num_sequences <= impl_->pool.num_slots(),
            "num_sequences is ", spec.num_sequences);
  const SequenceId id = spec.id;
  auto owned = std::make_unique<Request>(std::move(spec), impl_->limits);
  Request& request = *owned;
  const bool is_new = impl_->requests.emplace(id, std::move(owned)).second;
  BST_CHECK(is_new, "sequence ", id.value(), " is here already");
  if (request.Readable(impl_->limits.window) == 0) request.dry_since = request.spec.arrival;
  impl_->QueueOf(request).emplace(request.order, &request);
  impl_->Watch(request);
}

void Scheduler::Append(SequenceId id, absl::Span<const TokenId> tokens, PromptEnd end,
                       absl::Time now) {
  BST_CHECK(!impl_->plan_outstanding, "a prompt grows while a step reads it");
  Request* const request = impl_->Find(id);
  if (request == nullptr) return;
  BST_CHECK(!request->is_complete, "the prompt of ", id.value(), " is complete");
  const bool waits = request->stage == Stage::kWaiting;
  if (waits) impl_->QueueOf(*request).erase(request->order);

  std::vector<TokenId>& prompt = request->spec.prompt;
  const int64_t read = request->prompt_done - request->prompt_begin;
  // What has been read goes when it is half of what is here: a token is moved once, on average.
  if (read > 0 && 2 * read >= static_cast<int64_t>(prompt.size())) {
    prompt.erase(prompt.begin(), prompt.begin() + read);
    request->prompt_begin = request->prompt_done;
  }
  prompt.insert(prompt.end(), tokens.begin(), tokens.end());
  request->prompt_tokens += static_cast<int64_t>(tokens.size());
  request->is_complete = end == PromptEnd::kComplete;
  BST_CHECK(!request->is_complete || request->prompt_tokens > 0, "sequence ", id.value(),
            " has no prompt");

  const bool is_dry = request->Readable(impl_->limits.window) == 0;
  // What holds slots has its time for each block, or for a sign of life; crumbs do not begin it
  // anew.
  request->dry_since = !is_dry                   ? absl::InfiniteFuture()
                       : waits || tokens.empty() ? now
                                                 : std::min(request->dry_since, now);
  if (waits) impl_->QueueOf(*request).emplace(request->order, request);
  impl_->Watch(*request);
}

void Scheduler::Cancel(SequenceId id) {
  if (impl_->Find(id) != nullptr) impl_->cancelled.push_back(id);
}

void Scheduler::StopSequence(SequenceId id, int sequence_index) {
  if (impl_->Find(id) != nullptr) impl_->stopped.push_back({id, sequence_index});
}

StepPlan Scheduler::Plan(absl::Time now, int short_step_tokens,
                         std::vector<SequenceUpdate>& updates) {
  BST_CHECK(!impl_->plan_outstanding, "the previous plan was not committed");
  impl_->plan_outstanding = true;
  impl_->EndStoppedAndExpired(now, updates);
  for (Request* request : impl_->prefill) {
    if (request->Readable(impl_->limits.window) > 0) continue;
    request->dry_since = std::min(request->dry_since, now);
    impl_->Watch(*request);
  }
  for (const Request* request : impl_->decode) impl_->PlanDecode(*request);
  impl_->PlanPrompts(short_step_tokens, updates);
  return std::move(impl_->plan);
}

void Scheduler::Commit(StepPlan plan, absl::Span<const SampledRow> sampled,
                       std::vector<SequenceUpdate>& updates) {
  BST_CHECK(impl_->plan_outstanding, "there is no plan to commit");
  BST_CHECK(sampled.size() == plan.samples_.size(), sampled.size(), " outcomes for ",
            plan.samples_.size(), " samples");
  impl_->plan_outstanding = false;
  size_t next = 0;
  for (const PlannedRow& row : plan.rows_) {
    // Nothing ends between Plan and Commit; but a row that failed may have ended its request.
    if (Request* request = impl_->Find(row.id); request != nullptr && row.is_prompt) {
      impl_->CommitChunk(*request, row, updates);
    }
    for (int i = 0; i < row.num_samples; ++i, ++next) {
      Request* const request = impl_->Find(row.id);
      if (request == nullptr) continue;
      impl_->CommitToken(*request, plan.samples_[next].sequence_index, sampled[next], updates);
    }
  }
  impl_->plan = std::move(plan);
  impl_->plan.Clear();
}

absl::Time Scheduler::next_deadline() const {
  return impl_->deadlines.empty() ? absl::InfiniteFuture() : impl_->deadlines.begin()->first;
}
int Scheduler::num_running() const {
  return static_cast<int>(impl_->prefill.size() + impl_->decode.size());
}
int Scheduler::num_waiting() const {
  return static_cast<int>(impl_->waiting_short.size() + impl_->waiting_long.size() +
                          impl_->waiting_dry.size());
}

int Scheduler::QueuePosition(SequenceId id) const {
  const Order order = impl_->Find(id)->order;
  ptrdiff_t before = 0;
  for (const Impl::Queue* queue : {&impl_->waiting_short, &impl_->waiting_long}) {
    before += std::distance(queue->begin(), queue->lower_bound(order));
  }
  return static_cast<int>(before);
}

}  // namespace bst
