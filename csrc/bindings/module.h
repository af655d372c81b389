#pragma once

#include <pybind11/pybind11.h>

namespace gemmule {

void bind_errors(pybind11::module_& m);
void bind_gguf(pybind11::module_& m);
void bind_encoder(pybind11::module_& m);  // after bind_model, whose StopToken it takes
void bind_model(pybind11::module_& m);

}  // namespace gemmule
