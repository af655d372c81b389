// The number formats of the cache, one for each kind of layer. As text: "f16", "q8_0" or "f32" for both
// kinds, or "sliding=f16,global=q8_0"; a kind that is not named keeps f16.
#pragma once

#include <string>
#include <string_view>

#include "core/dtype.h"

namespace gemmule {

struct KvTypes {
  DType global = DType::F16;
  DType sliding = DType::F16;

  constexpr KvTypes() = default;
  constexpr KvTypes(DType both) : global(both), sliding(both) {}  // NOLINT: a type is a pair of equal types
  constexpr KvTypes(DType of_global, DType of_sliding) : global(of_global), sliding(of_sliding) {}

  DType of(bool is_sliding) const { return is_sliding ? sliding : global; }
  bool operator==(const KvTypes&) const = default;
};

// Throws std::invalid_argument that lists what is possible.
KvTypes parse_kv_types(std::string_view text);
std::string format_kv_types(const KvTypes& types);

}  // namespace gemmule
