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
  std::optional<SlotLease> lease = std::nullopt;  // once it has started
  TokenId last_token = TokenId(0);                // drawn, not yet seen by the model
  int generated = 0;
};

struct Request {
  Request(SequenceSpec s, const SchedulerLimits& limits)
      : spec(std::move(s)),
        order(VirtualArrival(spec, limits.priority_ageing), spec.id),
        prompt_tokens(static_cast<int64_t>(spec.prompt.size())),
        is_complete(!spec.prompt_open),
        unstarted(spec.num_sequences) {
    for (int i = 0; i < spec.num_sequences; ++i) live.try_emplace(live.end(), i);
  }

  SequenceSpec spec;  // its prompt: tokens from prompt_begin on; dropped once it has been read
  const Order order;
  int64_t prompt_begin = 0;
  int64_t prompt_tokens;  // that have come
  bool is_complete;       // no more will come
  Stage stage = Stage::kWaiting;
  // Reads the prompt, and keeps its state until the last continuation starts in it.
  std::optional<SlotLease> prompt_slot = std::nullopt;
  // By index. A map, for all of them may end in one step.
  absl::btree_map<int, Continuation> live;
  int unstarted;                                  // of these
  int64_t prompt_done = 0;                        // tokens of the prompt in committed steps
  bool has_drawn = false;                         // a token, of any continuation
  bool passed_over = false;                       // as the oldest, and has read nothing since
  absl::Time dry_since = absl::InfiniteFuture();  // an open prompt: nothing of it can be read
  absl::Time watched = absl::InfiniteFuture();    // its entry in Impl::deadlines; infinite: none

  // All but the last start in copies of the prompt's slot.
  bool NeedsCopies() const { return unstarted > 1; }
  // Holds a slot for as long as others let it: clients, or who gives slots back for copies.
  bool PinsSlot() const { return NeedsCopies() || !is_complete; }
  int num_slots() const {
    return static_cast<int>(live.size()) - unstarted + (prompt_slot.has_value() ? 1 : 0);
  }
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
  // Whether a chunk of so many tokens may be the last.
  bool MayBeRead(int chunk_tokens) const {
    return is_complete && prompt_tokens - prompt_done <= chunk_tokens;
  }
};

// Requests of which some hold a slot for as long as others let them. Copies are made in slots that
// come free, so where anybody needs them one slot must stay that comes free by itself.
struct Pins {
  int pinned = 0;
  int need_copies = 0;
  bool refused = false;  // one that would have pinned a slot

  void Count(const Request& request) {
    if (request.PinsSlot()) ++pinned;
    if (request.NeedsCopies()) ++need_copies;
  }
  // Whether the request may take one of so many slots: asked of those that wait in their order. One
  // that may not lets others pass, but none that would pin a slot in its place.
  bool Admit(const Request& request, int slots) {
    if (!request.PinsSlot()) return true;
    const bool is_last = pinned + 1 >= slots;
    if (is_last && (need_copies > 0 || request.NeedsCopies())) refused = true;
    return !refused;
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
  struct Room;
  int PromptTokens(bool must_be_short, int short_step_tokens) const;
  int LongSlots() const;
  Room CountRoom() const;
  // Slots for copies of a prompt's, if that has been read or will have been.
  struct Grant {
    Request* request;
    int slots;
  };
  struct Grants {
    std::vector<Grant> readers;  // in order; those that wait start
    std::vector<Grant> late;     // of which continuations start whose prompt was read before
  };
  Grants GrantSlots(int short_step_tokens);
  void PlanPrompts(absl::Span<const Grant> readers, bool must_be_short, int short_step_tokens,
                   std::vector<SequenceUpdate>& updates);
  void Start(Request& request, std::vector<SequenceUpdate>& updates);
  void StartContinuations(Request& request, int slots, std::optional<SlotId> kept_logits);
  void PlanChunk(const Grant& reader, int tokens);
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
  if (!it->second.lease.has_value()) --request.unstarted;
  request.live.erase(it);  // The lease goes with it.
  if (request.unstarted == 0) request.prompt_slot.reset();
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
    if (!request.has_drawn) {
      End(request, end, updates);
      continue;
    }
    for (size_t left = request.live.size(); left > 0; --left) {  // The last one ends the request.
      EndContinuation(request, request.live.begin()->first, end, updates);
    }
  }
}

void Scheduler::Impl::PlanDecode(const Request& request) {
  for (const auto& [index, continuation] : request.live) {
    if (!continuation.lease.has_value()) continue;
    const int begin = static_cast<int>(plan.tokens_.size());
    plan.tokens_.push_back(continuation.last_token);
    plan.samples_.push_back({request.spec.id, index, continuation.lease->id()});
    plan.rows_.push_back({.id = request.spec.id,
                          .row = {.slot = continuation.lease->id(),
                                  .begin = begin,
                                  .end = begin + 1,
                                  .position = request.prompt_tokens + continuation.generated - 1},
                          .num_samples = 1});
  }
}

