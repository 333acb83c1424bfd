#include "server/process_metrics.h"

#include <sys/resource.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <optional>
#include <sstream>
#include <string>
#include <system_error>

#include "absl/strings/numbers.h"
#include "server/engine_gauges.h"

namespace bst {
namespace {

// The fields of /proc/self/stat that are used; proc(5) numbers them from 1.
struct ProcessStat {
  double cpu_seconds = 0;     // 14 + 15, in clock ticks
  double start_seconds = 0;   // 22, in clock ticks since boot
  double virtual_bytes = 0;   // 23
  double resident_bytes = 0;  // 24, in pages
};

std::optional<ProcessStat> ReadProcessStat() {
  std::ifstream file("/proc/self/stat");
  std::string text((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  const size_t name_end = text.rfind(')');  // field 2, which may hold spaces
  if (name_end == std::string::npos) return std::nullopt;
  std::istringstream fields(text.substr(name_end + 1));
  std::string state;
  fields >> state;
  double values[25] = {};
  for (int field = 4; field <= 24; ++field) fields >> values[field];
  if (!fields) return std::nullopt;
  const auto ticks = static_cast<double>(sysconf(_SC_CLK_TCK));
  const auto page_bytes = static_cast<double>(sysconf(_SC_PAGESIZE));
  return ProcessStat{(values[14] + values[15]) / ticks, values[22] / ticks, values[23],
                     values[24] * page_bytes};
}

std::optional<double> BootTimeSeconds() {
  std::ifstream file("/proc/stat");
  std::string line;
  while (std::getline(file, line)) {
    double seconds = 0;
    if (line.starts_with("btime ") && absl::SimpleAtod(line.substr(6), &seconds)) return seconds;
  }
  return std::nullopt;
}

std::optional<double> CountOpenFiles() {
  std::error_code error;
  std::filesystem::directory_iterator entries("/proc/self/fd", error);
  if (error) return std::nullopt;
  // The iterator's own descriptor is one of them.
  return static_cast<double>(std::distance(begin(entries), end(entries)) - 1);
}

}  // namespace

std::vector<prometheus::MetricFamily> ProcessMetrics::Collect() const {
  std::vector<prometheus::MetricFamily> families;
  const auto gauge = [&families](const char* name, const char* help, double value) {
    families.push_back(GaugeFamily(name, help, {{{}, value}}));
  };
  if (const std::optional<ProcessStat> stat = ReadProcessStat()) {
    prometheus::ClientMetric cpu;
    cpu.counter.value = stat->cpu_seconds;
    families.push_back({"process_cpu_seconds_total",
                        "User and system CPU time in seconds.",
                        prometheus::MetricType::Counter,
                        {cpu}});
    gauge("process_resident_memory_bytes", "Resident memory.", stat->resident_bytes);
    gauge("process_virtual_memory_bytes", "Virtual memory.", stat->virtual_bytes);
    if (const std::optional<double> boot = BootTimeSeconds()) {
      gauge("process_start_time_seconds", "Start of the process, seconds since the epoch.",
            *boot + stat->start_seconds);
    }
  }
  if (const std::optional<double> open_files = CountOpenFiles()) {
    gauge("process_open_fds", "Open file descriptors.", *open_files);
  }
  rlimit limit;
  if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
    gauge("process_max_fds", "Limit of open file descriptors.",
          static_cast<double>(limit.rlim_cur));
  }
  return families;
}

}  // namespace bst
