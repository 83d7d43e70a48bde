// A short loop over registers that has to be straight-line code, or the registers become memory.
#pragma once

#if defined(__clang__)
#define FASTADV_UNROLL _Pragma("unroll")
#else
#define FASTADV_UNROLL _Pragma("GCC unroll 16")
#endif