// What may still be given in this plan.
struct Scheduler::Impl::Room {
  int free = 0;  // slots
  // Slots that long prompts and their sequences may still take; below 0: they have more.
  int64_t for_long = 0;
  Pins pins = {}, pins_of_long = {};

  // Up to `wanted` slots.
  int Take(int wanted, bool is_long) {
    int taken = std::min(wanted, free);
    if (is_long) {
      taken = static_cast<int>(std::clamp<int64_t>(for_long, 0, taken));
      for_long -= taken;
    }
    free -= taken;
    return taken;
  }
  void Count(const Request& request, bool is_long) {
    pins.Count(request);
    if (is_long) pins_of_long.Count(request);
  }
};

// Where long prompts may hold a single slot, who has it may have a second for copies.
int Scheduler::Impl::LongSlots() const { return std::max(limits.long_slots, 2); }

Scheduler::Impl::Room Scheduler::Impl::CountRoom() const {
  Room room = {.free = pool.num_free(), .for_long = LongSlots()};
  for (const std::vector<Request*>* running : {&prefill, &decode}) {
    for (const Request* request : *running) {
      const bool is_long = request->IsLong(limits);
      if (is_long) room.for_long -= request->num_slots();
      room.Count(*request, is_long);
    }
  }
  return room;
}

// Starts as many continuations as there are slots, as copies of the prompt's; the last one takes
// that itself. `kept_logits`: where those of the prompt's end are, unless they are its row's.
void Scheduler::Impl::StartContinuations(Request& request, int slots,
                                         std::optional<SlotId> kept_logits) {
  for (auto& [index, continuation] : request.live) {
    if (continuation.lease.has_value()) continue;
    if (request.unstarted == 1) {
      continuation.lease = std::exchange(request.prompt_slot, std::nullopt);
    } else if (slots > 0) {
      --slots;
      continuation.lease = pool.Acquire();
      BST_CHECK(continuation.lease.has_value(), "no slot for what may start");
      plan.copies_.push_back({request.prompt_slot->id(), continuation.lease->id()});
    } else {
      return;
    }
    --request.unstarted;
    plan.samples_.push_back({request.spec.id, index, continuation.lease->id(), kept_logits});
  }
}

// What decode rows leave to prompts.
int Scheduler::Impl::PromptTokens(bool must_be_short, int short_step_tokens) const {
  const int decode_rows = static_cast<int>(plan.tokens_.size());
  const int budget = limits.max_step_tokens - decode_rows;
  if (!must_be_short) return budget;
  return std::min(budget, std::max(limits.window, short_step_tokens - decode_rows));
}

// Who gets what is free, the oldest first: those that run, for their continuations, and those that
// wait, to start.
Scheduler::Impl::Grants Scheduler::Impl::GrantSlots(int short_step_tokens) {
  Room room = CountRoom();
  Grants grants;
  // The most that one may read in this step, as far as it is known.
  const int most_tokens =
      std::min(limits.chunk_tokens, PromptTokens(!plan.rows_.empty(), short_step_tokens));
  const auto add_reader = [&](Request& request, bool is_long) {
    const int copies = request.MayBeRead(most_tokens) ? request.unstarted - 1 : 0;
    grants.readers.push_back({&request, room.Take(copies, is_long)});
  };

  std::vector<Request*> running;
  absl::c_copy_if(prefill, std::back_inserter(running),
                  [this](const Request* request) { return request->Readable(limits.window) > 0; });
  absl::c_copy_if(decode, std::back_inserter(running),
                  [](const Request* request) { return request->unstarted > 0; });
  absl::c_sort(running, [](const Request* a, const Request* b) { return a->order < b->order; });
  auto next_running = running.begin();
  const auto grant_next_running = [&] {
    Request& request = **next_running++;
    const bool is_long = request.IsLong(limits);
    if (request.stage == Stage::kPrefill) return add_reader(request, is_long);
    const int slots = room.Take(request.unstarted - 1, is_long);
    if (slots > 0 || request.unstarted == 1) grants.late.push_back({&request, slots});
  };

  auto next_short = waiting_short.begin();
  auto next_long = waiting_long.begin();
  while (next_short != waiting_short.end() || next_long != waiting_long.end()) {
    const bool is_long = next_short == waiting_short.end() ||
                         (next_long != waiting_long.end() && next_long->first < next_short->first);
    auto& next = is_long ? next_long : next_short;
    while (next_running != running.end() && (*next_running)->order < next->first) {
      grant_next_running();
    }
    if (room.free == 0) break;
    Request& request = *next->second;
    if (is_long && room.for_long <= LongSlots() - limits.long_slots) {
      next_long = waiting_long.end();  // Long ones let short ones pass, but not one another.
      continue;
    }
    ++next;
    const bool may_hold = room.pins.Admit(request, pool.num_slots());
    const bool may_hold_long = !is_long || room.pins_of_long.Admit(request, LongSlots());
    if (!may_hold || !may_hold_long) continue;
    room.Take(1, is_long);
    room.Count(request, is_long);
    add_reader(request, is_long);
  }
  while (next_running != running.end()) grant_next_running();
  return grants;
}

