// The roofline beside what a backend does: every operator of a step by itself, and whole steps.
#include <algorithm>
#include <cstdio>
#include <iterator>
#include <string_view>

#include "absl/strings/str_cat.h"
#include "engine/backend/cuda/cuda_plugin.h"
#include "engine/base/status_macros.h"
#include "tests/bench/bench.h"
#include "tests/bench/roofline.h"

namespace bst {
namespace {

absl::Status Measure() {
  BST_ASSIGN_OR_RETURN(const std::unique_ptr<Backend> backend, OpenCudaBackend());
  const std::string name = backend->name();
  const auto* const gpu = std::find_if(std::begin(kGpus), std::end(kGpus), [&](const auto& g) {
    return name.find(g.device) != name.npos;
  });
  if (gpu == std::end(kGpus)) std::printf("no datasheet rates of this GPU are known here\n");
  for (const RooflineModel& model : RooflineModels()) {
    BST_ASSIGN_OR_RETURN(const Roofline roofline, MakeRoofline(model.config, backend.get()));
    // The name tells what cuBLAS does for the weights that have been packed by now.
    std::printf("\n%s on %s: %s", model.name, backend->name().c_str(),
                MeasuredTable(roofline, gpu == std::end(kGpus) ? kGpus[0] : *gpu).c_str());
    std::fflush(stdout);
  }
  return absl::OkStatus();
}

absl::Status Print() {
  for (const RooflineModel& model : RooflineModels()) {
    BST_ASSIGN_OR_RETURN(const std::string heading, RooflineHeading(model));
    BST_ASSIGN_OR_RETURN(const Roofline roofline, MakeRoofline(model.config, nullptr));
    std::printf("%s%s\n", heading.c_str(), RooflineTables(model, roofline).c_str());
  }
  return absl::OkStatus();
}

}  // namespace

int RunRooflineBench(const std::string& backend) {
  if (!backend.empty() && backend != "cuda") {
    std::fprintf(stderr, "--backend: the roofline is that of cuda\n");
    return 2;
  }
  const absl::Status status = backend.empty() ? Print() : Measure();
  if (!status.ok()) std::fprintf(stderr, "%s\n", std::string(status.message()).c_str());
  return status.ok() ? 0 : 1;
}

}  // namespace bst
