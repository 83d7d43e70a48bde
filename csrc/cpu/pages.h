// Fresh memory is slow: every page of it is a page fault when it is first written.
#pragma once

#include <cstdint>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace fastadv::cpu {

// The GNU C library keeps freed blocks below 32 MiB for the next allocation; larger ones it maps afresh every time.
constexpr int64_t kAlwaysFresh = 32 << 20;

// Asks for huge pages under a large result that is about to be written: a fault for 2 MiB instead of 4 KiB. Only a
// hint, about whole pages inside the result; a system that has none ignores it.
inline void about_to_fill(void* result, int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t page = 4096;  // the kernel refuses what is no multiple of its own page, and nothing is lost
  if (bytes < kAlwaysFresh) return;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(result) + page - 1) / page * page;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(result) + static_cast<uintptr_t>(bytes)) / page * page;
  (void)madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  (void)result;
  (void)bytes;
#endif
}

}  // namespace fastadv::cpu
