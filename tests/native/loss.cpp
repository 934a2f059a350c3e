// The loss at odd sizes and with every option, for the sanitizers; tests/native/run_loss builds and runs it.
// Inputs end where their memory ends, so that reading past a row's end is caught, and losses are compared
// with sums in double.

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <random>
#include <thread>
#include <vector>

#include "infonce.h"
#include "simd/level.h"

using namespace hybridfast;

namespace {

struct Shape {
  std::size_t queries, passages, dim;
};

double naive_loss(const InfoNceProblem& problem, std::size_t i) {
  const auto similarity = [&](std::size_t a, std::size_t b) {
    double dot = 0, q = 0, p = 0;
    for (std::size_t d = 0; d < problem.dim; ++d) {
      const double x = problem.query_rows[a * problem.dim + d], y = problem.passage_rows[b * problem.dim + d];
      dot += x * y;
      q += x * x;
      p += y * y;
    }
    return problem.normalize ? dot / std::sqrt(q * p) : dot;
  };
  const auto same = [&](std::size_t a, std::size_t b) {
    return problem.query_groups && problem.query_groups[a] == problem.passage_groups[b];
  };
  const auto positive = [&](std::size_t a, std::size_t b) {
    return problem.group_positives ? same(a, b) : problem.targets[a] == static_cast<std::int64_t>(b);
  };
  const auto negative = [&](std::size_t a, std::size_t b) { return !positive(a, b) && !same(a, b); };
  double sum = 0, count = 0;
  for (std::size_t g = 0; g < problem.passages; ++g) {
    if (!positive(i, g)) continue;
    const double wanted = similarity(i, g) - problem.margin;
    double row = 0, column = 0;
    for (std::size_t j = 0; j < problem.passages; ++j)
      if (negative(i, j)) row += std::exp((similarity(i, j) - wanted) / problem.temperature);
    for (std::size_t k = 0; problem.bidirectional && k < problem.queries; ++k)
      if (negative(k, g)) column += std::exp((similarity(k, g) - wanted) / problem.temperature);
    sum += problem.bidirectional ? (std::log1p(row) + std::log1p(column)) / 2 : std::log1p(row);
    ++count;
  }
  return sum / count;
}

void check(const Shape& shape, int options, std::mt19937& random) {
  std::normal_distribution<float> normal;
  std::vector<float> q(shape.queries * shape.dim), p(shape.passages * shape.dim), dq(q.size()), dp(p.size());
  for (float& x : q) x = normal(random);
  for (float& x : p) x = normal(random);
  std::vector<std::int64_t> targets(shape.queries);
  std::vector<std::int32_t> query_groups(shape.queries), passage_groups(shape.passages);
  for (std::size_t i = 0; i < shape.queries; ++i) {
    targets[i] = static_cast<std::int64_t>(random() % shape.passages);
    query_groups[i] = passage_groups[targets[i]] = static_cast<std::int32_t>(random() % 9);
  }
  for (std::size_t i = 0; i < shape.queries; ++i) query_groups[i] = passage_groups[targets[i]];
  const bool groups = options & 1, bfloat16 = options & 16;
  const InfoNceProblem problem{shape.queries,
                               shape.passages,
                               shape.dim,
                               q.data(),
                               p.data(),
                               targets.data(),
                               groups ? query_groups.data() : nullptr,
                               groups ? passage_groups.data() : nullptr,
                               0.2,
                               0.1,
                               true,
                               true,
                               groups && options & 2,
                               static_cast<bool>(options & 4),
                               bfloat16};
  std::vector<float> losses(shape.queries), weights(shape.queries, 1.0f);
  double temperature_grad = 0;
  const InfoNceGradients gradients{weights.data(), dq.data(), dp.data(), &temperature_grad,
                                   options & 8 ? 0.05 : 0.0};
  info_nce(problem, losses.data(), &gradients, 3);
  for (std::size_t i = 0; i < shape.queries; ++i) {
    const double wanted = naive_loss(problem, i);
    if (std::abs(losses[i] - wanted) <= (bfloat16 ? 0.1 : 1e-4) * (1 + wanted)) continue;
    std::fprintf(stderr, "%zu x %zu x %zu, options %d: loss %zu is %g, should be %g\n", shape.queries,
                 shape.passages, shape.dim, options, i, losses[i], wanted);
    std::exit(1);
  }
  q[random() % q.size()] = std::numeric_limits<float>::quiet_NaN();
  p[random() % p.size()] = std::numeric_limits<float>::infinity();
  info_nce(problem, losses.data(), &gradients, 3);
}

}  // namespace

int main() {
  // Around one panel, one chunk and one block of queries; dimensions on both sides of every vector's width.
  const Shape shapes[] = {{1, 1, 1}, {2, 5, 3}, {33, 47, 17}, {31, 97, 15}, {65, 49, 64}, {530, 40, 5}};
  std::mt19937 random(0);
  for (const Shape& shape : shapes)
    for (int options = 0; options < 32; ++options) check(shape, options, random);
  std::vector<std::thread> callers;  // several Python threads may call at once
  for (unsigned seed = 1; seed < 4; ++seed)
    callers.emplace_back([seed] {
      std::mt19937 own(seed);
      for (int options = 0; options < 32; ++options) check({40, 60, 9}, options, own);
    });
  for (std::thread& caller : callers) caller.join();
  std::printf("%s: ok\n", simd::kernels().name);
}
