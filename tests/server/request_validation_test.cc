#include "server/request_validation.h"

#include <gmock/gmock.h>
#include <google/protobuf/text_format.h>
#include <gtest/gtest.h>

#include <limits>
#include <memory>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "absl/strings/str_cat.h"
#include "google/rpc/error_details.pb.h"
#include "server/grpc_status.h"
#include "tests/support/puppet_engine.h"

namespace bst {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

constexpr char kBadRequestType[] = "type.googleapis.com/google.rpc.BadRequest";

std::set<std::string> FieldsOf(const absl::Status& status) {
  google::rpc::BadRequest details;
  const absl::optional<absl::Cord> payload = status.GetPayload(kBadRequestType);
  if (payload.has_value()) details.ParseFromString(std::string(*payload));
  std::set<std::string> fields;
  for (const auto& violation : details.field_violations()) fields.insert(violation.field());
  return fields;
}

absl::StatusOr<ValidGenerate> ValidateGenerate(const v1::GenerateRequest& proto,
                                               const ModelInfo& info, const Tokenizer& tokenizer) {
  PromptReader prompt(info, tokenizer);
  return ValidateGenerate(proto, info, prompt, PromptEnd::kComplete);
}

class RequestValidationTest : public testing::Test {
 protected:
  absl::StatusOr<ValidGenerate> Validate(const v1::GenerateRequest& proto) {
    return ValidateGenerate(proto, info_, *tokenizer_);
  }
  // A valid request with the fields of `text` (protobuf text format).
  static v1::GenerateRequest Parse(const std::string& text) {
    v1::GenerateRequest proto;
    EXPECT_TRUE(google::protobuf::TextFormat::ParseFromString(text, &proto)) << text;
    if (proto.prompt_case() == v1::GenerateRequest::PROMPT_NOT_SET) proto.set_text("hi");
    return proto;
  }

