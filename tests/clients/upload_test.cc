#include "clients/cli/upload.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "clients/cli/prompt.h"

namespace bst::cli {
namespace {

std::vector<v1::GenerateUploadPart> Parts(const v1::GenerateRequest& request, uint64_t limit) {
  std::vector<v1::GenerateUploadPart> parts;
  ForEachPart(request, limit, [&](const v1::GenerateUploadPart& part) {
    EXPECT_LE(part.ByteSizeLong(), limit);
    parts.push_back(part);
    return true;
  });
  return parts;
}

TEST(ForEachPart, ATextIsCutBetweenCharacters) {
  v1::GenerateRequest request;
  request.mutable_sampling()->set_seed(7);
  std::string text;
  for (int i = 0; i < 3000; ++i) text += i % 3 == 0 ? "a" : i % 3 == 1 ? "\u20ac" : "\U0001D11E";
  request.set_text(text);
  for (const uint64_t limit : {uint64_t{1024}, uint64_t{1027}, uint64_t{5000}, uint64_t{1} << 26}) {
    const std::vector<v1::GenerateUploadPart> parts = Parts(request, limit);
    EXPECT_EQ(parts.front().request().sampling().seed(), 7u);
    EXPECT_FALSE(parts.front().request().has_text());
    std::string joined;
    for (size_t i = 1; i < parts.size(); ++i) {
      EXPECT_TRUE(IsUtf8(parts[i].text()));
      joined += parts[i].text();
    }
    EXPECT_EQ(joined, text);
    EXPECT_EQ(parts.size() == 2, limit > text.size());
  }
}

TEST(ForEachPart, IdsStayInOrder) {
  v1::GenerateRequest request;
  for (uint32_t i = 0; i < 10'000; ++i) request.mutable_token_ids()->add_ids(i * 400'000u);
  std::vector<uint32_t> joined;
  const std::vector<v1::GenerateUploadPart> parts = Parts(request, 1024);
  EXPECT_GT(parts.size(), 30u);
  for (const auto& part : parts) {
    joined.insert(joined.end(), part.token_ids().ids().begin(), part.token_ids().ids().end());
  }
  EXPECT_TRUE(std::equal(joined.begin(), joined.end(), request.token_ids().ids().begin(),
                         request.token_ids().ids().end()));
}

TEST(ForEachPart, StopsWhenNoMoreIsWanted) {
  v1::GenerateRequest request;
  request.set_text(std::string(10'000, 'x'));
  int sent = 0;
  ForEachPart(request, 1024, [&](const v1::GenerateUploadPart&) { return ++sent < 3; });
  EXPECT_EQ(sent, 3);
}

TEST(TooLarge, NamesSizeAndLimit) {
  EXPECT_EQ(TooLarge(5000, 1024).error_message(),
            "the request has 5000 bytes, the server's message limit is 1024");
}

}  // namespace
}  // namespace bst::cli
