#include "engine/checkpoint/safetensors.h"

#include <sys/stat.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <limits>
#include <utility>

#include "engine/checkpoint/safetensors_writer.h"
#include "gtest/gtest.h"
#include "tests/engine/checkpoint/checkpoint_files.h"
#include "tests/support/status_matchers.h"

namespace bst {
namespace {

using testing::AllOf;
using testing::HasSubstr;

absl::StatusOr<SafetensorsFile> OpenBytes(const TestDirectory& directory,
                                          std::string_view contents) {
  directory.Write("t.safetensors", contents);
  return SafetensorsFile::Open(directory.File("t.safetensors"));
}

TEST(SafetensorsTest, ReadsWhatItsFormatSays) {
  const TestDirectory directory;
  const std::string header = R"({"b":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},)"
                             R"("__metadata__":{"format":"pt","note":"any"},)"
                             R"("a":{"shape":[4],"data_offsets":[24,32],"dtype":"BF16"},)"
                             R"("half":{"dtype":"F16","shape":[1,1,1,2],"data_offsets":[32,36]},)"
                             R"("empty":{"dtype":"F32","shape":[0,7],"data_offsets":[36,36]},)"
                             R"("bytes":{"dtype":"U8","shape":[3],"data_offsets":[36,39]},)"
                             R"("scalar":{"dtype":"U8","shape":[],"data_offsets":[39,40]}}   )";
  std::string contents = RawSafetensors(header + std::string((8 - header.size() % 8) % 8, ' '), 40);
  const float value = 2.5f;
  std::memcpy(contents.data() + contents.size() - 40 + 20, &value, sizeof(value));
  const absl::StatusOr<SafetensorsFile> file = OpenBytes(directory, contents);
  ASSERT_THAT(file, IsOk());
  EXPECT_EQ(file->path(), directory.File("t.safetensors"));

  std::vector<std::string> names;
  for (const auto& [name, view] : file->tensors()) names.push_back(name);
  EXPECT_THAT(names, testing::ElementsAre("a", "b", "bytes", "empty", "half", "scalar"));
  const TensorView b = file->tensors().find("b")->second;
  EXPECT_EQ(b.dtype(), DType::kF32);
  EXPECT_EQ(b.shape(), Shape({2, 3}));
  EXPECT_EQ(b.row<const float>(1)[2], 2.5f);
  EXPECT_EQ(file->tensors().find("a")->second.dtype(), DType::kBF16);
  EXPECT_EQ(file->tensors().find("half")->second.shape(), Shape({1, 1, 1, 2}));
  EXPECT_EQ(file->tensors().find("empty")->second.shape(), Shape({0, 7}));
  EXPECT_EQ(file->tensors().find("scalar")->second.shape(), Shape());
}

TEST(SafetensorsTest, EmptyHeaderIsAFileWithoutTensors) {
  const TestDirectory directory;
  const absl::StatusOr<SafetensorsFile> file = OpenBytes(directory, RawSafetensors("{}", 0));
  ASSERT_THAT(file, IsOk());
  EXPECT_TRUE(file->tensors().empty());
}

// The format aligns nothing; neither does a writer whose header has an odd length.
TEST(SafetensorsTest, UnalignedTensorsAreCopied) {
  const TestDirectory directory;
  const std::string header = R"({"x":{"dtype":"BF16","shape":[1],"data_offsets":[0,2]},)"
                             R"("y":{"dtype":"F32","shape":[2],"data_offsets":[2,10]},)"
                             R"("z":{"dtype":"F16","shape":[2],"data_offsets":[10,14]}})";
  for (size_t padding = 0; padding < 4; ++padding) {
    std::string contents = RawSafetensors(header + std::string(padding, ' '), 14);
    const float y[2] = {1.25f, -3.5f};
    const uint16_t z[2] = {0x1234, 0x5678};
    std::memcpy(contents.data() + contents.size() - 12, y, sizeof(y));
    std::memcpy(contents.data() + contents.size() - 4, z, sizeof(z));
    absl::StatusOr<SafetensorsFile> opened = OpenBytes(directory, contents);
    ASSERT_THAT(opened, IsOk());
    const SafetensorsFile file = *std::move(opened);  // views stay valid when the file is moved
    const TensorView y_view = file.tensors().find("y")->second;
    const TensorView z_view = file.tensors().find("z")->second;
    EXPECT_EQ(reinterpret_cast<uintptr_t>(y_view.data()) % 4, 0u);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(z_view.data()) % 2, 0u);
    EXPECT_EQ(y_view.as<const float>()[1], -3.5f);
    EXPECT_EQ(z_view.as<const uint16_t>()[0], 0x1234);
  }
}

struct HostileCase {
  const char* name;
  std::string contents;
  const char* message;
};

std::string Length(uint64_t length) {
  std::string bytes(sizeof(length), '\0');
  std::memcpy(bytes.data(), &length, sizeof(length));
  return bytes;
}

std::vector<HostileCase> HostileCases() {
  const auto raw = [](std::string_view header, size_t data_bytes) {
    return RawSafetensors(header, data_bytes);
  };
  return {
      {"empty file", "", "file is empty"},
      {"shorter than the length field", "1234567", "too few"},
      {"header longer than the file", Length(100) + "{}", "truncated"},
      {"header length that overflows", Length(~uint64_t{0}) + "{}", "more than the limit"},
      {"header length of 2^63", Length(uint64_t{1} << 63) + "{}", "more than the limit"},
      {"header beyond 100 MB", Length(100'000'001) + "{}", "more than the limit of 100000000"},
      {"header of no bytes", Length(0), "not JSON"},
      {"not JSON", raw("{\"a\":", 0), "not JSON at byte"},
      {"binary", raw("\x80\x81\xff", 0), "not JSON"},
      {"text after the object", raw("{} {}", 0), "not JSON"},
      {"text after a NUL byte", raw(std::string_view("{}\0x", 4), 0), "not JSON at byte 3: a NUL"},
      {"array", raw("[]", 0), "header is a list"},
      {"number", raw("17", 0), "header is a number"},
      {"null", raw("null", 0), "header is null"},
      {"string", raw("\"x\"", 0), "header is a string"},
      {"deeply nested", raw(std::string(1'000'000, '['), 0), "header is a list"},
      {"deeply nested object", raw(R"({"a":{"shape":{"b":{}}}})", 0),
       "tensor 'a' has an object in shape"},
      {"tensor that is a number", raw(R"({"a":1})", 0), "header has a number for 'a'"},
      {"tensor that is null", raw(R"({"a":null})", 0), "header has null for 'a'"},
      {"tensor that is a list", raw(R"({"a":[]})", 0), "header has a list for 'a'"},
      {"metadata that is a string", raw(R"({"__metadata__":"x"})", 0), "header has a string"},
      {"metadata with a number", raw(R"({"__metadata__":{"k":1}})", 0),
       "__metadata__ has a number for 'k'"},
      {"metadata with an object", raw(R"({"__metadata__":{"k":{}}})", 0),
       "__metadata__ has an object for 'k'"},
      {"duplicate name",
       raw(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})",
           2),
       "tensor 'a' occurs twice"},
      {"duplicate metadata", raw(R"({"__metadata__":{},"__metadata__":{}})", 0),
       "'__metadata__' occurs twice"},
      {"duplicate metadata key", raw(R"({"__metadata__":{"k":"1","l":"2","k":"1"}})", 0),
       "__metadata__ has 'k' twice"},
      {"duplicate key",
       raw(R"({"a":{"dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]}})", 1),
       "tensor 'a' has dtype twice"},
      {"duplicate shape", raw(R"({"a":{"shape":[1],"shape":[1]}})", 1),
       "tensor 'a' has shape twice"},
      {"duplicate offsets", raw(R"({"a":{"data_offsets":[0,1],"data_offsets":[0,1]}})", 1),
       "tensor 'a' has data_offsets twice"},
      {"unknown key", raw(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"x":1}})", 1),
       "tensor 'a' has an unknown key 'x'"},
      {"no dtype", raw(R"({"a":{"shape":[1],"data_offsets":[0,1]}})", 1),
       "tensor 'a' lacks one of"},
      {"no shape", raw(R"({"a":{"dtype":"U8","data_offsets":[0,1]}})", 1),
       "tensor 'a' lacks one of"},
      {"no offsets", raw(R"({"a":{"dtype":"U8","shape":[1]}})", 1), "tensor 'a' lacks one of"},
      {"empty entry", raw(R"({"a":{}})", 0), "tensor 'a' lacks one of"},
      {"unknown dtype", raw(R"({"a":{"dtype":"F31","shape":[1],"data_offsets":[0,1]}})", 1),
       "tensor 'a' has unknown dtype 'F31'"},
      {"integer dtype", raw(R"({"a":{"dtype":"I64","shape":[1],"data_offsets":[0,8]}})", 8),
       "tensor 'a' has dtype I64; this program reads"},
      {"dtype that is a number", raw(R"({"a":{"dtype":4,"shape":[1],"data_offsets":[0,1]}})", 1),
       "tensor 'a' has a number in dtype"},
      {"dtype that is a list", raw(R"({"a":{"dtype":["U8"],"shape":[1],"data_offsets":[0,1]}})", 1),
       "tensor 'a' has a list in dtype"},
      {"shape that is a string", raw(R"({"a":{"dtype":"U8","shape":"1","data_offsets":[0,1]}})", 1),
       "tensor 'a' has a string in shape"},
      {"shape with a negative number",
       raw(R"({"a":{"dtype":"U8","shape":[-1],"data_offsets":[0,1]}})", 1),
       "tensor 'a' has a negative number in shape"},
      {"shape with a fraction",
       raw(R"({"a":{"dtype":"U8","shape":[1.0],"data_offsets":[0,1]}})", 1),
       "tensor 'a' has a number that is no integer in shape"},
      {"shape with a boolean",
       raw(R"({"a":{"dtype":"U8","shape":[true],"data_offsets":[0,1]}})", 1),
       "tensor 'a' has a boolean in shape"},
      {"nested shape", raw(R"({"a":{"dtype":"U8","shape":[[1]],"data_offsets":[0,1]}})", 1),
       "tensor 'a' has a list in shape"},
      {"five dimensions",
       raw(R"({"a":{"dtype":"U8","shape":[1,1,1,1,1],"data_offsets":[0,1]}})", 1),
       "more than 4 dimensions"},
      {"shape that overflows",
       raw(R"({"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}})", 0),
       "tensor 'a' has a shape whose size overflows"},
      {"shape that overflows by its type",
       raw(R"({"a":{"dtype":"F32","shape":[4611686018427387904],"data_offsets":[0,0]}})", 0),
       "overflows"},
      {"shape that overflows before its zero",
       raw(R"({"a":{"dtype":"U8","shape":[9223372036854775807,3,0],"data_offsets":[0,0]}})", 0),
       "overflows"},
      {"dimension beyond int64",
       raw(R"({"a":{"dtype":"U8","shape":[18446744073709551615],"data_offsets":[0,1]}})", 1),
       "overflows"},
      {"dimension beyond int64 after a zero",
       raw(R"({"a":{"dtype":"U8","shape":[0,18446744073709551615],"data_offsets":[0,0]}})", 0),
       "overflows"},
      {"one offset", raw(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0]}})", 1),
       "data_offsets that are not two numbers"},
      {"three offsets", raw(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1,2]}})", 1),
       "data_offsets that are not two numbers"},
      {"four offsets", raw(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1,2,3]}})", 1),
       "tensor 'a' has a number in data_offsets"},
      {"offsets backwards", raw(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[1,0]}})", 1),
       "tensor 'a' has data_offsets [1, 0]"},
      {"offsets beyond the data",
       raw(R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}})", 1),
       "but the file has 1 bytes of data"},
      {"offsets beyond any file",
       raw(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[18446744073709551614,18446744073709551615]}})",
           1),
       "but the file has 1 bytes of data"},
      {"range shorter than the shape",
       raw(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}})", 4),
       "tensor 'a' of shape [2] needs 8 bytes, its data_offsets hold 4"},
      {"range longer than the shape",
       raw(R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,4]}})", 4),
       "needs 2 bytes, its data_offsets hold 4"},
      {"gap before the first", raw(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})", 2),
       "tensor 'a' begins at data byte 1, leaving a gap"},
      {"gap between two",
       raw(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"U8","shape":[1],"data_offsets":[2,3]}})",
           3),
       "tensor 'b' begins at data byte 2, leaving a gap"},
      {"gap at the end", raw(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})", 3),
       "the tensors hold 1 bytes, the file has 3"},
      {"overlap",
       raw(R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}})",
           3),
       "tensor 'b' begins at data byte 1, overlapping"},
      {"same range twice",
       raw(R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}})",
           2),
       "overlapping"},
      {"data without tensors", raw("{}", 1), "the tensors hold 0 bytes, the file has 1"},
  };
}

