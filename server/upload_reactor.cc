#include "server/upload_reactor.h"

#include <grpcpp/alarm.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <utility>
#include <variant>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "server/generate_stream.h"
#include "server/wire_message.h"

namespace bst {
namespace {

using UploadStream = GenerateStream<grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>>;

absl::Status InvalidPart(const char* description) { return InvalidFields({{"part", description}}); }

class UploadReactor final : public UploadStream, public AwaitsRequest {
 public:
  UploadReactor(Frontend& frontend, grpc::CallbackServerContext& context)
      : UploadStream(frontend, context, "GenerateUpload"), held_text_(frontend.held_text()) {}

  void Start(std::shared_ptr<UploadReactor> self) {
    OwnItself(self);
    frontend().active().AddAwaiting(self);  // before the look at whether the engine drains
    const absl::StatusOr<const ServedModel*> model = frontend().AdmitToQueue(context());
    if (!model.ok()) return GiveUp(model.status());  // before anything of it is read
    model_ = *model;
    SetTimer(self, frontend().config().engine.upload_timeout);
    ReadNext();
  }

  void GiveUp(const absl::Status& why) override {
    if (EndAwaiting()) Reject(why);
  }

  void OnReadDone(bool ok) override {
    // A client that leaves looks like the end of its parts. What has begun OnCancel ends.
    if (!ok && context().IsCancelled()) return GiveUp(LeftBefore("the first part"));
    const bool is_first = !prompt_.has_value();
    if (is_first && !EndAwaiting()) return;    // given up
    if (!HoldFinish()) return ForgetPrompt();  // it has ended
    const size_t held_bytes = is_first ? 0 : static_cast<size_t>(prompt_->held_bytes());
    const absl::Status may_read =
        is_first ? frontend().CheckReaders(bytes_.Length()) : absl::OkStatus();
    if (!may_read.ok()) {
      Reject(may_read);
      return ReleaseFinish();
    }
    // A large part, or the end, may wait to be read for as long as the engine still waits for a
    // sign of life. Crumbs are none.
    const size_t came = ok ? bytes_.Length() : held_bytes;
    if (!is_first && came > MessageReaders::kSmallBytes) SayThatItGoesOn();
    frontend().readers().Read(
        bytes_.Length() + held_bytes, [this, self = shared_from_this(), ok] { ReadPart(ok); },
        is_first ? MessageReaders::Order::kNew : MessageReaders::Order::kBegun);
  }

  void OnDone() override {
    held_text_.Release();  // now: the timer may keep this for longer than the frontend lives
    UploadStream::OnDone();
  }

  void Advance() override {
    const auto self = shared_from_this();  // it may finish
    UploadStream::Advance();
    if (MayGoOn()) ReadNext();
  }

 private:
  // Gives the call up if its first part has not come within `timeout`: nobody else would look after
  // it, since the engine does not know of it yet.
  void SetTimer(std::weak_ptr<UploadReactor> self, absl::Duration timeout)
      ABSL_LOCKS_EXCLUDED(write_mutex_) {
    absl::MutexLock lock(&write_mutex_);
    if (!awaits_first_) return;
    first_timer_.Set(
        absl::ToChronoTime(absl::Now() + timeout), [self = std::move(self), timeout](bool fired) {
          const std::shared_ptr<UploadReactor> call = fired ? self.lock() : nullptr;
          if (call == nullptr) return;
          call->GiveUp(absl::DeadlineExceededError(
              absl::StrCat("the first part did not come within ", absl::FormatDuration(timeout))));
        });
  }
  // The first part has come, or is waited for no longer. True: for the caller to act on, who is the
  // first to say so.
  bool EndAwaiting() ABSL_LOCKS_EXCLUDED(write_mutex_) {
    {
      absl::MutexLock lock(&write_mutex_);
      if (!awaits_first_) return false;
      awaits_first_ = false;
      first_timer_.Cancel();
    }
    frontend().active().RemoveAwaiting(*this);
    return true;
  }