void Scheduler::Impl::PlanPrompts(absl::Span<const Grant> readers, bool must_be_short,
                                  int short_step_tokens, std::vector<SequenceUpdate>& updates) {
  if (readers.empty()) return;

  std::vector<PromptClaim> claims;
  claims.reserve(readers.size());
  for (const Grant& reader : readers) {
    PromptClaim claim = {.readable = reader.request->Readable(limits.window)};
    if (reader.request->is_complete) claim.remaining = claim.readable;
    // One that ends alone in its step keeps nobody waiting.
    must_be_short |= readers.size() > 1 && claim.remaining <= limits.chunk_tokens;
    claims.push_back(claim);
  }
  // The oldest may be another one than last time: an upload can be read now and then. So it counts
  // both that somebody was passed over and whether this one was.
  Request& oldest = *readers.front().request;
  if (oldest.passed_over) turn = SplitTurn::kOldest;
  SplitPromptTokens({.chunk_tokens = limits.chunk_tokens, .window = limits.window},
                    PromptTokens(must_be_short, short_step_tokens), turn, absl::MakeSpan(claims));
  oldest.passed_over = claims.front().tokens == 0;
  turn = oldest.passed_over ? SplitTurn::kOldest : SplitTurn::kShortest;

  for (size_t i = 0; i < readers.size(); ++i) {
    if (claims[i].tokens == 0) continue;
    Request& request = *readers[i].request;
    request.passed_over = false;
    if (request.stage == Stage::kWaiting) Start(request, updates);
    PlanChunk(readers[i], claims[i].tokens);
  }
}

void Scheduler::Impl::Start(Request& request, std::vector<SequenceUpdate>& updates) {
  QueueOf(request).erase(request.order);
  request.prompt_slot = pool.Acquire();
  BST_CHECK(request.prompt_slot.has_value(), "no slot for what may start");
  request.stage = Stage::kPrefill;
  const auto after = absl::c_upper_bound(
      prefill, &request, [](const Request* a, const Request* b) { return a->order < b->order; });
  prefill.insert(after, &request);
  Watch(request);
  updates.push_back({.kind = SequenceUpdate::Kind::kStarted, .id = request.spec.id});
}

void Scheduler::Impl::PlanChunk(const Grant& reader, int chunk_tokens) {
  Request& request = *reader.request;
  const int begin = static_cast<int>(plan.tokens_.size());
  const auto from = request.spec.prompt.begin() + (request.prompt_done - request.prompt_begin);
  const auto to = from + chunk_tokens;
  plan.tokens_.insert(plan.tokens_.end(), from, to);
  PlannedRow row = {.id = request.spec.id,
                    .row = {.slot = request.prompt_slot->id(),
                            .begin = begin,
                            .end = begin + chunk_tokens,
                            .position = request.prompt_done},
                    .is_prompt = true,
                    .scores = request.spec.logits_everywhere};
  if (to != request.spec.prompt.end()) row.following = *to;
  const bool is_last =
      request.is_complete && request.prompt_done + chunk_tokens == request.prompt_tokens;
  if (is_last && request.spec.max_new_tokens > 0) {
    StartContinuations(request, reader.slots, std::nullopt);
    row.num_samples = static_cast<int>(request.live.size()) - request.unstarted;
    row.keeps_logits = request.unstarted > 0;
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
  request.has_drawn = true;
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
  const Impl::Grants grants = impl_->GrantSlots(short_step_tokens);
  const bool somebody_waits = !impl_->plan.rows_.empty() || !grants.late.empty();
  impl_->PlanPrompts(grants.readers, somebody_waits, short_step_tokens, updates);
  for (const Impl::Grant& grant : grants.late) {
    impl_->StartContinuations(*grant.request, grant.slots, grant.request->prompt_slot->id());
  }
  return std::move(impl_->plan);
}

void Scheduler::Commit(StepPlan plan, absl::Span<const SampledRow> sampled,
                       std::vector<SequenceUpdate>& updates) {
  BST_CHECK(impl_->plan_outstanding, "there is no plan to commit");
  BST_CHECK(sampled.size() == plan.samples_.size(), sampled.size(), " outcomes for ",
            plan.samples_.size(), " samples");
  impl_->plan_outstanding = false;
  for (const PlannedRow& row : plan.rows_) {
    if (row.is_prompt) impl_->CommitChunk(*impl_->Find(row.id), row, updates);
  }
  for (size_t i = 0; i < sampled.size(); ++i) {
    // Nothing ends between Plan and Commit; but a sample that failed may have ended its request.
    if (Request* request = impl_->Find(plan.samples_[i].id)) {
      impl_->CommitToken(*request, plan.samples_[i].sequence_index, sampled[i], updates);
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