TEST(SafetensorsTest, HostileFilesAreRefusedWithTheReason) {
  const TestDirectory directory;
  for (const HostileCase& c : HostileCases()) {
    EXPECT_THAT(
        OpenBytes(directory, c.contents),
        StatusIs(kBad, AllOf(HasSubstr(directory.File("t.safetensors")), HasSubstr(c.message))))
        << c.name;
  }
}

TEST(SafetensorsTest, EveryTruncationIsRefused) {
  const TestDirectory directory;
  StoredTensors tensors;
  tensors["a"] = MakeTensor(DType::kF32, {3});
  tensors["b"] = MakeTensor(DType::kBF16, {2, 2});
  WriteTensors(directory.File("whole.safetensors"), tensors);
  const std::string whole = directory.Read("whole.safetensors");
  ASSERT_THAT(OpenBytes(directory, whole), IsOk());
  for (size_t size = 0; size < whole.size(); ++size) {
    EXPECT_THAT(OpenBytes(directory, whole.substr(0, size)), StatusIs(kBad)) << size;
  }
  EXPECT_THAT(OpenBytes(directory, whole + "x"), StatusIs(kBad));
}

TEST(SafetensorsTest, LongNamesAreCutInMessages) {
  const TestDirectory directory;
  const std::string header = "{\"" + std::string(100'000, 'n') + "\":1}";
  const absl::StatusOr<SafetensorsFile> file = OpenBytes(directory, RawSafetensors(header, 0));
  ASSERT_THAT(file, StatusIs(kBad));
  EXPECT_LT(file.status().message().size(), 500u);
}

TEST(SafetensorsTest, OtherKindsOfFiles) {
  const TestDirectory directory;
  EXPECT_THAT(SafetensorsFile::Open(directory.File("none")),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("No such file")));
  EXPECT_THAT(SafetensorsFile::Open(directory.path()),
              StatusIs(kBad, HasSubstr("not a regular file")));
  ASSERT_EQ(::mkfifo(directory.File("pipe").c_str(), 0600), 0);
  EXPECT_THAT(SafetensorsFile::Open(directory.File("pipe")),
              StatusIs(kBad, HasSubstr("not a regular file")));
}

