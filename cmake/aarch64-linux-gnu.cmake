# Toolchain for 64-bit ARM Linux with Debian's cross compiler (g++-aarch64-linux-gnu); tests run under qemu-user.
# AARCH64_CPU chooses the emulated processor: cortex-a53 has neither dot products nor matrix products, cortex-a76
# has the former, max has both.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
set(CMAKE_FIND_ROOT_PATH /usr/aarch64-linux-gnu)
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_PACKAGE ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_INCLUDE BOTH)  # doctest is headers only; the ones of the build machine will do
set(AARCH64_CPU max CACHE STRING "processor that qemu emulates")
set(CMAKE_CROSSCOMPILING_EMULATOR qemu-aarch64 -cpu ${AARCH64_CPU} -L /usr/aarch64-linux-gnu)
