// The loss at odd sizes and with every option, for the sanitizers; tests/native/run_loss builds and runs it.
// Inputs end where their memory ends, so that reading past a row's end is caught, and losses are compared
// with sums in double.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>
#include <stdexcept>
#include <thread>
#include <vector>

#include "infonce/infonce.h"
#include "simd/level.h"
#include "threads.h"

using namespace hybridfast;

namespace {

struct Shape {
  std::size_t queries, passages, dim;
};

std::vector<double> similarities(const InfoNceProblem& problem) {
  std::vector<double> similarity_QN(problem.queries * problem.passages);
  std::vector<float> x(problem.dim), y(problem.dim);
  for (std::size_t a = 0; a < problem.queries; ++a) {
    widen_row(problem.query_rows, a, 0, problem.dim, x.data());
    for (std::size_t b = 0; b < problem.passages; ++b) {
      widen_row(problem.passage_rows, b, 0, problem.dim, y.data());
      double dot = 0, q = 0, p = 0;
      for (std::size_t d = 0; d < problem.dim; ++d) {
        dot += double{x[d]} * y[d];
        q += double{x[d]} * x[d];
        p += double{y[d]} * y[d];
      }
      similarity_QN[a * problem.passages + b] = problem.normalize ? dot / std::sqrt(q * p) : dot;
    }
  }
  return similarity_QN;
}

double naive_loss(const InfoNceProblem& problem, const std::vector<double>& similarity_QN, std::size_t i) {
  const auto similarity = [&](std::size_t a, std::size_t b) {
    return similarity_QN[a * problem.passages + b];
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

// Values of some size in an element type: a random sign and mantissa, an exponent near 0.
std::vector<std::byte> random_rows(std::size_t count, Element element, std::mt19937& random) {
  const std::size_t size = element == Element::float32 ? 4 : 2;
  std::vector<std::byte> rows(count * size);
  for (std::size_t i = 0; i < count; ++i) {
    const int mantissa = element == Element::float32 ? 23 : element == Element::bfloat16 ? 7 : 10;
    const std::uint32_t bias = element == Element::float16 ? 15 : 127;
    std::uint32_t bits = (bias - 2 + random() % 4) << mantissa | random() % (1u << mantissa);
    bits |= (random() & 1u) << (8 * size - 1);
    std::memcpy(&rows[i * size], &bits, size);
  }
  return rows;
}

// All bits of the exponent: infinity or, unless the mantissa is 0, NaN.
void spoil(std::vector<std::byte>& rows, Element element, std::mt19937& random) {
  const std::size_t size = element == Element::float32 ? 4 : 2;
  const std::uint32_t bits = element == Element::float32    ? 0x7f800000u
                             : element == Element::bfloat16 ? 0x7f80u
                                                            : 0x7c00u;
  std::memcpy(&rows[random() % (rows.size() / size) * size], &bits, size);
}

// How far `got` is from `wanted`, as a share of its norm.
double distance(const std::vector<float>& got, const std::vector<float>& wanted) {
  double square = 0, size = 1e-12;
  for (std::size_t i = 0; i < got.size(); ++i) {
    square += std::pow(double{got[i]} - wanted[i], 2);
    size += std::pow(double{wanted[i]}, 2);
  }
  return std::sqrt(square / size);
}

// Gradients by factors rounded to bfloat16 against those by float32 factors.
void check_gradients(InfoNceProblem problem, InfoNceGradients gradients, const std::vector<float>& dq,
                     const std::vector<float>& dp) {
  std::vector<float> losses(problem.queries), wanted_dq(dq.size()), wanted_dp(dp.size());
  double temperature_grad = 0;
  problem.bfloat16 = false;
  gradients.query_grads = wanted_dq.data();
  gradients.passage_grads = wanted_dp.data();
  gradients.temperature_grad = &temperature_grad;
  info_nce(problem, losses.data(), &gradients, 3);
  const double off = std::max(distance(dq, wanted_dq), distance(dp, wanted_dp));
  if (off <= 0.03) return;
  std::fprintf(stderr, "%zu x %zu x %zu: gradients in bfloat16 are off by %g\n", problem.queries,
               problem.passages, problem.dim, off);
  std::exit(1);
}

void check(const Shape& shape, int options, std::mt19937& random) {
  const auto element = static_cast<Element>(random() % 3);
  auto q = random_rows(shape.queries * shape.dim, element, random);
  auto p = random_rows(shape.passages * shape.dim, element, random);
  std::vector<float> dq(shape.queries * shape.dim), dp(shape.passages * shape.dim);
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
                               {q.data(), shape.queries, shape.dim, element},
                               {p.data(), shape.passages, shape.dim, element},
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
  const std::vector<double> similarity_QN = similarities(problem);
  for (std::size_t i = 0; i < shape.queries; ++i) {
    const double wanted = naive_loss(problem, similarity_QN, i);
    if (std::abs(losses[i] - wanted) <= (bfloat16 ? 0.1 : 1e-4) * (1 + wanted)) continue;
    std::fprintf(stderr, "%zu x %zu x %zu, options %d: loss %zu is %g, should be %g\n", shape.queries,
                 shape.passages, shape.dim, options, i, losses[i], wanted);
    std::exit(1);
  }
  if (bfloat16 && gradients.tolerance == 0) check_gradients(problem, gradients, dq, dp);
  spoil(q, element, random);
  spoil(p, element, random);
  info_nce(problem, losses.data(), &gradients, 3);
}

std::vector<float> normals(std::size_t count, std::mt19937& random) {
  std::normal_distribution<float> normal;
  std::vector<float> values(count);
  std::generate(values.begin(), values.end(), [&] { return normal(random); });
  return values;
}

void fail(const char* what, double got, double wanted) {
  std::fprintf(stderr, "%s: %s is %.9g, should be %.9g\n", simd::kernels().name, what, got, wanted);
  std::exit(1);
}

// E, the scaled exp, to 1 ulp, all over its range; and what `exponentials` says of a column.
void check_exp() {
  const simd::TileKernels& kernels = simd::kernels();
  const std::size_t columns = kernels.columns, count = 4096;
  const std::vector<float> shift(columns, 7.0f), scale(count, 1.0f);
  std::vector<float> tile(count * columns), max(columns), sum(columns);
  const auto exponent = [&](std::size_t i) {
    return 129.0f - 166.4f * static_cast<float>(i) / static_cast<float>(count * columns);
  };
  for (std::size_t i = 0; i < tile.size(); ++i) tile[i] = exponent(i) + 7.0f;
  kernels.exponentials(tile.data(), count, shift.data(), scale.data(), max.data(), sum.data(), tile.data());
  std::vector<double> total(columns);
  for (std::size_t i = 0; i < tile.size(); ++i) {
    const float taken = exponent(i) + 7.0f - 7.0f;
    const double wanted = std::ldexp(std::exp(static_cast<double>(taken)), -simd::TileKernels::kHalvings);
    const auto rounded = static_cast<float>(wanted);
    const double ulp = std::nextafter(rounded, 2 * rounded) - rounded;
    if (std::abs(tile[i] - wanted) > ulp) fail("exp", tile[i], wanted);
    total[i % columns] += wanted;
  }
  for (std::size_t c = 0; c < columns; ++c) {
    if (max[c] != exponent(c) + 7.0f) fail("max", max[c], exponent(c) + 7.0f);
    if (std::abs(sum[c] - total[c]) > 1e-5 * total[c]) fail("sum", sum[c], total[c]);
  }
}

// The sum of some of 37 rows that are rounded to bfloat16.
void check_pairs(const std::vector<float>& rows, std::size_t n) {
  const simd::TileKernels& kernels = simd::kernels();
  const std::size_t stride = (n + 31) / 32 * 16;
  std::vector<float> pairs(37 * stride), out(n, 1.0f);
  for (std::size_t r = 0; r < 37; ++r) kernels.pair_neighbours(&rows[r * n], n, &pairs[r * stride]);
  const std::vector<std::uint32_t> index = {3, 36, 3, 0};
  const std::vector<float> weight = {0.5f, -1.0f, 0.25f, 2.0f};
  kernels.combine_pairs(pairs.data(), stride, n, index.data(), weight.data(), index.size(), out.data(), true);
  for (std::size_t d = 0; d < n; ++d) {
    double wanted = 1, size = 1;
    for (std::size_t k = 0; k < index.size(); ++k) {
      wanted += double{weight[k]} * rows[index[k] * n + d];
      size += std::abs(double{weight[k]} * rows[index[k] * n + d]);
    }
    if (std::abs(out[d] - wanted) > 0x1p-8 * size) fail("combine_pairs", out[d], wanted);
  }
}

// Rows of every length around a few vectors, copied to their size so that a step too far is an error.
void check_rows() {
  const simd::TileKernels& kernels = simd::kernels();
  std::mt19937 random(1);
  for (std::size_t n : {1, 3, 7, 16, 31, 33, 64, 129}) {
    const std::vector<float> a = normals(n * 37, random), b = normals(n * 37, random);
    std::vector<float> grad(b), out(n * 37);
    double dot = 0, size = 0;
    for (std::size_t i = 0; i < n; ++i) {
      dot += static_cast<double>(a[i]) * b[i];
      size += std::abs(static_cast<double>(a[i]) * b[i]);
    }
    if (std::abs(kernels.dot(a.data(), b.data(), n) - dot) > 1e-14 * size)
      fail("dot", kernels.dot(a.data(), b.data(), n), dot);
    kernels.project(grad.data(), a.data(), 0.5f, 3.0f, n);
    for (std::size_t i = 0; i < n; ++i)
      if (std::abs(grad[i] - (b[i] - 0.5f * a[i]) * 3.0f) > 1e-5f)
        fail("project", grad[i], (b[i] - 0.5f * a[i]) * 3.0f);
    if (kernels.combine_pairs) check_pairs(a, n);
    kernels.transpose(a.data(), n, 37, n, out.data(), 37);
    for (std::size_t r = 0; r < 37; ++r)
      for (std::size_t c = 0; c < n; ++c)
        if (out[c * 37 + r] != a[r * n + c]) fail("transpose", out[c * 37 + r], a[r * n + c]);
  }
}

// Every block of every loop runs once, whichever thread takes it, and a loop after a failed one as well.
void check_loops() {
  for (int threads : {1, 2, 5})
    with_threads(threads, [&] {
      for (std::size_t loop = 0; loop < 3000; ++loop) {
        const std::size_t blocks = loop % 7;
        std::vector<int> runs(blocks);
        const bool fails = blocks > 0 && loop % 5 == 0;
        bool failed = false;
        try {
          parallel_for(blocks, threads, [&](std::size_t block) {
            ++runs[block];
            if (fails && block == loop % blocks) throw std::runtime_error("block");
          });
        } catch (const std::runtime_error&) {
          failed = true;
        }
        if (failed != fails) fail("loop's error", failed, fails);
        for (const int count : runs)
          if (count != 1 && !(fails && threads == 1)) fail("loop's runs", count, 1);
      }
    });
}

}  // namespace

int main() {
  check_exp();
  check_loops();
  check_rows();
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
