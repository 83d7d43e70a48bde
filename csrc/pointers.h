// Addresses arrive from Python as integers; 0 stands for an absent argument.
#pragma once

#include <cstdint>

namespace fastadv {

using Address = std::uintptr_t;

template <class T>
T* pointer(Address address) {
  return reinterpret_cast<T*>(address);
}

}  // namespace fastadv
