# The warning set; errors where GEMMULE_WERROR is on (presets dev and the sanitizers, so also CI).
option(GEMMULE_WERROR "treat warnings as errors" OFF)
set(GEMMULE_WARNINGS -Wall -Wextra -Wshadow -Wno-unused-function -Wno-missing-field-initializers)
if(GEMMULE_WERROR)
  list(APPEND GEMMULE_WARNINGS -Werror)
endif()
