#include "tests/support/npy.h"

#include <cstring>
#include <fstream>
#include <regex>

#include "absl/strings/str_cat.h"

namespace bst {
namespace {

constexpr char kMagic[] = "\x93NUMPY\x01\x00";
constexpr size_t kMagicBytes = 8;

}  // namespace

absl::StatusOr<NpyMatrix> ReadNpy(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return absl::NotFoundError(absl::StrCat("cannot open ", path));
  char magic[kMagicBytes];
  uint8_t length[2];
  if (!file.read(magic, kMagicBytes) || std::memcmp(magic, kMagic, kMagicBytes) != 0 ||
      !file.read(reinterpret_cast<char*>(length), 2)) {
    return absl::InvalidArgumentError(absl::StrCat(path, " is not an .npy file of version 1.0"));
  }
  std::string header(static_cast<size_t>(length[0] + 256 * length[1]), ' ');
  file.read(header.data(), static_cast<std::streamsize>(header.size()));
  std::smatch shape;
  if (header.find("'<f4'") == std::string::npos ||
      header.find("'fortran_order': False") == std::string::npos ||
      !std::regex_search(header, shape, std::regex(R"('shape': \((\d+), (\d+)\))"))) {
    return absl::InvalidArgumentError(absl::StrCat(path, " is not a float32 matrix: ", header));
  }
  NpyMatrix matrix{.rows = std::stoll(shape[1]), .columns = std::stoll(shape[2]), .values = {}};
  matrix.values.resize(static_cast<size_t>(matrix.rows * matrix.columns));
  if (!file.read(reinterpret_cast<char*>(matrix.values.data()),
                 static_cast<std::streamsize>(matrix.values.size() * sizeof(float)))) {
    return absl::InvalidArgumentError(absl::StrCat(path, " is truncated"));
  }
  return matrix;
}

absl::Status WriteNpy(const std::string& path, const NpyMatrix& matrix) {
  std::string header = absl::StrCat("{'descr': '<f4', 'fortran_order': False, 'shape': (",
                                    matrix.rows, ", ", matrix.columns, "), }");
  while ((kMagicBytes + 2 + header.size() + 1) % 64 != 0) header += ' ';
  header += '\n';
  std::ofstream file(path, std::ios::binary);
  file.write(kMagic, kMagicBytes);
  file.put(static_cast<char>(header.size() % 256)).put(static_cast<char>(header.size() / 256));
  file << header;
  file.write(reinterpret_cast<const char*>(matrix.values.data()),
             static_cast<std::streamsize>(matrix.values.size() * sizeof(float)));
  file.close();
  return file ? absl::OkStatus() : absl::UnavailableError(absl::StrCat("cannot write ", path));
}

}  // namespace bst
