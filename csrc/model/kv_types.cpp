#include "model/kv_types.h"

#include <array>
#include <optional>
#include <stdexcept>

#include "core/error.h"
#include "core/utf8.h"

namespace gemmule {
namespace {

struct Name {
  std::string_view text;
  DType dtype;
};
constexpr std::array kNames = {Name{"f16", DType::F16}, Name{"q8_0", DType::Q8_0}, Name{"f32", DType::F32}};

[[noreturn]] void refuse(std::string_view text) {
  throw std::invalid_argument(
      cat("kv_type \"", printable(text),
          "\" is not known; choose f16, q8_0 or f32, or one for each kind of layer, as in "
          "\"sliding=f16,global=q8_0\""));
}

std::optional<DType> find_type(std::string_view name) {
  for (const Name& known : kNames)
    if (name == known.text) return known.dtype;
  return std::nullopt;
}

std::string_view name_of(DType dtype) {
  for (const Name& known : kNames)
    if (dtype == known.dtype) return known.text;
  return "";
}

}  // namespace

KvTypes parse_kv_types(std::string_view text) {
  if (const auto both = find_type(text)) return *both;
  KvTypes types;
  bool has_global = false, has_sliding = false;
  for (std::string_view rest = text;;) {
    const size_t comma = rest.find(',');
    const std::string_view part = rest.substr(0, comma);
    const size_t equals = part.find('=');
    if (equals == std::string_view::npos) refuse(text);
    const std::string_view kind = part.substr(0, equals);
    const auto dtype = find_type(part.substr(equals + 1));
    bool& has = kind == "global" ? has_global : has_sliding;
    if ((kind != "global" && kind != "sliding") || has || !dtype) refuse(text);
    has = true;
    (kind == "global" ? types.global : types.sliding) = *dtype;
    if (comma == std::string_view::npos) return types;
    rest.remove_prefix(comma + 1);
  }
}

std::string format_kv_types(const KvTypes& types) {
  if (types.global == types.sliding) return std::string(name_of(types.global));
  return cat("sliding=", name_of(types.sliding), ",global=", name_of(types.global));
}

}  // namespace gemmule
