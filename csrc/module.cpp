#include "bindings.h"

// Importing it does not switch the GIL on in a free-threaded Python.
PYBIND11_MODULE(_core, module, pybind11::mod_gil_not_used()) {
  module.doc() = "Native kernels of hybridfast; the Python modules around it are the public interface.";
  hybridfast::register_build_info(module);
  hybridfast::register_ranks(module);
  hybridfast::register_topk(module);
  hybridfast::register_sampler(module);
  hybridfast::register_infonce(module);
  hybridfast::register_encoder(module);
  hybridfast::register_texts(module);
  hybridfast::register_words(module);
}
