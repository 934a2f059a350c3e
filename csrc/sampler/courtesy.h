// How a worker stays out of the training's way on cores that both need.
//
// A woken worker gets its turn on the core of the thread that woke it where no other is free, and with it a
// whole slice, some 3 ms. As an idle-class thread that offers to yield every few microseconds of building, it
// hands that core back at once.
#pragma once

#include <thread>

#ifdef __linux__
#include <pthread.h>
#include <sched.h>
#endif

namespace hybridfast::sampler {

inline thread_local bool is_worker = false;

inline void become_worker() {
  is_worker = true;
#ifdef __linux__
  const sched_param none{};
  pthread_setschedparam(pthread_self(), SCHED_IDLE, &none);
#endif
}

// For a worker that the consumer is about to wait for: an idle-class thread would get its last turn only
// after all that other processes keep the cores busy with. Without the right to it, it stays as it is.
inline void hurry([[maybe_unused]] std::thread& worker) {
#ifdef __linux__
  const sched_param none{};
  pthread_setschedparam(worker.native_handle(), SCHED_OTHER, &none);
#endif
}

// Nothing where the consumer builds a late batch itself.
inline void give_way() {
  if (is_worker) std::this_thread::yield();
}

}  // namespace hybridfast::sampler
