#include "clients/stress/load_run.h"

#include <algorithm>
#include <cstdio>
#include <limits>
#include <utility>

#include "absl/time/time.h"

namespace bst::stress {
namespace {

constexpr double kNever = std::numeric_limits<double>::infinity();
// Then calls that ended get their turn, however far the sends are behind.
constexpr int kSendsPerPass = 256;
constexpr double kProgressSeconds = 0.5;
// How late an interrupt is seen.
constexpr double kLongestWaitSeconds = 0.1;
// A drain below this proves nothing: a busy server has pauses of its own.
constexpr double kShortestDrainSeconds = 1;

}  // namespace

LoadRun::LoadRun(LoadShape shape, uint64_t seed, const Traffic& traffic, const Stubs& stubs,
                 Recorder& recorder, Hooks hooks)
    : shape_(shape),
      traffic_(traffic),
      stubs_(stubs),
      recorder_(recorder),
      hooks_(std::move(hooks)),
      arrivals_(shape_.arrivals, shape_.rate.value_or(1), shape_.burstiness, seed) {
  next_due_seconds_ = shape_.rate.has_value() ? arrivals_.NextGap() : 0;
  next_probe_seconds_ = shape_.probe_rate > 0 ? 1 / shape_.probe_rate : kNever;
}

void LoadRun::Run() {
  while (true) {
    RunTimers();
    TakeFinishedCalls();
    const double now = clock_.Now();
    if (!sends_are_over_) {
      SendDue();
      DropBacklog();
      sends_are_over_ = SendsAreOver(now) || hooks_.is_interrupted();
      if (sends_are_over_) cut_seconds_ = clock_.Now() + shape_.drain_seconds;
    }
    SendDueProbes();
    if (sends_are_over_) {
      if (open_requests_ + open_probes_ == 0) break;
      if (!is_cut_ && (now >= cut_seconds_ || hooks_.is_interrupted())) CutAll();
    }
    if (now >= next_progress_seconds_) {
      hooks_.on_progress(now, running_.size());
      next_progress_seconds_ = now + kProgressSeconds;
    }
    Wait();
  }
}

bool LoadRun::HasSentAll() const {
  return shape_.requests.has_value() && measured_sent_ >= *shape_.requests;
}

// When the duration is over.
double LoadRun::EndSeconds() const {
  return shape_.duration_seconds.has_value() ? shape_.warmup_seconds + *shape_.duration_seconds
                                             : kNever;
}

// Whether a request that is due then belongs to the run.
bool LoadRun::MayStart(double due_seconds) const {
  return !HasSentAll() && due_seconds < EndSeconds();
}

// A duration goes on after its last request: the streams that run may take that long, and probes
// feel them.
bool LoadRun::SendsAreOver(double now) const {
  return HasSentAll() || (now >= EndSeconds() && !MayStart(next_due_seconds_));
}

// Whether a probe that is due then belongs to the run. After the last of --requests they are there
// for the requests that still run.
bool LoadRun::MayProbe(double due_seconds) const {
  return !is_cut_ && due_seconds < EndSeconds() && (!HasSentAll() || open_requests_ > 0);
}

void LoadRun::SendDue() {
  for (int sent = 0; sent < kSendsPerPass; ++sent) {
    const double now = clock_.Now();
    if (!shape_.rate.has_value()) next_due_seconds_ = now;  // closed loop: due as soon as it may go
    if (shape_.concurrency.has_value() && open_requests_ >= *shape_.concurrency) return;
    if (next_due_seconds_ > now || !MayStart(next_due_seconds_)) return;
    SendRequest(next_due_seconds_);
    if (shape_.rate.has_value()) next_due_seconds_ += arrivals_.NextGap();
  }
}

// What a concurrency still holds back when the time of the drain is up is never sent, and failed.
void LoadRun::DropBacklog() {
  const double now = clock_.Now();
  if (!shape_.rate.has_value() || now < EndSeconds() + shape_.drain_seconds) return;
  for (; MayStart(next_due_seconds_); next_due_seconds_ += arrivals_.NextGap()) {
    RequestRecord record = NextRecord(next_due_seconds_);
    record.sent_seconds = record.end_seconds = now;
    record.e2e_seconds = now - record.intended_seconds;
    record.code = grpc::StatusCode::CANCELLED;
    record.message = "the run was over before it could be sent";
    record.was_cut = true;
    ++next_index_;
    EndRequest(record);
  }
}

void LoadRun::SendDueProbes() {
  for (int sent = 0; sent < kSendsPerPass; ++sent) {
    if (next_probe_seconds_ > clock_.Now() || !MayProbe(next_probe_seconds_)) return;
    RequestRecord record;
    record.index = next_probe_index_;
    record.is_probe = true;
    record.intended_seconds = next_probe_seconds_;
    record.is_measured = record.intended_seconds >= shape_.warmup_seconds;
    ++open_probes_;
    StartAttempt(std::make_shared<const RequestPlan>(traffic_.PlanProbe(next_probe_index_++)),
                 std::move(record));
    next_probe_seconds_ += 1 / shape_.probe_rate;
  }
}

RequestRecord LoadRun::NextRecord(double intended_seconds) {
  RequestRecord record;
  record.index = next_index_;
  record.intended_seconds = intended_seconds;
  record.is_measured = intended_seconds >= shape_.warmup_seconds;
  if (record.is_measured) ++measured_sent_;
  ++open_requests_;
  recorder_.AddSend(intended_seconds);
  return record;
}

void LoadRun::SendRequest(double intended_seconds) {
  RequestRecord record = NextRecord(intended_seconds);
  StartAttempt(std::make_shared<const RequestPlan>(traffic_.Plan(next_index_++)),
               std::move(record));
}

void LoadRun::StartAttempt(std::shared_ptr<const RequestPlan> plan, RequestRecord record) {
  StreamCall::Host& host = *this;  // private to others
  const auto call =
      std::make_shared<StreamCall>(host, std::move(plan), std::move(record), hooks_.keep_output);
  running_.emplace(call.get(), call);
  peak_in_flight_ = std::max(peak_in_flight_, running_.size());
  call->Start(*stubs_.stubs[next_stub_], stubs_.key);
  next_stub_ = (next_stub_ + 1) % stubs_.stubs.size();
  if (is_cut_) call->Cut();
}

void LoadRun::At(double seconds, std::function<void()> action) {
  absl::MutexLock lock(&mutex_);
  timers_.push({seconds, timers_set_++, std::move(action)});
  wake_seconds_ = std::min(wake_seconds_, seconds);
}

void LoadRun::Done(std::shared_ptr<StreamCall> call) {
  absl::MutexLock lock(&mutex_);
  finished_.push_back(std::move(call));
}

void LoadRun::RunTimers() {
  while (true) {
    std::function<void()> action;
    {
      absl::MutexLock lock(&mutex_);
      // Once all is cut nothing is waited for: neither a slow reader's pace nor a refusal's advice.
      if (timers_.empty() || (!is_cut_ && timers_.top().seconds > clock_.Now())) return;
      action = timers_.top().action;
      timers_.pop();
    }
    action();
  }
}

void LoadRun::TakeFinishedCalls() {
  std::vector<std::shared_ptr<StreamCall>> finished;
  {
    absl::MutexLock lock(&mutex_);
    finished.swap(finished_);
  }
  for (const std::shared_ptr<StreamCall>& call : finished) {
    running_.erase(call.get());
    if (MayRetry(call->record())) {
      Retry(*call);
    } else {
      EndRequest(call->record());
    }
  }
}

bool LoadRun::MayRetry(const RequestRecord& record) const {
  const bool is_refused = record.code == grpc::StatusCode::RESOURCE_EXHAUSTED ||
                          record.code == grpc::StatusCode::UNAVAILABLE;
  // A negative pushback asks not to come again.
  const bool is_invited =
      record.pushback_ms.has_value() ? *record.pushback_ms >= 0 : record.has_retry_info;
  return is_refused && is_invited && !record.is_probe && record.output_tokens == 0 &&
         record.retries < shape_.max_retries && !is_cut_;
}

void LoadRun::Retry(StreamCall& call) {
  RequestRecord record = std::move(call.record());
  const double pushback = record.pushback_ms.has_value()
                              ? static_cast<double>(*record.pushback_ms) * 1e-3
                              : record.retry_delay_seconds;
  ++record.retries;
  // Spread, or all that were refused together come back together.
  Random random(record.index, record.retries);
  const double delay = pushback * (1 + 0.25 * random.Uniform());
  At(clock_.Now() + delay, [this, plan = call.plan(), record]() mutable {
    // Cut in the meantime: what the last attempt said is the answer.
    is_cut_ ? EndRequest(record) : StartAttempt(plan, std::move(record));
  });
}

void LoadRun::EndRequest(RequestRecord& record) {
  --(record.is_probe ? open_probes_ : open_requests_);
  JudgeSilence(record);
  recorder_.AddRequest(record);
  hooks_.on_record(record);
}

// A stream that is cut is nobody's fault while it brings something; of one that was silent for all
// of the drain nobody knows that the server still works on it.
void LoadRun::JudgeSilence(RequestRecord& record) const {
  if (!has_drained_ || shape_.drain_seconds < kShortestDrainSeconds || !record.was_cut ||
      record.is_slow_reader || !record.defect.empty() ||
      record.code != grpc::StatusCode::CANCELLED || record.silence_seconds < shape_.drain_seconds)
    return;
  char text[100];
  std::snprintf(text, sizeof(text), "no message in the %.1f s before it was cut",
                record.silence_seconds);
  record.defect = text;
}

void LoadRun::CutAll() {
  is_cut_ = true;
  has_drained_ = !hooks_.is_interrupted();
  for (const auto& [pointer, call] : running_) call->Cut();
}

void LoadRun::Wait() {
  const double now = clock_.Now();
  double until = now + kLongestWaitSeconds;
  const bool is_full = shape_.concurrency.has_value() && open_requests_ >= *shape_.concurrency;
  if (!sends_are_over_ && !is_full) until = std::min(until, next_due_seconds_);
  if (!sends_are_over_ && now < EndSeconds()) until = std::min(until, EndSeconds());
  if (MayProbe(next_probe_seconds_)) until = std::min(until, next_probe_seconds_);
  absl::MutexLock lock(&mutex_);
  wake_seconds_ = until;
  if (!timers_.empty())
    wake_seconds_ = std::min(wake_seconds_, is_cut_ ? now : timers_.top().seconds);
  // A timer set meanwhile may be due earlier than what is waited for.
  const double waited_for = wake_seconds_;
  const auto has_news = [this, waited_for]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return !finished_.empty() || wake_seconds_ < waited_for;
  };
  mutex_.AwaitWithTimeout(absl::Condition(&has_news), absl::Seconds(wake_seconds_ - now));
}

}  // namespace bst::stress
