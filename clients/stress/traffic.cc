#include "clients/stress/traffic.h"

#include <google/protobuf/io/coded_stream.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <nlohmann/json.hpp>
#include <utility>

#include "clients/common/connection.h"

namespace bst::stress {
namespace {

using client::UsageError;

// Streams of Random: requests count up from 0, the others down from here.
constexpr uint64_t kPrefixStream = uint64_t{1} << 62;
constexpr uint64_t kProbeStream = uint64_t{1} << 61;

bool ParseNumber(std::string_view text, auto& number) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  return error == std::errc() && end == text.data() + text.size() && !text.empty();
}

std::vector<std::string_view> Split(std::string_view text, char separator) {
  std::vector<std::string_view> parts;
  while (true) {
    const size_t end = std::min(text.find(separator), text.size());
    parts.push_back(text.substr(0, end));
    if (end == text.size()) return parts;
    text.remove_prefix(end + 1);
  }
}

JsonPrompt ParseJsonLine(std::string_view line, const std::string& where) {
  const nlohmann::json json = nlohmann::json::parse(line, nullptr, false);
  if (!json.is_object()) throw UsageError(where + " is not a JSON object");
  JsonPrompt prompt;
  const auto text = json.find("prompt");
  const auto ids = json.find("token_ids");
  if (text != json.end() && text->is_string()) prompt.text = text->get<std::string>();
  if (ids != json.end() && ids->is_array()) {
    for (const nlohmann::json& id : *ids) {
      if (!id.is_number_unsigned() || id.get<uint64_t>() > UINT32_MAX)
        throw UsageError(where + ": token_ids holds " + id.dump());
      prompt.token_ids.push_back(id.get<uint32_t>());
    }
  }
  if (prompt.text.empty() == prompt.token_ids.empty())
    throw UsageError(where + " needs either \"prompt\" (text) or \"token_ids\" (a list)");
  if (const auto tokens = json.find("max_new_tokens"); tokens != json.end()) {
    if (!tokens->is_number_unsigned() || tokens->get<uint64_t>() > UINT32_MAX)
      throw UsageError(where + ": max_new_tokens is " + tokens->dump());
    prompt.max_new_tokens = tokens->get<uint32_t>();
  }
  return prompt;
}

void CheckLength(uint64_t tokens, uint64_t limit, const char* what) {
  if (tokens > limit)
    throw UsageError(std::string(what) + " of " + std::to_string(tokens) +
                     " tokens are above the server's limit of " + std::to_string(limit));
}

// Of one request, at most.
uint64_t MessageBytes(const TrafficOptions& options, uint64_t prompt_tokens, uint32_t vocab_size) {
  constexpr uint64_t kOtherFields = 64;  // seed, stopping and output; tags and lengths
  using google::protobuf::io::CodedOutputStream;
  uint64_t bytes = 0;
  for (const JsonPrompt& prompt : options.json_prompts) {
    uint64_t of_prompt = prompt.text.size();
    for (const uint32_t id : prompt.token_ids) of_prompt += CodedOutputStream::VarintSize32(id);
    bytes = std::max(bytes, of_prompt);
  }
  if (options.json_prompts.empty()) {
    bytes = prompt_tokens * CodedOutputStream::VarintSize32(vocab_size - 1);
  }
  return bytes + options.sampling.ByteSizeLong() + kOtherFields;
}

}  // namespace

LengthRange ParseRange(std::string_view text, std::string_view flag) {
  const size_t dash = text.find('-');
  LengthRange range;
  const bool parsed = dash == std::string_view::npos
                          ? ParseNumber(text, range.low) && ParseNumber(text, range.high)
                          : ParseNumber(text.substr(0, dash), range.low) &&
                                ParseNumber(text.substr(dash + 1), range.high);
  if (!parsed || range.low == 0 || range.low > range.high)
    throw UsageError(std::string(flag) + ": '" + std::string(text) +
                     "' is no length: a number of tokens (128) or a range (64-256), from 1 up");
  return range;
}

std::vector<MixPart> ParseMix(std::string_view text) {
  std::vector<MixPart> mix;
  for (const std::string_view part_text : Split(text, ',')) {
    const std::vector<std::string_view> words = Split(part_text, ':');
    MixPart part;
    if (words.size() < 2 || words.size() > 3 || !ParseNumber(words[0], part.weight) ||
        !std::isfinite(part.weight) || part.weight <= 0)
      throw UsageError("--mix: '" + std::string(part_text) +
                       "' is not WEIGHT:PROMPT_TOKENS[:NEW_TOKENS], for instance 90:32-256");
    part.prompt = ParseRange(words[1], "--mix");
    if (words.size() == 3) part.output = ParseRange(words[2], "--mix");
    mix.push_back(part);
  }
  return mix;
}

std::vector<JsonPrompt> ParseJsonLines(std::string_view lines, std::string_view file) {
  std::vector<JsonPrompt> prompts;
  size_t number = 0;
  for (const std::string_view line : Split(lines, '\n')) {
    ++number;
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    prompts.push_back(ParseJsonLine(line, std::string(file) + ", line " + std::to_string(number)));
  }
  if (prompts.empty()) throw UsageError(std::string(file) + " holds no prompts");
  return prompts;
}

