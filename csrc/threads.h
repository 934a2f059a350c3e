// Parallel loops of every native op, on the threads of torch or a small persistent pool.
#pragma once

#include <cstddef>
#include <functional>

namespace hybridfast {

// Runs body() on the calling thread with up to threads - 1 others at hand for the parallel_for calls it
// makes. To gather threads takes far longer than to hand them a loop, all the more on a busy machine, where
// the caller may wait for one to get its turn: an op gathers them once. Rethrows what body throws.
void with_threads(int threads, const std::function<void()>& body);

// Runs body(block) for every block in [0, blocks): on the threads at hand, or else on at most `threads`, the
// caller included. Which thread runs a block is not fixed; anything that must not depend on it (a sum, say)
// is kept per block. Loops do not nest. Callable from several threads at once and after fork. The first
// exception a block throws is rethrown here, once every block has returned.
void parallel_for(std::size_t blocks, int threads, const std::function<void(std::size_t)>& body);

}  // namespace hybridfast
