// Parallel loops of every native op, on the threads of torch or a small persistent pool.
#pragma once

#include <cstddef>
#include <functional>

namespace hybridfast {

// Runs body(block) for every block in [0, blocks) on at most `threads` threads, the caller included.
// Which thread runs a block is not fixed; anything that must not depend on it (a sum, say) is kept per block.
// Callable from several threads at once and after fork. The first exception a block throws is rethrown here,
// once every running block has returned.
void parallel_for(std::size_t blocks, int threads, const std::function<void(std::size_t)>& body);

}  // namespace hybridfast
