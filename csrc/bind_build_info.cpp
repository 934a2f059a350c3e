#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "bindings.h"
#include "simd/level.h"

namespace py = pybind11;

namespace hybridfast {

void register_build_info(py::module_& module) {
  module.def("build_info", [] {
    std::vector<std::string> names;
    for (const auto* level : simd::supported()) names.emplace_back(level->name);
    py::dict info;
    info["version"] = HYBRIDFAST_VERSION;
    info["compiler"] = __VERSION__;
    info["simd_supported"] = names;
    info["simd"] = simd::kernels().name;
    return info;
  });
}

}  // namespace hybridfast
