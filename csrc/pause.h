// What a loop does between two looks at something that another thread is about to change.
#pragma once

namespace hybridfast {

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace hybridfast
