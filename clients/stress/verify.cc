#include "clients/stress/verify.h"

#include <algorithm>
#include <bit>
#include <cstdio>
#include <utility>

#include "clients/common/connection.h"

namespace bst::stress {
namespace {

bool Failed(const Answer& answer) {
  return answer.code != grpc::StatusCode::OK || !answer.defect.empty();
}

std::string Failure(const Answer& answer) {
  return client::CodeName(answer.code) + ": " +
         (answer.defect.empty() ? answer.message : answer.defect);
}

// `bits` as a number and as what was compared.
std::string LogprobText(uint32_t bits) {
  char text[48];
  std::snprintf(text, sizeof(text), "%.9g (0x%08x)",
                static_cast<double>(std::bit_cast<float>(bits)), bits);
  return text;
}

std::optional<std::string> Difference(const Answer& a, const Answer& b) {
  if (Failed(a)) return "alone it failed with " + Failure(a);
  if (Failed(b)) return "together it failed with " + Failure(b);
  const size_t common = std::min(a.token_ids.size(), b.token_ids.size());
  for (size_t i = 0; i < common; ++i) {
    const std::string where = "token " + std::to_string(i) + " ";
    if (a.token_ids[i] != b.token_ids[i])
      return where + "is " + std::to_string(a.token_ids[i]) + " alone and " +
             std::to_string(b.token_ids[i]) + " together";
    if (i >= a.logprob_bits.size() || i >= b.logprob_bits.size())
      return where + "has no log-probability";
    if (a.logprob_bits[i] != b.logprob_bits[i])
      return where + "(" + std::to_string(a.token_ids[i]) + ") has the log-probability " +
             LogprobText(a.logprob_bits[i]) + " alone and " + LogprobText(b.logprob_bits[i]) +
             " together";
  }
  if (a.token_ids.size() != b.token_ids.size())
    return "there are " + std::to_string(a.token_ids.size()) + " tokens alone and " +
           std::to_string(b.token_ids.size()) + " together";
  return std::nullopt;
}

}  // namespace

Answer TakeAnswer(RequestRecord& record) {
  return {record.code, record.message, record.defect, std::move(record.token_ids),
          std::move(record.logprob_bits)};
}

std::optional<std::string> FirstDifference(const Answers& alone, const Answers& together) {
  if (alone.empty()) return "no request was answered alone";
  for (const auto& [index, answer] : alone) {
    const std::string request = "request " + std::to_string(index) + ": ";
    const auto other = together.find(index);
    if (other == together.end()) return request + "was answered alone only";
    if (const auto difference = Difference(answer, other->second)) return request + *difference;
  }
  if (together.size() > alone.size()) return "more requests were answered together than alone";
  return std::nullopt;
}

}  // namespace bst::stress