  ModelInfo info_ = PuppetModelInfo();
  std::unique_ptr<Tokenizer> tokenizer_ = Tokenizer::Byte(259);
};

struct Case {
  const char* field;                   // the one that is named
  std::vector<const char*> good, bad;  // protobuf text
};

// Each field at its bounds and just beyond them.
const std::vector<Case>& Cases() {
  static const std::vector<Case> cases = {
      {"sampling.temperature",
       {"sampling { temperature: 0 }", "sampling { temperature: 100 }"},
       {"sampling { temperature: -0.001 }", "sampling { temperature: 100.1 }",
        "sampling { temperature: nan }", "sampling { temperature: inf }"}},
      {"sampling.top_k",
       {"sampling { top_k: -1 }", "sampling { top_k: 0 }", "sampling { top_k: 2147483647 }"},
       {"sampling { top_k: -2 }"}},
      {"sampling.top_p",
       {"sampling { top_p: 1e-30 }", "sampling { top_p: 1 }"},
       {"sampling { top_p: 0 }", "sampling { top_p: 1.001 }", "sampling { top_p: nan }"}},
      {"sampling.min_p",
       {"sampling { min_p: 0 }", "sampling { min_p: 1 }"},
       {"sampling { min_p: -0.001 }", "sampling { min_p: 1.001 }", "sampling { min_p: nan }"}},
      {"sampling.typical_p",
       {"sampling { typical_p: 1e-30 }", "sampling { typical_p: 1 }"},
       {"sampling { typical_p: 0 }", "sampling { typical_p: 1.001 }",
        "sampling { typical_p: nan }"}},
      {"sampling.repetition_penalty",
       {"sampling { repetition_penalty: 0.001 }", "sampling { repetition_penalty: 10 }"},
       {"sampling { repetition_penalty: 0 }", "sampling { repetition_penalty: 10.01 }"}},
      {"sampling.presence_penalty",
       {"sampling { presence_penalty: -2 }", "sampling { presence_penalty: 2 }"},
       {"sampling { presence_penalty: -2.001 }", "sampling { presence_penalty: 2.001 }"}},
      {"sampling.frequency_penalty",
       {"sampling { frequency_penalty: -2 }", "sampling { frequency_penalty: 2 }"},
       {"sampling { frequency_penalty: -2.001 }", "sampling { frequency_penalty: 2.001 }"}},
      {"sampling.logit_bias[7]",
       {"sampling { logit_bias { key: 7 value: -100 } }",
        "sampling { logit_bias { key: 7 value: 100 } }",
        "sampling { logit_bias { key: 7 value: -inf } }"},
       {"sampling { logit_bias { key: 7 value: 100.1 } }",
        "sampling { logit_bias { key: 7 value: inf } }",
        "sampling { logit_bias { key: 7 value: nan } }"}},
      {"sampling.logit_bias[259]",
       {"sampling { logit_bias { key: 258 value: 1 } }"},
       {"sampling { logit_bias { key: 259 value: 1 } }"}},
      {"sampling.num_sequences",
       {"sampling { num_sequences: 1 }", "sampling { num_sequences: 4 }"},
       {"sampling { num_sequences: 0 }", "sampling { num_sequences: 5 }"}},
      {"priority",
       {"priority: PRIORITY_UNSPECIFIED", "priority: LOW", "priority: NORMAL", "priority: HIGH"},
       {"priority: 4", "priority: -1"}},
      {"stopping.max_new_tokens",
       {"stopping { max_new_tokens: 1 }", "stopping { max_new_tokens: 1000000 }"},
       {"stopping { max_new_tokens: 0 }", "stopping { max_new_tokens: 1000001 }",
        "stopping { max_new_tokens: 4294967295 }"}},
      {"stopping.min_new_tokens",
       {"stopping { min_new_tokens: 0 }", "stopping { max_new_tokens: 5 min_new_tokens: 5 }"},
       {"stopping { max_new_tokens: 5 min_new_tokens: 6 }", "stopping { min_new_tokens: 257 }"}},
      {"stopping.stop_strings[0]",
       {"stopping { stop_strings: 'x' }"},
       {"stopping { stop_strings: '' }"}},
      {"stopping.stop_token_ids[1]",
       {"stopping { stop_token_ids: [0, 258] }"},
       {"stopping { stop_token_ids: [0, 259] }"}},
      {"output.top_logprobs",
       {"output { top_logprobs: 0 }", "output { top_logprobs: 20 }"},
       {"output { top_logprobs: 21 }"}},
      {"queue_timeout_ms",
       {"queue_timeout_ms: 1", "queue_timeout_ms: 86400000"},
       {"queue_timeout_ms: 0", "queue_timeout_ms: 86400001"}},
      {"time_limit_ms",
       {"time_limit_ms: 1", "time_limit_ms: 86400000"},
       {"time_limit_ms: 0", "time_limit_ms: 86400001"}},
      {"request_id",
       {"request_id: 'a'", "request_id: 'A-Z_0.9:~!'"},
       {"request_id: ''", "request_id: 'a b'", "request_id: 'a\\n'", "request_id: 'ä'"}},
      {"prompt", {"text: 'x'"}, {}},
      {"text", {"text: 'x'"}, {"text: ''"}},
      {"token_ids.ids", {"token_ids { ids: 0 }"}, {"token_ids {}"}},
      {"token_ids.ids[1]", {"token_ids { ids: [0, 258] }"}, {"token_ids { ids: [0, 259] }"}},
  };
  return cases;
}

TEST_F(RequestValidationTest, FieldsAtTheirBoundsAreTaken) {
  for (const Case& test : Cases()) {
    for (const char* const good : test.good) {
      const auto valid = Validate(Parse(good));
      EXPECT_TRUE(valid.ok()) << good << ": " << valid.status();
    }
  }
}

TEST_F(RequestValidationTest, FieldsBeyondTheirBoundsAreNamed) {
  for (const Case& test : Cases()) {
    for (const char* const bad : test.bad) {
      const absl::Status status = Validate(Parse(bad)).status();
      EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << bad;
      EXPECT_THAT(FieldsOf(status), ElementsAre(test.field)) << bad;
    }
  }
}

TEST_F(RequestValidationTest, NoPromptAtAll) {
  const absl::Status status = Validate(v1::GenerateRequest()).status();
  EXPECT_THAT(FieldsOf(status), ElementsAre("prompt"));
}

TEST_F(RequestValidationTest, MessagesHoldTheValueAndTheLimit) {
  EXPECT_THAT(std::string(Validate(Parse("sampling { top_p: 1.5 }")).status().message()),
              HasSubstr("sampling.top_p is 1.5, must be in (0, 1]"));
  info_.max_prompt_tokens = 2;
  const absl::Status status = Validate(Parse("token_ids { ids: [1, 2, 3] }")).status();
  EXPECT_THAT(std::string(status.message()), HasSubstr("token_ids.ids has 3 tokens, limit 2"));
  EXPECT_TRUE(IsTooLong(status));
  EXPECT_FALSE(IsTooLong(Validate(Parse("token_ids {}")).status()));
}

TEST_F(RequestValidationTest, APromptAtTheLimitIsTakenWithItsBos) {
  info_.max_prompt_tokens = 3;
  EXPECT_TRUE(Validate(Parse("text: 'ab'")).ok());
  EXPECT_TRUE(IsTooLong(Validate(Parse("text: 'abc'")).status()));
  EXPECT_TRUE(Validate(Parse("token_ids { ids: [1, 2, 3] }")).ok());
}

// A tokenizer with pieces of up to 3 bytes, which counts what it is asked to encode.
class CountingTokenizer final : public Tokenizer {
 public:
  absl::StatusOr<std::vector<TokenId>> Encode(std::string_view text) const override {
    ++encoded;
    return std::vector<TokenId>((text.size() + 2) / 3, TokenId(1));
  }
  std::optional<Cut> LastCut(std::string_view, size_t) const override { return std::nullopt; }
  std::string TokenBytes(TokenId, bool) const override { return "abc"; }
  int vocab_size() const override { return 259; }
  int max_token_bytes() const override { return 3; }

