// The bst-init program, run as a user runs it. BST_INIT is its path.
#include <stdio.h>
#include <sys/wait.h>

#include <string>

#include "engine/checkpoint/checkpoint.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/engine/checkpoint/checkpoint_files.h"
#include "tests/support/status_matchers.h"

namespace bst {
namespace {

using testing::HasSubstr;

struct Outcome {
  int exit_code = -1;
  std::string output;  // stdout and stderr
};

Outcome RunInit(const std::string& arguments) {
  Outcome outcome;
  FILE* pipe = ::popen((std::string("'" BST_INIT "' ") + arguments + " 2>&1").c_str(), "r");
  if (pipe == nullptr) return outcome;
  char chunk[4096];
  while (const size_t count = ::fread(chunk, 1, sizeof(chunk), pipe))
    outcome.output.append(chunk, count);
  const int status = ::pclose(pipe);
  outcome.exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  return outcome;
}

TEST(BstInitTest, WritesACheckpointThatLoads) {
  const TestDirectory directory;
  directory.Write("c.json", kSmallConfig);
  const Outcome outcome = RunInit("--config " + directory.File("c.json") + " --out " +
                                  directory.File("m") + " --seed 5");
  EXPECT_EQ(outcome.exit_code, 0) << outcome.output;
  EXPECT_THAT(outcome.output, HasSubstr("2 layers"));
  EXPECT_THAT(outcome.output, HasSubstr("BF16, seed 5"));
  EXPECT_THAT(Checkpoint::Open(directory.File("m")), IsOk());
}

TEST(BstInitTest, WritesEveryTypeOfLayer) {
  const TestDirectory directory;
  directory.Write("c.json", kFamilyConfig);
  for (const char* dtype : {"f32", "f16", "bf16"}) {
    const Outcome outcome = RunInit("--config " + directory.File("c.json") + " --out " +
                                    directory.File(dtype) + " --seed 5 --dtype " + dtype);
    EXPECT_EQ(outcome.exit_code, 0) << outcome.output;
    EXPECT_THAT(outcome.output, HasSubstr("8 layers"));
    EXPECT_THAT(Checkpoint::Open(directory.File(dtype)), IsOk()) << dtype;
  }
}

TEST(BstInitTest, WritesEveryGoldenConfiguration) {
  const TestDirectory directory;
  for (const char* name : {"transformer", "bst_single_head_s4d", "bst_multi_head_s4",
                           "bst_multi_filter_dss", "bst_s5", "bst_explicit", "brect", "hybrid"}) {
    const Outcome outcome = RunInit(std::string("--config tests/golden/") + name +
                                    "/config.json --seed 5 --out " + directory.File(name));
    EXPECT_EQ(outcome.exit_code, 0) << name << "\n" << outcome.output;
  }
}

TEST(BstInitTest, SaysThatATokenizerIsMissing) {
  const TestDirectory directory;
  nlohmann::json config = nlohmann::json::parse(kSmallConfig);
  config["tokenizer"] = {{"type", "sentencepiece"}, {"file", "spm.model"}};
  directory.Write("c.json", config.dump());
  directory.Write("trained", "pieces");
  const std::string arguments = "--config " + directory.File("c.json") + " --out " +
                                directory.File("m") + " --seed 5 --dtype f32";
  Outcome outcome = RunInit(arguments);
  EXPECT_EQ(outcome.exit_code, 0) << outcome.output;
  EXPECT_THAT(outcome.output, HasSubstr("put it at " + directory.File("m/spm.model")));
  outcome = RunInit(arguments + " --tokenizer " + directory.File("trained"));
  EXPECT_EQ(outcome.exit_code, 0) << outcome.output;
  EXPECT_THAT(outcome.output, testing::Not(HasSubstr("put it at")));
  EXPECT_EQ(directory.Read("m/spm.model"), "pieces");
}

TEST(BstInitTest, HelpTeaches) {
  const Outcome outcome = RunInit("--help");
  EXPECT_EQ(outcome.exit_code, 0);
  for (const char* text : {"--config", "--out", "--seed", "--dtype", "--tokenizer", "brect",
                           "explicit filters", "Example:", "Exit code:"}) {
    EXPECT_THAT(outcome.output, HasSubstr(text));
  }
}

TEST(BstInitTest, WrongUsageIsExitCode2) {
  for (const char* arguments : {"", "--config c --out m", "--config c --seed 1", "--out m --seed 1",
                                "--config c --out m --seed x", "--config c --out m --seed -1",
                                "--config c --out m --seed 18446744073709551616",
                                "--config c --out m --seed 1 --dtype int8",
                                "--config c --out m --seed 1 --unknown", "stray"}) {
    const Outcome outcome = RunInit(arguments);
    EXPECT_EQ(outcome.exit_code, 2) << arguments << "\n" << outcome.output;
    EXPECT_FALSE(outcome.output.empty()) << arguments;
  }
}

TEST(BstInitTest, FailureIsExitCode1) {
  const TestDirectory directory;
  Outcome outcome =
      RunInit("--config " + directory.File("none") + " --out " + directory.File("m") + " --seed 1");
  EXPECT_EQ(outcome.exit_code, 1);
  EXPECT_THAT(outcome.output, HasSubstr("none: No such file"));
  directory.Write("c.json", "{}");
  outcome = RunInit("--config " + directory.File("c.json") + " --out " + directory.File("m") +
                    " --seed 1");
  EXPECT_EQ(outcome.exit_code, 1);
  EXPECT_THAT(outcome.output, HasSubstr("missing key `model_type`"));
}

}  // namespace
}  // namespace bst