TEST(SafetensorsWriterTest, WhatIsWrittenIsReadBack) {
  const TestDirectory directory;
  StoredTensors tensors;
  tensors["odd \"name\"\n\u00e9"] = MakeTensor(DType::kBF16, {3});
  tensors["b"] = MakeTensor(DType::kF32, {2, 5});
  tensors["c"] = MakeTensor(DType::kU8, {5});
  tensors["d"] = MakeTensor(DType::kF16, {1, 2, 3});
  tensors["e"] = MakeTensor(DType::kF32, {0});
  tensors["f"] = MakeTensor(DType::kF32, {});
  WriteTensors(directory.File("t.safetensors"), tensors);
  const absl::StatusOr<SafetensorsFile> file =
      SafetensorsFile::Open(directory.File("t.safetensors"));
  ASSERT_THAT(file, IsOk());
  ASSERT_EQ(file->tensors().size(), tensors.size());
  for (const auto& [name, tensor] : tensors) {
    const auto found = file->tensors().find(name);
    ASSERT_NE(found, file->tensors().end()) << name;
    EXPECT_EQ(found->second.dtype(), tensor.dtype);
    EXPECT_EQ(found->second.shape(), Shape(tensor.shape));
    EXPECT_EQ(std::memcmp(found->second.data(), tensor.bytes.data(), tensor.bytes.size()), 0)
        << name;
  }
  // Nothing had to be copied: every tensor lies aligned in the file.
  const std::string contents = directory.Read("t.safetensors");
  uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, contents.data(), sizeof(header_bytes));
  EXPECT_EQ(header_bytes % 8, 0u);
  const auto page =
      reinterpret_cast<uintptr_t>(file->tensors().find("b")->second.data()) - 8 - header_bytes;
  EXPECT_EQ(page % 4096, 0u);
}

