# gemmule_isa_object(FOLDER NAME FLAGS...): the kernels of one instruction-set level as one object with its own
# flags and without link-time optimisation. It exports one function; tools/check_isa_objects.py holds it to that.
set(GEMMULE_ISA_OBJECTS)
set(GEMMULE_ISA_DEFINITIONS)
function(gemmule_isa_object folder name)
  add_library(gemmule_isa_${name} OBJECT ${folder}/${name}.cpp)
  target_link_libraries(gemmule_isa_${name} PRIVATE gemmule_options)
  target_compile_options(gemmule_isa_${name} PRIVATE -O2 -fno-lto ${ARGN})
  if(GEMMULE_SANITIZE)
    # The undefined-behaviour checks on every vector access take GCC ten minutes and a gigabyte, so they are on in the
    # scalar object alone, which runs the shared bodies. Address checks stay on in the levels that such builds have.
    target_compile_options(gemmule_isa_${name} PRIVATE -O1)
    if(NOT name MATCHES "scalar$")
      target_compile_options(gemmule_isa_${name} PRIVATE -g0 -fno-sanitize=undefined)
    endif()
  endif()
  string(TOUPPER ${name} upper)
  set(GEMMULE_ISA_OBJECTS ${GEMMULE_ISA_OBJECTS} $<TARGET_OBJECTS:gemmule_isa_${name}> PARENT_SCOPE)
  set(GEMMULE_ISA_DEFINITIONS ${GEMMULE_ISA_DEFINITIONS} GEMMULE_HAVE_${upper} PARENT_SCOPE)
endfunction()