Traffic::Traffic(TrafficOptions options, ModelLimits model)
    : options_(std::move(options)), model_(std::move(model)) {
  uint64_t longest = options_.prompt_tokens.high;
  uint64_t most_new = options_.new_tokens.high;
  if (!options_.mix.empty()) longest = 0;
  for (const MixPart& part : options_.mix) {
    longest = std::max<uint64_t>(longest, part.prompt.high);
    if (part.output.has_value()) most_new = std::max<uint64_t>(most_new, part.output->high);
    total_weight_ += part.weight;
  }
  if (options_.json_prompts.empty())
    CheckLength(longest + options_.prefix_tokens, model_.max_prompt_tokens, "prompts");
  CheckLength(most_new, model_.max_new_tokens, "outputs");
  const uint64_t bytes =
      MessageBytes(options_, longest + options_.prefix_tokens, model_.vocab_size);
  if (bytes > model_.max_message_bytes) {
    throw UsageError("requests of up to " + std::to_string(bytes) +
                     " bytes are above the server's message limit of " +
                     std::to_string(model_.max_message_bytes) +
                     ": make the prompts shorter or its --max_message_bytes larger");
  }
  if (!model_.special_ids.empty()) {
    for (uint32_t id = 0; id < model_.vocab_size; ++id) {
      if (std::count(model_.special_ids.begin(), model_.special_ids.end(), id) == 0)
        ordinary_ids_.push_back(id);
    }
  }
}

RequestPlan Traffic::Plan(uint64_t index) const {
  RequestPlan plan;
  plan.index = index;
  Random random(options_.seed, index);
  const MixPart* const part = PickMixPart(random);
  const LengthRange prompt = part != nullptr ? part->prompt : options_.prompt_tokens;
  const LengthRange output =
      part != nullptr ? part->output.value_or(options_.new_tokens) : options_.new_tokens;
  const uint32_t prompt_tokens = random.Between(prompt.low, prompt.high);
  uint32_t new_tokens = random.Between(output.low, output.high);

  v1::GenerateRequest& request = plan.request;
  *request.mutable_sampling() = options_.sampling;
  request.mutable_sampling()->set_seed(random());
  if (options_.ignore_eos) request.mutable_stopping()->set_ignore_eos(true);
  if (options_.logprobs) request.mutable_output()->set_logprobs(true);
  if (!options_.json_prompts.empty()) {
    const JsonPrompt& line = options_.json_prompts[index % options_.json_prompts.size()];
    if (line.token_ids.empty()) {
      request.set_text(line.text);
    } else {
      request.mutable_token_ids()->mutable_ids()->Add(line.token_ids.begin(), line.token_ids.end());
    }
    new_tokens = line.max_new_tokens.value_or(new_tokens);
  } else {
    FillPrompt(prompt_tokens, random, *request.mutable_token_ids());
  }
  request.mutable_stopping()->set_max_new_tokens(new_tokens);

  if (random.Uniform() < options_.cancel_rate) {
    if (random.Uniform() < 1.0 / 3) {
      plan.cancel_after_seconds = random.Uniform() * kEarlyCancelSeconds;
    } else {
      plan.cancel_after_tokens = random.Between(1, std::max(new_tokens, 1u));
    }
  }
  if (random.Uniform() < options_.deadline_rate) plan.deadline_seconds = options_.deadline_seconds;
  if (random.Uniform() < options_.slow_reader_rate)
    plan.read_delay_seconds = options_.slow_reader_delay_seconds;
  return plan;
}

RequestPlan Traffic::PlanProbe(uint64_t index) const {
  RequestPlan plan;
  plan.index = index;
  plan.is_probe = true;
  Random random(options_.seed, kProbeStream + index);
  for (uint32_t i = 0; i < kProbePromptTokens; ++i)
    plan.request.mutable_token_ids()->add_ids(RandomId(random));
  plan.request.mutable_sampling()->set_seed(random());
  plan.request.mutable_stopping()->set_max_new_tokens(1);
  return plan;
}

const MixPart* Traffic::PickMixPart(Random& random) const {
  if (options_.mix.empty()) return nullptr;
  double left = random.Uniform() * total_weight_;
  for (const MixPart& part : options_.mix) {
    left -= part.weight;
    if (left < 0) return &part;
  }
  return &options_.mix.back();
}

void Traffic::FillPrompt(uint32_t tokens, Random& random, v1::TokenIds& ids) const {
  ids.mutable_ids()->Reserve(static_cast<int>(options_.prefix_tokens + tokens));
  if (options_.prefix_tokens > 0) {
    const uint32_t group = random.Between(0, options_.num_prefixes - 1);
    Random prefix(options_.seed, kPrefixStream + group);
    for (uint32_t i = 0; i < options_.prefix_tokens; ++i) ids.add_ids(RandomId(prefix));
  }
  if (options_.text_tokens.empty()) {
    for (uint32_t i = 0; i < tokens; ++i) ids.add_ids(RandomId(random));
    return;
  }
  const auto size = static_cast<uint32_t>(options_.text_tokens.size());
  uint32_t at = random.Between(0, size - 1);  // goes round at the end of the text
  for (uint32_t i = 0; i < tokens; ++i) {
    ids.add_ids(options_.text_tokens[at]);
    if (++at == size) at = 0;
  }
}

uint32_t Traffic::RandomId(Random& random) const {
  if (ordinary_ids_.empty()) return random.Between(0, model_.vocab_size - 1);
  return ordinary_ids_[random.Between(0, static_cast<uint32_t>(ordinary_ids_.size()) - 1)];
}

}  // namespace bst::stress
