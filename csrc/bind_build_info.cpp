#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "bindings.h"
#include "simd/level.h"

namespace py = pybind11;

namespace hybridfast {
namespace {

py::dict rates(const simd::Choice& choice) {
  py::dict rates;
  for (const simd::Rate& rate : choice.rates) rates[rate.level->name] = rate.gflops;
  return rates;
}

py::dict build_info() {
  {
    const py::gil_scoped_release release;  // to measure takes milliseconds
    simd::float32_choice(), simd::bfloat16_choice();
  }
  const auto &float32 = simd::float32_choice(), &bfloat16 = simd::bfloat16_choice();
  std::vector<std::string> names;
  for (const auto* level : simd::supported()) names.emplace_back(level->name);
  py::dict info, measured;
  measured["float32"] = rates(float32);
  measured["bfloat16"] = rates(bfloat16);
  info["version"] = HYBRIDFAST_VERSION;
  info["compiler"] = __VERSION__;
  info["simd_supported"] = names;
  info["simd"] = float32.level->name;
  info["simd_bfloat16"] = bfloat16.level->name;
  info["simd_gflops"] = measured;
  return info;
}

}  // namespace

void register_build_info(py::module_& module) {
  module.attr("__version__") = HYBRIDFAST_VERSION;
  module.def("build_info", &build_info,
             "Version, compiler and kernels: the instruction sets that this CPU can run (simd_supported), "
             "the one in use (simd), the one where products take bfloat16 (simd_bfloat16), and the GFLOP/s "
             "of one thread that decided (simd_gflops), measured now if not before; empty where "
             "HYBRIDFAST_SIMD decides.");
  module.def("take_over", &simd::take_over, py::arg("rates"), py::arg("lead"));
}

}  // namespace hybridfast
