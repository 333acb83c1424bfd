#include "engine/backend/cuda/blas.h"

#include <dlfcn.h>

#include <array>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/backend/cuda/runtime_stream.h"

#ifdef BST_HAVE_CUBLAS

#include <cublasLt.h>

namespace bst::cuda {
namespace {

constexpr size_t kWorkspaceBytes = size_t{32} << 20;

// Of the library, by name: the header's declarations with the pointers they come as.
struct Functions {
  decltype(&cublasLtCreate) create;
  decltype(&cublasLtDestroy) destroy;
  decltype(&cublasLtMatmul) matmul;
  decltype(&cublasLtMatmulAlgoCheck) algo_check;
  decltype(&cublasLtMatmulAlgoGetHeuristic) heuristic;
  decltype(&cublasLtMatmulAlgoConfigGetAttribute) algo_attribute;
  decltype(&cublasLtMatmulDescCreate) desc_create;
  decltype(&cublasLtMatmulDescDestroy) desc_destroy;
  decltype(&cublasLtMatmulDescSetAttribute) desc_set;
  decltype(&cublasLtMatrixLayoutCreate) layout_create;
  decltype(&cublasLtMatrixLayoutDestroy) layout_destroy;
  decltype(&cublasLtMatmulPreferenceCreate) preference_create;
  decltype(&cublasLtMatmulPreferenceDestroy) preference_destroy;
  decltype(&cublasLtMatmulPreferenceSetAttribute) preference_set;
};

absl::StatusOr<Functions> Load() {
  const std::string file = absl::StrCat("libcublasLt.so.", CUBLAS_VER_MAJOR);
  void* const library = ::dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) return absl::UnavailableError(absl::StrCat("no cuBLAS: ", ::dlerror()));
  bool has_all = true;
  const auto find = [&](auto& function, const char* name) {
    function =
        reinterpret_cast<std::remove_reference_t<decltype(function)>>(::dlsym(library, name));
    has_all = has_all && function != nullptr;
  };
  Functions functions;
  find(functions.create, "cublasLtCreate");
  find(functions.destroy, "cublasLtDestroy");
  find(functions.matmul, "cublasLtMatmul");
  find(functions.algo_check, "cublasLtMatmulAlgoCheck");
  find(functions.heuristic, "cublasLtMatmulAlgoGetHeuristic");
  find(functions.algo_attribute, "cublasLtMatmulAlgoConfigGetAttribute");
  find(functions.desc_create, "cublasLtMatmulDescCreate");
  find(functions.desc_destroy, "cublasLtMatmulDescDestroy");
  find(functions.desc_set, "cublasLtMatmulDescSetAttribute");
  find(functions.layout_create, "cublasLtMatrixLayoutCreate");
  find(functions.layout_destroy, "cublasLtMatrixLayoutDestroy");
  find(functions.preference_create, "cublasLtMatmulPreferenceCreate");
  find(functions.preference_destroy, "cublasLtMatmulPreferenceDestroy");
  find(functions.preference_set, "cublasLtMatmulPreferenceSetAttribute");
  if (!has_all)
    return absl::UnavailableError(absl::StrCat("no cuBLAS: ", file, " lacks a function"));
  return functions;
}

constexpr ProductEpilogue kEpilogues[] = {ProductEpilogue::kStore, ProductEpilogue::kRelu,
                                          ProductEpilogue::kAdd};

}  // namespace

class Blas {
 public:
  explicit Blas(const Functions& its_functions) : functions(its_functions) {}
  Blas(const Blas&) = delete;
  Blas& operator=(const Blas&) = delete;
  ~Blas() {
    if (workspace != nullptr) FreeDevice(workspace);
    if (handle != nullptr) (void)functions.destroy(handle);
  }

  Functions functions;
  cublasLtHandle_t handle = nullptr;
  void* workspace = nullptr;
};

