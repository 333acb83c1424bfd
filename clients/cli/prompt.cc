#include "clients/cli/prompt.h"

#include <CLI/CLI.hpp>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>

#include "clients/cli/connection.h"

namespace bst::cli {

void Prompt::AddTextFlags(CLI::App& app) {
  auto* const group = app.add_option_group("Prompt", "exactly one of");
  group->add_option("--prompt", text, "The text");
  group->add_option("--prompt-file", text_file, "File with the text; - is the standard input");
  group->require_option(1);
}

void Prompt::AddFlags(CLI::App& app) {
  auto* const group = app.add_option_group("Prompt", "exactly one of");
  group->add_option("--prompt", text, "The text");
  group->add_option("--prompt-file", text_file, "File with the text; - is the standard input");
  group->add_option("--ids-file", ids_file,
                    "File with a JSON list of token ids; - is the standard input");
  group->require_option(1);
}

void AddPriorityFlag(CLI::App& app, std::optional<v1::Priority>& priority) {
  static const std::map<std::string, v1::Priority> names = {
      {"low", v1::LOW}, {"normal", v1::NORMAL}, {"high", v1::HIGH}};
  app.add_option("--priority", priority, "low, normal or high: who of those that wait goes first")
      ->transform(CLI::CheckedTransformer(names, CLI::ignore_case))
      ->type_name("NAME");
}

std::string Prompt::Text() const {
  if (text_file.empty()) {
    CheckUtf8(text, "--prompt");
    return text;
  }
  std::string content = ReadFile(text_file);
  if (!IsUtf8(content))
    throw UsageError(text_file + " is not UTF-8; send other bytes as token ids (--ids-file)");
  return content;
}

std::vector<uint32_t> Prompt::Ids() const { return ParseIds(ReadFile(ids_file), ids_file); }

std::vector<uint32_t> ParseIds(const std::string& json, const std::string& source) {
  const nlohmann::json list = nlohmann::json::parse(json, nullptr, false);
  if (!list.is_array()) throw UsageError(source + " is not a JSON list of token ids");
  std::vector<uint32_t> ids;
  ids.reserve(list.size());
  for (const nlohmann::json& item : list) {
    if (!item.is_number_unsigned() || item.get<uint64_t>() > std::numeric_limits<uint32_t>::max()) {
      throw UsageError(source + ": " + item.dump() + " is not a token id");
    }
    ids.push_back(item.get<uint32_t>());
  }
  return ids;
}

void CheckUtf8(std::string_view text, const std::string& flag) {
  if (!IsUtf8(text)) throw UsageError(flag + " is not UTF-8");
}

bool IsUtf8(std::string_view text) {
  size_t i = 0;
  while (i < text.size()) {
    const auto lead = static_cast<unsigned char>(text[i]);
    // Length of the character, and the range of its second byte (Unicode, table 3-7).
    size_t length = 1;
    unsigned char low = 0x80, high = 0xBF;
    if (lead >= 0xC2 && lead <= 0xDF) {
      length = 2;
    } else if (lead >= 0xE0 && lead <= 0xEF) {
      length = 3;
      if (lead == 0xE0) low = 0xA0;
      if (lead == 0xED) high = 0x9F;
    } else if (lead >= 0xF0 && lead <= 0xF4) {
      length = 4;
      if (lead == 0xF0) low = 0x90;
      if (lead == 0xF4) high = 0x8F;
    } else if (lead >= 0x80) {
      return false;
    }
    if (text.size() - i < length) return false;
    for (size_t k = 1; k < length; ++k) {
      const auto byte = static_cast<unsigned char>(text[i + k]);
      if (byte < low || byte > high) return false;
      low = 0x80;
      high = 0xBF;
    }
    i += length;
  }
  return true;
}

}  // namespace bst::cli
