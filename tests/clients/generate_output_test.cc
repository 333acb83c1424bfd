#include "clients/cli/generate_output.h"

#include <gtest/gtest.h>

#include <string>

namespace bst::cli {
namespace {

v1::Tokens Tokens(uint32_t index, const std::string& text) {
  v1::Tokens tokens;
  tokens.set_sequence_index(index);
  tokens.set_text(text);
  for (const char c : text) tokens.add_token_ids(static_cast<unsigned char>(c));
  return tokens;
}

v1::SequenceFinished Ended(uint32_t index, v1::FinishReason reason) {
  v1::SequenceFinished ended;
  ended.set_sequence_index(index);
  ended.set_reason(reason);
  ended.set_generated_tokens(2);
  if (reason == v1::STOP_STRING) ended.set_stop_string("END");
  return ended;
}

class GenerateOutputTest : public testing::Test {
 protected:
  GenerateOutput Make(GenerateOutput::Format format, uint32_t num_sequences) {
    return {format, num_sequences, [this](std::string_view text) { written_ += text; }};
  }
  std::string written_;
};

TEST_F(GenerateOutputTest, OneContinuationIsWrittenAsItComes) {
  GenerateOutput output = Make(GenerateOutput::Format::kText, 1);
  output.Add(Tokens(0, "a"));
  EXPECT_EQ(written_, "a");
  output.Add(Tokens(0, "b"));
  output.Finish();
  EXPECT_EQ(written_, "ab");
}

TEST_F(GenerateOutputTest, SeveralAreWrittenInOrderEachWhenItIsComplete) {
  GenerateOutput output = Make(GenerateOutput::Format::kText, 3);
  output.Add(Tokens(0, "ze"));
  output.Add(Tokens(1, "one"));
  output.Add(Ended(1, v1::EOS));
  EXPECT_EQ(written_, "");
  output.Add(Tokens(0, "ro"));
  output.Add(Ended(0, v1::MAX_TOKENS));
  EXPECT_EQ(written_, "--- continuation 0: MAX_TOKENS\nzero\n--- continuation 1: EOS\none\n");
  written_.clear();
  output.Add(Tokens(2, "tw"));
  output.Finish();
  EXPECT_EQ(written_, "--- continuation 2: cut off\ntw\n");
}

TEST_F(GenerateOutputTest, JsonOfOneHasNoContinuations) {
  GenerateOutput output = Make(GenerateOutput::Format::kJson, 1);
  v1::Accepted accepted;
  accepted.set_request_id("name");
  accepted.set_seed((uint64_t{1} << 53) + 1);
  output.Add(accepted);
  output.Add(Tokens(0, "ab"));
  v1::Finished finished;
  finished.set_reason(v1::STOP_TOKEN);
  finished.set_stop_token_id(98);
  const Json json = output.ToJson(finished, {});
  EXPECT_EQ(json["request_id"], "name");
  EXPECT_EQ(json["seed"], "9007199254740993");
  EXPECT_EQ(json["stop_token_id"], 98);
  EXPECT_EQ(json["text"], "ab");
  EXPECT_EQ(json["token_ids"].dump(), "[97,98]");
  EXPECT_FALSE(json.contains("continuations"));
  EXPECT_FALSE(json.contains("logprobs"));
  EXPECT_EQ(written_, "");
}

TEST_F(GenerateOutputTest, JsonOfSeveralHasTheFirstOnTop) {
  GenerateOutput output = Make(GenerateOutput::Format::kJson, 2);
  output.Add(Tokens(1, "cd"));
  output.Add(Tokens(0, "ab"));
  output.Add(Ended(1, v1::STOP_STRING));
  v1::Finished finished;
  finished.set_reason(v1::EOS);
  *finished.add_sequences() = Ended(0, v1::EOS);
  finished.mutable_sequences(0)->set_stop_token_id(257);
  *finished.add_sequences() = Ended(1, v1::STOP_STRING);
  const Json json = output.ToJson(finished, {});
  EXPECT_EQ(json["text"], "ab");
  ASSERT_EQ(json["continuations"].size(), 2u);
  EXPECT_EQ(json["continuations"][0]["text"], "ab");
  EXPECT_EQ(json["continuations"][0]["stop_token_id"], 257);
  const Json& second = json["continuations"][1];
  EXPECT_EQ(second["sequence_index"], 1);
  EXPECT_EQ(second["text"], "cd");
  EXPECT_EQ(second["token_ids"].dump(), "[99,100]");
  EXPECT_EQ(second["finish_reason"], "STOP_STRING");
  EXPECT_EQ(second["stop_string"], "END");
  EXPECT_EQ(second["generated_tokens"], 2);
  EXPECT_EQ(written_, "");
}

}  // namespace
}  // namespace bst::cli
