// What module.cpp registers; each function is defined in the bind_*.cpp of its name.
#pragma once

#include <pybind11/pybind11.h>

namespace hybridfast {

void register_build_info(pybind11::module_& module);
void register_ranks(pybind11::module_& module);
void register_topk(pybind11::module_& module);
void register_sampler(pybind11::module_& module);
void register_infonce(pybind11::module_& module);
void register_encoder(pybind11::module_& module);
void register_texts(pybind11::module_& module);
void register_words(pybind11::module_& module);

}  // namespace hybridfast