  absl::StatusOr<v1::GenerateUploadPart> Parse() const {
    return ParseMessage<v1::GenerateUploadPart>(bytes_, "part");
  }

  // What a read brought, while Finish is held.
  void ReadPart(bool ok) {
    // Not ok is the end of the parts. (Or of a part that the client cut short and ended its stream
    // behind, as if it were whole: gRPC does not tell the two apart.)
    const bool goes_on = !prompt_.has_value() ? ReadFirst(ok)
                         : HasEnded()         ? false  // while this waited
                         : ok                 ? ReadMore()
                                              : ReadEnd();
    bytes_.Clear();  // the next ones may have to wait for long
    if (!goes_on || !HoldsLittleText()) {
      ForgetPrompt();
    } else if (!MustWait()) {
      ReadNext();
    }
    ReleaseFinish();
  }

  // Whether a long part is still to be read on. A client that left did so before we refuse
  // anything, though OnCancel may come later.
  absl::Status CheckPart() {
    if (HasEnded()) return absl::CancelledError("the request has ended");
    absl::Status wanted = CheckWanted();
    if (!wanted.ok()) Cancel(CauseOfCancellation());
    return wanted;
  }

  // The parts of the prompt, one at a time. True: the next one may come.
  bool ReadFirst(bool ok) {
    const absl::Status admitted = CheckBeforeReading();
    if (!admitted.ok()) return Rejected(admitted);
    if (!ok) return Rejected(InvalidPart("is missing, the first must be request"));
    const absl::StatusOr<v1::GenerateUploadPart> part = Parse();
    if (!part.ok()) return Rejected(part.status());
    if (!part->has_request()) return Rejected(InvalidPart("is not request, the first must be"));
    prompt_.emplace(model_->engine->info(), *model_->tokenizer, [this] { return CheckPart(); });
    return Begin(*model_, part->request(), *prompt_, PromptEnd::kMoreFollows);
  }
  bool ReadMore() {
    const absl::StatusOr<v1::GenerateUploadPart> part = Parse();
    if (!part.ok()) return Refused(part.status());
    if (part->has_request()) return Refused(InvalidPart("is request, which only the first may be"));
    if (part->part_case() == v1::GenerateUploadPart::PART_NOT_SET) {
      return Refused(InvalidPart("is not set, must be text or token_ids"));
    }
    Violations violations;
    std::vector<TokenId> tokens = prompt_->Add(*part, PromptEnd::kMoreFollows, violations);
    if (!violations.empty()) return Refused(violations.status());
    unsaid_bytes_ += static_cast<int64_t>(part->text().size());
    return Append(std::move(tokens), PromptEnd::kMoreFollows);
  }
  bool ReadEnd() {
    Violations violations;
    std::vector<TokenId> tokens = prompt_->Finish(violations);
    held_text_.Release();
    if (!violations.empty()) return Refused(violations.status());
    Append(std::move(tokens), PromptEnd::kComplete);
    return false;
  }

  // Hands over what is tokens by now, and says so when as much as a block came that is not yet: for
  // the engine a sign of life, which keeps a request that has started from its timeout.
  bool Append(std::vector<TokenId> tokens, PromptEnd end) {
    const bool goes_on = end == PromptEnd::kMoreFollows, is_text_alone = tokens.empty() && goes_on;
    if (!is_text_alone && !HandOver(std::move(tokens), end)) return false;
    unsaid_bytes_ = std::min(unsaid_bytes_, prompt_->held_bytes());  // the others are tokens now
    // While it waits any part is a sign.
    const bool is_sign =
        HasStarted() ? unsaid_bytes_ >= model_->engine->info().window : is_text_alone;
    if (!goes_on || !is_sign) return true;
    unsaid_bytes_ = 0;
    return SayThatItGoesOn();
  }
  bool SayThatItGoesOn() { return HandOver({}, PromptEnd::kMoreFollows); }
  bool HandOver(std::vector<TokenId> tokens, PromptEnd end) {
    {
      absl::MutexLock lock(&write_mutex_);
      output_->AddPrompt(tokens, end);
    }
    const absl::Status status = AppendPrompt(std::move(tokens), end);
    if (absl::IsNotFound(status)) return false;  // it has ended; its FinishedEvent says why
    return status.ok() || Refused(status);
  }

