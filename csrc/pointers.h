// Addresses arrive from Python as integers; 0 stands for an absent argument.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "common/types.h"

namespace fastadv {

using Address = std::uintptr_t;

// A tensor over the bytes of a file may begin at any of them. Processors differ in what they make of a number that does
// not lie at a multiple of its size, and to the compiler there is none.
inline void check_aligned(Address address, std::size_t size) {
  if (address % size != 0)
    throw std::invalid_argument("tensor: expected memory that begins at a multiple of " + std::to_string(size) +
                                " bytes, got " + std::to_string(address % size) + " bytes more; pass its clone()");
}

template <class T>
T* pointer(Address address) {
  if constexpr (!std::is_void_v<T>) check_aligned(address, alignof(T));
  return reinterpret_cast<T*>(address);
}

// Of elements of a type that is known by its code.
template <class T>
T* pointer(Address address, int type) {
  static_assert(std::is_void_v<T>);
  check_aligned(address, static_cast<std::size_t>(bytes_of(type)));
  return pointer<T>(address);
}

}  // namespace fastadv
