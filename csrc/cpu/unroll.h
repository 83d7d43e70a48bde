// What a compiler has to be told of a loop. UNROLL: a short one over registers has to be straight-line code, or the
// registers become memory. INDEPENDENT: no pass reads what another one writes, so that it may be vectorised.
#pragma once

#if defined(__clang__)
#define FASTADV_UNROLL _Pragma("unroll")
#define FASTADV_INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#else
#define FASTADV_UNROLL _Pragma("GCC unroll 16")
#define FASTADV_INDEPENDENT _Pragma("GCC ivdep")
#endif
