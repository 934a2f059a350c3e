#pragma once

namespace hybridfast::simd {

// Whether this process may multiply bfloat16 on AMX's tiles: the CPU has them, of the size that the kernels
// take; the system saves them where it switches threads; and Linux, which gives them to processes on request,
// has granted them to this one. That is asked once, for all threads.
bool amx_bf16();

}  // namespace hybridfast::simd