  mutable int encoded = 0;
};

TEST_F(RequestValidationTest, TextThatCannotFitIsRefusedBeforeItIsTokenised) {
  const CountingTokenizer counting;
  info_.bos.clear();
  info_.max_prompt_tokens = 4;
  const std::string longest(12, 'x'), longer(13, 'x');
  v1::GenerateRequest generate;
  v1::ScoreRequest score;
  generate.set_text(longest);
  score.set_text(longest);
  EXPECT_TRUE(ValidateGenerate(generate, info_, counting).ok());
  EXPECT_TRUE(ValidateScore(score, info_, counting).ok());
  EXPECT_TRUE(EncodeText(longest, info_, counting).ok());
  EXPECT_EQ(counting.encoded, 3);

  generate.set_text(longer);
  score.set_text(longer);
  for (const absl::Status& status : {ValidateGenerate(generate, info_, counting).status(),
                                     ValidateScore(score, info_, counting).status(),
                                     EncodeText(longer, info_, counting).status()}) {
    EXPECT_TRUE(IsTooLong(status)) << status;
    EXPECT_THAT(FieldsOf(status), ElementsAre("text"));
    EXPECT_THAT(std::string(status.message()),
                HasSubstr("has 13 bytes, at least 5 tokens, limit 4"));
  }
  EXPECT_EQ(counting.encoded, 3);
}

TEST_F(RequestValidationTest, ManyMistakesAreCountedPastTheFirst) {
  v1::GenerateRequest proto = Parse("");
  for (uint32_t id = 0; id < 250; ++id)
    (*proto.mutable_sampling()->mutable_logit_bias())[id] = 1000;
  const absl::Status status = Validate(proto).status();
  EXPECT_EQ(FieldsOf(status).size(), 8u);
  EXPECT_THAT(std::string(status.message()), HasSubstr("; and 242 more"));
}

TEST_F(RequestValidationTest, MoreBiasesThanTokensAreRefusedAsOne) {
  v1::GenerateRequest proto = Parse("");
  for (uint32_t id = 0; id < 260; ++id) (*proto.mutable_sampling()->mutable_logit_bias())[id] = 1;
  EXPECT_THAT(FieldsOf(Validate(proto).status()), ElementsAre("sampling.logit_bias"));
}

TEST_F(RequestValidationTest, SomethingMustBeLeftToDrawBeforeMinNewTokens) {
  v1::GenerateRequest banned = Parse("stopping { min_new_tokens: 1 }");
  for (uint32_t id = 0; id < 257; ++id) {
    (*banned.mutable_sampling()->mutable_logit_bias())[id] =
        -std::numeric_limits<float>::infinity();
  }
  EXPECT_TRUE(Validate(banned).ok());                  // one is left beside eos
  banned.mutable_stopping()->add_stop_token_ids(257);  // eos, which is banned already
  EXPECT_TRUE(Validate(banned).ok());
  banned.mutable_stopping()->add_stop_token_ids(258);
  EXPECT_THAT(FieldsOf(Validate(banned).status()), ElementsAre("sampling.logit_bias"));

  info_.vocab_size = 4;
  info_.bos.clear();
  EXPECT_TRUE(
      Validate(Parse("token_ids { ids: 1 } stopping { stop_token_ids: [0, 1, 2, 3] }")).ok());
  EXPECT_THAT(FieldsOf(Validate(Parse("token_ids { ids: 1 } stopping { min_new_tokens: 1 "
                                      "stop_token_ids: [0, 1, 2, 3] }"))
                           .status()),
              ElementsAre("stopping.stop_token_ids"));
}

TEST_F(RequestValidationTest, AllMistakesAreReportedTogether) {
  const absl::Status status = Validate(Parse("sampling { temperature: -1 top_p: 2 } stopping { "
                                             "max_new_tokens: 0 } time_limit_ms: 0"))
                                  .status();
  EXPECT_THAT(FieldsOf(status), ElementsAre("sampling.temperature", "sampling.top_p",
                                            "stopping.max_new_tokens", "time_limit_ms"));
}

TEST_F(RequestValidationTest, CountsOfRepeatedFields) {
  v1::GenerateRequest proto = Parse("");
  for (int i = 0; i < kMaxStopStrings; ++i)
    proto.mutable_stopping()->add_stop_strings(std::string(kMaxStopStringBytes, 'x'));
  for (int i = 0; i < kMaxStopTokenIds; ++i) proto.mutable_stopping()->add_stop_token_ids(7);
  proto.set_request_id(std::string(kMaxRequestIdBytes, 'r'));
  EXPECT_TRUE(Validate(proto).ok());
  proto.mutable_stopping()->add_stop_strings("y");
  proto.mutable_stopping()->add_stop_token_ids(7);
  proto.mutable_request_id()->push_back('r');
  EXPECT_THAT(FieldsOf(Validate(proto).status()),
              ElementsAre("request_id", "stopping.stop_strings", "stopping.stop_token_ids"));
  v1::GenerateRequest long_string = Parse("");
  long_string.mutable_stopping()->add_stop_strings(std::string(kMaxStopStringBytes + 1, 'x'));
  EXPECT_THAT(FieldsOf(Validate(long_string).status()), ElementsAre("stopping.stop_strings[0]"));
}

TEST_F(RequestValidationTest, BanningTheWholeVocabularyIsRefused) {
  v1::GenerateRequest proto = Parse("");
  for (uint32_t id = 0; id < 258; ++id) {
    (*proto.mutable_sampling()->mutable_logit_bias())[id] = -std::numeric_limits<float>::infinity();
  }
  EXPECT_TRUE(Validate(proto).ok());
  (*proto.mutable_sampling()->mutable_logit_bias())[258] = -std::numeric_limits<float>::infinity();
  EXPECT_THAT(FieldsOf(Validate(proto).status()), ElementsAre("sampling.logit_bias"));
}

TEST_F(RequestValidationTest, TextGetsTheBosAndTokenIdsDoNot) {
  EXPECT_THAT(Validate(Parse("text: 'ab'"))->request.prompt,
              ElementsAre(TokenId(256), TokenId('a'), TokenId('b')));
  EXPECT_THAT(Validate(Parse("token_ids { ids: 97 }"))->request.prompt, ElementsAre(TokenId('a')));
  info_.bos.clear();
  EXPECT_THAT(Validate(Parse("text: 'ab'"))->request.prompt,
              ElementsAre(TokenId('a'), TokenId('b')));
}

TEST_F(RequestValidationTest, RequestBeatsModelDefaultsBeatBuiltIn) {
  info_.default_sampling.temperature = 0.7f;
  info_.default_sampling.top_k = 40;
  info_.default_max_new_tokens = 33;
  const auto unset = Validate(Parse(""));
  ASSERT_TRUE(unset.ok());
  EXPECT_EQ(unset->request.sampling.temperature, 0.7f);
  EXPECT_EQ(unset->request.sampling.top_k, 40);
  EXPECT_EQ(unset->request.sampling.top_p, 1.0f);
  EXPECT_EQ(unset->request.stopping.max_new_tokens, 33);
  const auto set =
      Validate(Parse("sampling { temperature: 0 top_k: 0 } stopping { max_new_tokens: 5 }"));
  EXPECT_EQ(set->request.sampling.temperature, 0.0f);
  EXPECT_EQ(set->request.sampling.top_k, 0);
  EXPECT_EQ(set->request.stopping.max_new_tokens, 5);
}

TEST_F(RequestValidationTest, UnsetSeedAndIdAreDrawnAnewAndSetOnesKept) {
  const auto first = Validate(Parse("")), second = Validate(Parse(""));
  EXPECT_NE(first->request.sampling.seed, second->request.sampling.seed);
  EXPECT_NE(first->request.request_id, second->request.request_id);
  EXPECT_EQ(first->request.request_id.size(), 32u);
  const auto set = Validate(Parse("request_id: 'mine' sampling { seed: 18446744073709551615 }"));
  EXPECT_EQ(set->request.sampling.seed, std::numeric_limits<uint64_t>::max());
  EXPECT_EQ(set->request.request_id, "mine");
}

TEST_F(RequestValidationTest, OutputOptions) {
  const auto plain = Validate(Parse(""));
  EXPECT_FALSE(plain->output.logprobs);
  EXPECT_FALSE(plain->output.echo);
  EXPECT_TRUE(plain->request.prompt_progress);
  EXPECT_EQ(plain->request.queue_timeout, absl::InfiniteDuration());
  EXPECT_EQ(plain->request.time_limit, absl::InfiniteDuration());
  const auto rich =
      Validate(Parse("output { top_logprobs: 3 echo: true prompt_progress: false } "
                     "queue_timeout_ms: 7 time_limit_ms: 9 "
                     "stopping { stop_strings: ['a', 'b'] include_stop_string: true ignore_eos: "
                     "true stop_token_ids: 5 min_new_tokens: 2 }"));
  EXPECT_TRUE(rich->output.logprobs);
  EXPECT_TRUE(rich->output.echo);
  EXPECT_FALSE(rich->request.prompt_progress);
  EXPECT_EQ(rich->request.top_logprobs, 3);
  EXPECT_EQ(rich->request.queue_timeout, absl::Milliseconds(7));
  EXPECT_EQ(rich->request.time_limit, absl::Milliseconds(9));
  EXPECT_THAT(rich->output.stop.strings, ElementsAre("a", "b"));
  EXPECT_TRUE(rich->output.stop.include);
  EXPECT_TRUE(rich->request.stopping.ignore_eos);
  EXPECT_THAT(rich->request.stopping.stop_token_ids, ElementsAre(TokenId(5)));
  EXPECT_EQ(rich->request.stopping.min_new_tokens, 2);
  EXPECT_TRUE(Validate(Parse("output { logprobs: true }"))->output.logprobs);
}

TEST_F(RequestValidationTest, ScoreRequests) {
  v1::ScoreRequest proto;
  EXPECT_THAT(FieldsOf(ValidateScore(proto, info_, *tokenizer_).status()), ElementsAre("prompt"));
  proto.set_text("a");
  proto.set_top_logprobs(20);
  const auto valid = ValidateScore(proto, info_, *tokenizer_);
  ASSERT_TRUE(valid.ok());
  EXPECT_THAT(valid->tokens, ElementsAre(TokenId(256), TokenId('a')));
  EXPECT_EQ(valid->top_logprobs, 20);
  proto.set_top_logprobs(21);
  EXPECT_THAT(FieldsOf(ValidateScore(proto, info_, *tokenizer_).status()),
              ElementsAre("top_logprobs"));
  info_.max_prompt_tokens = 1;
  EXPECT_TRUE(IsTooLong(ValidateScore(proto, info_, *tokenizer_).status()));
}

TEST_F(RequestValidationTest, TokenIdLists) {
  v1::DetokenizeRequest proto;
  proto.add_token_ids(258);
  EXPECT_THAT(*ValidateTokenIds(proto.token_ids(), info_), ElementsAre(TokenId(258)));
  proto.add_token_ids(259);
  EXPECT_THAT(FieldsOf(ValidateTokenIds(proto.token_ids(), info_).status()),
              ElementsAre("token_ids[1]"));
  info_.max_prompt_tokens = 1;
  EXPECT_TRUE(IsTooLong(ValidateTokenIds(proto.token_ids(), info_).status()));
}

}  // namespace
}  // namespace bst
