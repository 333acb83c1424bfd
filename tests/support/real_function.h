// For functions of a shared library that a program stands in for by defining them itself.
#pragma once

#include <dlfcn.h>

namespace bst {

// The function of that (mangled) name in the library.
template <typename Function>
Function* RealFunction(const char* symbol) {
  return reinterpret_cast<Function*>(::dlsym(RTLD_NEXT, symbol));
}

}  // namespace bst