TEST(SafetensorsWriterTest, PiecesMayBeOfAnySizeAndTypesAreSorted) {
  const TestDirectory directory;
  absl::StatusOr<SafetensorsWriter> writer = SafetensorsWriter::Create(
      directory.File("t"),
      {{"u8", DType::kU8, {1}}, {"bf16", DType::kBF16, {1}}, {"f32", DType::kF32, {2}}});
  ASSERT_THAT(writer, IsOk());
  std::vector<std::string> order;
  for (const auto& entry : writer->order()) order.push_back(entry.name);
  EXPECT_THAT(order, testing::ElementsAre("f32", "bf16", "u8"));
  const std::string data = "\x01\x02\x03\x04\x05\x06\x07\x08zzz";
  ASSERT_THAT(writer->Append(data.data(), 3), IsOk());
  ASSERT_THAT(writer->Append(data.data() + 3, 7), IsOk());
  ASSERT_THAT(writer->Append(data.data() + 10, 1), IsOk());
  EXPECT_FALSE(std::filesystem::exists(directory.File("t")));  // not before it is whole
  ASSERT_THAT(writer->Finish(), IsOk());
  EXPECT_TRUE(directory.Read("t").ends_with(data));
}

TEST(SafetensorsWriterTest, AnUnfinishedFileLeavesNothingAndReplacesNothing) {
  const TestDirectory directory;
  directory.Write("t", "before");
  {
    absl::StatusOr<SafetensorsWriter> writer =
        SafetensorsWriter::Create(directory.File("t"), {{"a", DType::kU8, {4}}});
    ASSERT_THAT(writer, IsOk());
    ASSERT_THAT(writer->Append("x", 1), IsOk());
  }
  EXPECT_EQ(directory.Read("t"), "before");
  const std::filesystem::directory_iterator files(directory.path());
  EXPECT_EQ(std::distance(begin(files), end(files)), 1);
}