  bool HasStarted() ABSL_LOCKS_EXCLUDED(write_mutex_) {
    absl::MutexLock lock(&write_mutex_);
    return processed_tokens_ > 0;
  }

  bool Rejected(const absl::Status& status) {
    Reject(status);
    return false;
  }
  bool Refused(const absl::Status& status) {
    if (Refuse(status)) frontend().CountRejected(status);
    return false;
  }

  // Nothing more of it is read.
  void ForgetPrompt() {
    prompt_.reset();
    held_text_.Release();
  }

  void ReadNext() {
    if (!HoldFinish()) return;
    StartRead(&bytes_);
    ReleaseFinish();
  }

  bool HoldsLittleText() {
    const absl::Status status = held_text_.Hold(prompt_->held_bytes());
    return status.ok() || Refused(status);
  }

  // Whether the next part has to wait for the engine: then MayGoOn is true later, once.
  //
  // Nobody waits here for another upload, which may wait for him: what is unread, a block at the
  // least, will be read when its turn comes. In a queue that is filling that block is all it takes.
  bool MustWait() ABSL_LOCKS_EXCLUDED(write_mutex_) {
    const bool queue_is_filling = frontend().QueueIsFilling();
    absl::MutexLock lock(&write_mutex_);
    came_tokens_ = prompt_->num_tokens();
    const bool has_started = processed_tokens_ > 0;
    const int64_t limit =
        queue_is_filling && !has_started ? model_->engine->info().window : kMaxUnreadTokens;
    waits_ = came_tokens_ - processed_tokens_ > limit;
    return waits_;
  }
  bool MayGoOn() ABSL_LOCKS_EXCLUDED(write_mutex_) {
    absl::MutexLock lock(&write_mutex_);
    const bool has_started = processed_tokens_ > 0;
    if (!waits_ || !has_started || came_tokens_ - processed_tokens_ > kMaxUnreadTokens) {
      return false;
    }
    waits_ = false;
    return true;
  }

  void Handle(SequenceEvent event) override ABSL_EXCLUSIVE_LOCKS_REQUIRED(write_mutex_) {
    if (const auto* progress = std::get_if<PrefillProgressEvent>(&event)) {
      processed_tokens_ = progress->processed_tokens;
    }
    UploadStream::Handle(std::move(event));
  }

  const ServedModel* model_ = nullptr;  // constant after Start
  grpc::ByteBuffer bytes_;              // of the part being read
  std::optional<PromptReader> prompt_;  // after the first part; used by one read at a time
  HeldText::Share held_text_;           // of prompt_
  // Of text that is no tokens yet, what came since the last sign of life; used as prompt_ is.
  int64_t unsaid_bytes_ = 0;

  bool awaits_first_ ABSL_GUARDED_BY(write_mutex_) = true;
  grpc::Alarm first_timer_ ABSL_GUARDED_BY(write_mutex_);
  int64_t processed_tokens_ ABSL_GUARDED_BY(write_mutex_) = 0;
  int64_t came_tokens_ ABSL_GUARDED_BY(write_mutex_) = 0;  // when the last part had come
  bool waits_ ABSL_GUARDED_BY(write_mutex_) = false;
};

}  // namespace

grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* StartGenerateUpload(
    Frontend& frontend, grpc::CallbackServerContext& context) {
  auto reactor = std::make_shared<UploadReactor>(frontend, context);
  reactor->Start(reactor);
  return reactor.get();
}

}  // namespace bst