// The library stores by columns: what it multiplies is out^T = W x^T.
class Product {
 public:
  Product(Blas& its_blas, const ProductShape& shape) : blas(its_blas) {
    const Functions& f = blas.functions;
    const auto type = shape.bf16 ? CUDA_R_16BF : CUDA_R_32F;
    const auto out = static_cast<uint64_t>(shape.out), in = static_cast<uint64_t>(shape.in),
               rows = static_cast<uint64_t>(shape.rows);
    ok = f.layout_create(&weights, type, shape.bf16 ? in : out, shape.bf16 ? out : in,
                         shape.weights_stride) == CUBLAS_STATUS_SUCCESS &&
         f.layout_create(&x, type, in, rows, shape.x_stride) == CUBLAS_STATUS_SUCCESS &&
         f.layout_create(&result, CUDA_R_32F, out, rows, shape.out_stride) == CUBLAS_STATUS_SUCCESS;
    for (size_t i = 0; ok && i < std::size(kEpilogues); ++i) {
      // Without TF32: "pedantic" keeps to the types that are named.
      const auto compute = shape.bf16 ? CUBLAS_COMPUTE_32F : CUBLAS_COMPUTE_32F_PEDANTIC;
      ok = f.desc_create(&descs[i], compute, CUDA_R_32F) == CUBLAS_STATUS_SUCCESS;
      const cublasOperation_t transpose = shape.bf16 ? CUBLAS_OP_T : CUBLAS_OP_N;
      const cublasLtEpilogue_t epilogue = kEpilogues[i] == ProductEpilogue::kRelu
                                              ? CUBLASLT_EPILOGUE_RELU
                                              : CUBLASLT_EPILOGUE_DEFAULT;
      ok = ok &&
           f.desc_set(descs[i], CUBLASLT_MATMUL_DESC_TRANSA, &transpose, sizeof(transpose)) ==
               CUBLAS_STATUS_SUCCESS &&
           f.desc_set(descs[i], CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue, sizeof(epilogue)) ==
               CUBLAS_STATUS_SUCCESS;
    }
  }
  Product(const Product&) = delete;
  Product& operator=(const Product&) = delete;
  ~Product() {
    const Functions& f = blas.functions;
    for (cublasLtMatmulDesc_t desc : descs) {
      if (desc != nullptr) (void)f.desc_destroy(desc);
    }
    for (cublasLtMatrixLayout_t layout : {weights, x, result}) {
      if (layout != nullptr) (void)f.layout_destroy(layout);
    }
  }

  // Whether the algorithm adds each sum up in one sequence, within the workspace, in every
  // epilogue.
  bool Takes(const cublasLtMatmulAlgo_t& algorithm) {
    const Functions& f = blas.functions;
    int32_t splits = 0;
    size_t written = 0;
    if (f.algo_attribute(&algorithm, CUBLASLT_ALGO_CONFIG_SPLITK_NUM, &splits, sizeof(splits),
                         &written) != CUBLAS_STATUS_SUCCESS ||
        splits > 1)
      return false;
    for (cublasLtMatmulDesc_t desc : descs) {
      cublasLtMatmulHeuristicResult_t result_of_check = {};
      if (f.algo_check(blas.handle, desc, weights, x, result, result, &algorithm,
                       &result_of_check) != CUBLAS_STATUS_SUCCESS ||
          result_of_check.workspaceSize > kWorkspaceBytes)
        return false;
    }
    algo = algorithm;
    return true;
  }

  Blas& blas;
  bool ok = false;
  cublasLtMatrixLayout_t weights = nullptr, x = nullptr, result = nullptr;
  std::array<cublasLtMatmulDesc_t, std::size(kEpilogues)> descs = {};
  cublasLtMatmulAlgo_t algo = {};
};

void BlasDeleter::operator()(Blas* blas) const { delete blas; }