TEST(SafetensorsWriterTest, RefusesNamesTheFormatCannotHold) {
  const TestDirectory directory;
  const auto create = [&](const std::string& a, const std::string& b) {
    return SafetensorsWriter::Create(directory.File("t"),
                                     {{a, DType::kU8, {1}}, {b, DType::kU8, {1}}})
        .status();
  };
  constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
  EXPECT_THAT(create("a", "a"), StatusIs(kInvalid, HasSubstr("'a' twice")));
  EXPECT_THAT(create("a", "\xff"), StatusIs(kInvalid, HasSubstr("not UTF-8")));
  EXPECT_THAT(create("a", "__metadata__"), StatusIs(kInvalid));
}

TEST(SafetensorsWriterTest, FileSystemErrorsAreNamed) {
  EXPECT_THAT(SafetensorsWriter::Create("/nonexistent/t", {{"a", DType::kU8, {1}}}).status(),
              StatusIs(absl::StatusCode::kInternal, HasSubstr("No such file or directory")));
  // Every write to this device fails; its name must not grow a suffix, so it is linked to.
  const TestDirectory directory;
  std::filesystem::create_symlink("/dev/full", directory.File("t.unfinished"));
  EXPECT_THAT(SafetensorsWriter::Create(directory.File("t"), {{"a", DType::kU8, {1}}}).status(),
              StatusIs(absl::StatusCode::kInternal, HasSubstr("No space left on device")));
}

}  // namespace
}  // namespace bst
