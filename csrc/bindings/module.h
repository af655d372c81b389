// The parts of the extension module; module.cpp calls them in order.
#pragma once

#include <pybind11/pybind11.h>

namespace gemmule {

void bind_errors(pybind11::module_& m);
void bind_gguf(pybind11::module_& m);
void bind_model(pybind11::module_& m);    // StopToken, Model, MediaEmbedder
void bind_session(pybind11::module_& m);  // after bind_model, whose classes it takes; so do the next three
void bind_drafter(pybind11::module_& m);
void bind_drafting(pybind11::module_& m);
void bind_encoder(pybind11::module_& m);
void bind_strings(pybind11::module_& m);  // after bind_gguf, whose class it takes

}  // namespace gemmule