absl::StatusOr<BlasPtr> OpenBlas() {
  const absl::StatusOr<Functions> functions = Load();
  if (!functions.ok()) return functions.status();
  BlasPtr blas(new Blas(*functions));
  if (const cublasStatus_t status = blas->functions.create(&blas->handle);
      status != CUBLAS_STATUS_SUCCESS) {
    return absl::UnavailableError(
        absl::StrCat("no cuBLAS: it does not start, status ", static_cast<int>(status)));
  }
  absl::StatusOr<void*> workspace = AllocateDevice(kWorkspaceBytes);
  if (!workspace.ok())
    return absl::UnavailableError(absl::StrCat("no cuBLAS: ", workspace.status().message()));
  blas->workspace = *workspace;
  return blas;
}

void ProductDeleter::operator()(Product* product) const { delete product; }

std::vector<ProductPtr> FindProducts(Blas& blas, const ProductShape& shape, int count) {
  std::vector<ProductPtr> found;
  ProductPtr product(new Product(blas, shape));
  cublasLtMatmulPreference_t preference = nullptr;
  const Functions& f = blas.functions;
  if (!product->ok || f.preference_create(&preference) != CUBLAS_STATUS_SUCCESS) return found;
  const size_t workspace = kWorkspaceBytes;
  const uint32_t reduction = CUBLASLT_REDUCTION_SCHEME_NONE;
  std::vector<cublasLtMatmulHeuristicResult_t> results(static_cast<size_t>(count));
  int returned = 0;
  if (f.preference_set(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace,
                       sizeof(workspace)) != CUBLAS_STATUS_SUCCESS ||
      f.preference_set(preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &reduction,
                       sizeof(reduction)) != CUBLAS_STATUS_SUCCESS ||
      f.heuristic(blas.handle, product->descs[0], product->weights, product->x, product->result,
                  product->result, preference, count, results.data(),
                  &returned) != CUBLAS_STATUS_SUCCESS)
    returned = 0;
  (void)f.preference_destroy(preference);
  for (int i = 0; i < returned; ++i) {
    const cublasLtMatmulHeuristicResult_t& result = results[static_cast<size_t>(i)];
    if (result.state != CUBLAS_STATUS_SUCCESS || !product->Takes(result.algo)) continue;
    found.push_back(std::move(product));
    product.reset(new Product(blas, shape));
    if (!product->ok) break;
  }
  return found;
}

absl::Status RunProduct(Stream& stream, const Product& product, const ProductOperands& operands) {
  if (!stream.status.ok()) return stream.status;
  const bool add = operands.epilogue == ProductEpilogue::kAdd;
  const float alpha = operands.scale, beta = add ? 1.0f : 0.0f;
  const cublasStatus_t status = product.blas.functions.matmul(
      product.blas.handle, product.descs[static_cast<size_t>(operands.epilogue)], &alpha,
      operands.weights, product.weights, operands.x, product.x, &beta, operands.out, product.result,
      operands.out, product.result, &product.algo, product.blas.workspace, kWorkspaceBytes,
      stream.handle);
  if (status == CUBLAS_STATUS_SUCCESS) return absl::OkStatus();
  (void)cudaGetLastError();  // of the launch; a fault of the device stays
  return absl::InternalError(absl::StrCat("cublasLtMatmul: status ", static_cast<int>(status)));
}

}  // namespace bst::cuda

#else  // built where cublasLt.h is not

namespace bst::cuda {

class Blas {};
class Product {};

void BlasDeleter::operator()(Blas* blas) const { delete blas; }
absl::StatusOr<BlasPtr> OpenBlas() {
  return absl::UnavailableError("no cuBLAS: the backend was built without it");
}
void ProductDeleter::operator()(Product* product) const { delete product; }
std::vector<ProductPtr> FindProducts(Blas& /*blas*/, const ProductShape& /*shape*/, int /*count*/) {
  return {};
}
absl::Status RunProduct(Stream& /*stream*/, const Product& /*product*/,
                        const ProductOperands& /*operands*/) {
  return absl::UnimplementedError("built without cuBLAS");
}

}  // namespace bst::cuda

#endif
