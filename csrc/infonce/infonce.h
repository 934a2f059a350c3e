// InfoNCE on the CPU, forward and backward, without ever holding the queries x passages matrix.
#pragma once

#include <cstddef>
#include <cstdint>

#include "embeddings.h"

namespace hybridfast {

struct InfoNceProblem {
  std::size_t queries;
  std::size_t passages;
  std::size_t dim;
  Embeddings query_rows;               // (queries, dim)
  Embeddings passage_rows;             // (passages, dim)
  const std::int64_t* targets;         // (queries,), each in [0, passages); or null: row i is query i's
  const std::int32_t* query_groups;    // (queries,), or null: no groups
  const std::int32_t* passage_groups;  // (passages,), or null
  double temperature;
  double margin;
  bool normalize;
  bool in_batch;
  bool group_positives;  // every passage of a query's group is a positive, in the place of the target
  bool bidirectional;
  bool bfloat16;  // the factors of the products may be rounded to bfloat16
};

// What to form where d(objective)/d(loss of query i) = weights[i]. `query_grads` and `passage_grads` may be
// null: that product is then not computed. `temperature_grad` is formed with `query_grads`.
struct InfoNceGradients {
  const float* weights;  // (queries,)
  float* query_grads;    // (queries, dim)
  float* passage_grads;  // (passages, dim)
  double* temperature_grad;
  double tolerance;  // share of a query's negatives that its gradients may leave out; 0: form them in full
};

// What the gradients left out.
struct InfoNceStats {
  double kept = 1;     // share of the pairs that were summed
  double dropped = 0;  // the largest share, over queries, of the negatives' mass that was not
};

// Writes the loss of every query and, where `gradients` is given, the gradients. One product pass for the
// losses and one for each of the two gradients; both directions, or too many passages to keep the softmax of
// 32 queries, take one more, as do queries whose nearest negative is far nearer than a sample told. Results
// do not depend on `threads`.
InfoNceStats info_nce(const InfoNceProblem& problem, float* losses, const InfoNceGradients* gradients,
                      int threads);

}  // namespace hybridfast
