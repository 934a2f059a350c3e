#include "sampler/plan.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>
#include <stdexcept>
#include <utility>

namespace hybridfast::sampler {
namespace {

constexpr std::uint32_t kBlock = 100;  // batches that a stratified draw balances
// Weights are integers, so that shares are exact.
constexpr std::uint64_t kWeightOne = std::uint64_t{1} << 30;
constexpr std::size_t kChunk = 256;  // rows whose look-ups run step by step

// The draws of a block of batches: independent ones, or one number from each hundredth of [0, 1) in random
// order.
void draw_block(const Options& options, std::uint32_t epoch, std::uint32_t block, double* draws) {
  if (!options.stratified) {
    for (std::uint32_t i = 0; i < kBlock; i += kPhiloxLanes) {
      const auto words = philox_lanes(word(Purpose::kStream), epoch, block * kBlock + i, options.seed);
      for (std::uint32_t lane = 0; lane < std::min(kPhiloxLanes, kBlock - i); ++lane) {
        draws[i + lane] = unit(words[0][lane], words[1][lane]);
      }
    }
    return;
  }
  Random random(options.seed, word(Purpose::kDeal), epoch, block);
  const double u = random.unit();
  for (std::uint32_t i = 0; i < kBlock; ++i) draws[i] = (i + u) / kBlock;
  shuffle(kBlock, random, [&](std::uint32_t i, std::uint32_t j) { std::swap(draws[i], draws[j]); });
}

}  // namespace

Plan::Plan(const Corpus& corpus, Options options) : corpus_(corpus), options_(std::move(options)) {
  if (options_.predefined_NB3) {
    batches_ = options_.batches_per_epoch;
    return;
  }
  if (!corpus_.source_indptr || !corpus_.present_LW)
    throw std::invalid_argument("source_indptr and present_LW are needed, but for predefined batches");
  find_languages();
  if (!options_.mix_rows) build_mono();
  build_cross();
  const std::uint64_t versions = std::accumulate(coverage_.begin(), coverage_.end(), std::uint64_t{0});
  const std::uint64_t natural = std::max<std::uint64_t>(1, versions / options_.batch_size);
  if (!options_.batches_per_epoch && natural > UINT32_MAX) {
    throw std::invalid_argument("batches_per_epoch: an epoch of " + std::to_string(natural) +
                                " batches has more than 2**32; choose a number below");
  }
  batches_ = options_.batches_per_epoch ? options_.batches_per_epoch : static_cast<std::uint32_t>(natural);
}

// A bitmap for each language, then one of the groups in any language ("same") or in two or more ("mixed").
void Plan::find_languages() {
  const auto count = static_cast<std::uint32_t>(options_.languages.size());
  bitmaps_.reserve(count + 1);
  std::vector<const Bitmap*> all;
  const std::size_t words = (std::size_t{corpus_.groups} + 63) / 64;
  for (const std::uint32_t language : options_.languages) {
    bitmaps_.emplace_back(corpus_.groups, corpus_.present_LW + words * language);
    all.push_back(&bitmaps_.back());
  }
  bitmaps_.push_back(Bitmap::common(corpus_.groups, all, options_.cross == Cross::kMixed ? 2 : 1));
  complete_ = true;
  const auto& weights = options_.language_weights;
  equal_language_weights_ =
      std::adjacent_find(weights.begin(), weights.end(), std::not_equal_to()) == weights.end();
  for (std::uint32_t language = 0; language < count; ++language) {
    coverage_.push_back(bitmaps_[language].count());
    complete_ &= bitmaps_[language].full();
    if (coverage_.back() == 0) {
      throw std::invalid_argument("languages: no group has a version in '" +
                                  options_.language_names[language] + "'");
    }
  }
}

std::string Plan::too_small(Mode mode, int query, int passage, const Cell* cell, std::uint64_t groups) const {
  std::string what = mode == Mode::kMono   ? "language '" + options_.language_names[query] + "'"
                     : query >= 0          ? "language pair '" + options_.language_names[query] + "-" +
                                                 options_.language_names[passage] + "'"
                     : mode != Mode::kSame ? "groups in two or more languages"
                                           : "all languages";
  if (cell) what += ", source '" + options_.source_names[cell->source] + "'";
  return "batch_size " + std::to_string(options_.batch_size) + " cannot be filled from " + what + ": " +
         std::to_string(groups) + " groups";
}

// One stream of the groups in `bitmap`, or one for each source. `optional`: leave it out where it cannot fill
// a batch.
void Plan::add_streams(Mode mode, int query, int passage, double weight, std::uint32_t bitmap, bool optional,
                       Choice& choice, std::vector<double>& weights) {
  std::vector<Cell> cells;
  std::vector<double> cell_weights;
  for (std::uint32_t source = 0; source < corpus_.sources; ++source) {
    const auto rank = [&](std::uint32_t of) {
      return bitmaps_[bitmap].rank(static_cast<std::uint32_t>(corpus_.source_indptr[of]));
    };
    const std::uint32_t first = rank(source), count = rank(source + 1) - first;
    const double of_source = options_.source_weights.empty() ? std::pow(count, 1 / options_.temperature)
                                                             : options_.source_weights[source];
    if (count == 0 || of_source == 0) continue;
    cells.push_back({0, source, bitmap, first, count, 0, 0});
    cell_weights.push_back(of_source);
  }
  const double total = std::accumulate(cell_weights.begin(), cell_weights.end(), 0.0);
  const bool by_size = options_.source_weights.empty() && options_.temperature == 1;

  const auto add = [&](std::vector<Cell> of_stream, double probability) {
    std::uint64_t left = 0, groups = 0;
    for (std::size_t i = of_stream.size(); i-- > 0;) {
      left += of_stream[i].weight;
      of_stream[i].weight_left = left;
      groups += of_stream[i].count;
    }
    // A cell deals at most its share rounded up, and at most one more for each cell before it.
    const Cell* small = nullptr;
    std::uint64_t most = 0;
    if (!by_size && of_stream.size() > 1) {
      for (const Cell& cell : of_stream) {
        const auto share =
            static_cast<std::uint64_t>(static_cast<double>(options_.batch_size) *
                                       static_cast<double>(cell.weight) / static_cast<double>(left));
        if (share > cell.count) small = &cell, most = cell.count;
      }
    }
    if (groups < options_.batch_size)
      small = of_stream.size() == 1 ? of_stream.data() : nullptr, most = groups;
    const bool fills = groups >= options_.batch_size && !small;
    if (options_.dedup != Dedup::kNone && !fills) {
      const Cell* named = corpus_.sources > 1 ? small : nullptr;
      const std::string reason = too_small(mode, query, passage, named, most);
      if (optional) {
        if (groups) left_out_.push_back(reason);
      } else if (choice.error.empty()) {
        choice.error = reason;
      }
      return;
    }
    if (groups == 0) {
      if (!optional && choice.error.empty()) choice.error = too_small(mode, query, passage, nullptr, 0);
      return;
    }
    for (Cell& cell : of_stream) cell.id = cell_count_++;
    choice.streams.push_back(static_cast<std::uint32_t>(streams_.size()));
    weights.push_back(probability);
    streams_.push_back({mode, query, passage, std::move(of_stream)});
  };

  for (std::size_t i = 0; i < cells.size(); ++i) {
    const double share = cell_weights[i] / total;
    cells[i].weight = by_size ? cells[i].count
                              : std::max<std::uint64_t>(
                                    1, static_cast<std::uint64_t>(share * static_cast<double>(kWeightOne)));
    if (options_.single_source) add({cells[i]}, weight * share);
  }
  if (!options_.single_source || cells.empty()) add(std::move(cells), weight);
}

void Plan::build_mono() {
  std::vector<double> weights;
  for (std::size_t language = 0; language < options_.languages.size(); ++language) {
    const int l = static_cast<int>(language);
    if (options_.language_weights[language] == 0) continue;
    add_streams(Mode::kMono, l, l, options_.language_weights[language], static_cast<std::uint32_t>(language),
                false, mono_, weights);
  }
  mono_.cumulative.resize(weights.size());
  std::partial_sum(weights.begin(), weights.end(), mono_.cumulative.begin());
}

void Plan::build_cross() {
  const auto count = static_cast<std::uint32_t>(options_.languages.size());
  std::vector<double> weights;
  if (options_.cross != Cross::kPaired) {
    const Mode mode = options_.mix_rows                 ? Mode::kRows
                      : options_.cross == Cross::kMixed ? Mode::kCross
                                                        : Mode::kSame;
    if (mode != Mode::kSame && count < 2) {
      cross_.error = std::string(options_.mix_rows ? "mix 'rows'" : "alpha below 1") +
                     " needs two or more languages, got one: '" + options_.language_names[0] + "'";
    } else {
      add_streams(mode, -1, -1, 1, count, false, cross_, weights);
    }
  } else {
    for (std::uint32_t q = 0; q < count; ++q) {
      for (std::uint32_t p = 0; p < count; ++p) {
        const double weight = options_.language_weights[q] * options_.language_weights[p];
        if (q == p || weight == 0) continue;
        std::uint32_t bitmap = bitmaps_[q].full() ? p : q;
        if (!bitmaps_[q].full() && !bitmaps_[p].full()) {
          bitmap = static_cast<std::uint32_t>(bitmaps_.size());
          bitmaps_.push_back(Bitmap::common(corpus_.groups, {&bitmaps_[q], &bitmaps_[p]}, 2));
        }
        add_streams(Mode::kCross, static_cast<int>(q), static_cast<int>(p), weight, bitmap, true, cross_,
                    weights);
      }
    }
    if (cross_.streams.empty()) {
      cross_.error = count < 2 ? "alpha below 1 needs two or more languages, got one: '" +
                                     options_.language_names[0] + "'"
                               : "batch_size " + std::to_string(options_.batch_size) +
                                     " cannot be filled from any pair of languages";
    }
  }
  cross_.cumulative.resize(weights.size());
  std::partial_sum(weights.begin(), weights.end(), cross_.cumulative.begin());
}

std::uint32_t Plan::existing_version(std::uint32_t group, std::uint32_t language) const {
  const auto v = static_cast<std::uint32_t>(version(group, language));
  if (v < corpus_.versions) return v;
  throw std::runtime_error("version_GL changed after the sampler was made: group " + std::to_string(group) +
                           " has no version in '" + options_.language_names[language] + "'");
}

Span Plan::span(std::int64_t text) const {
  if (text < 0 || text >= corpus_.texts) {
    throw std::runtime_error("version_indptr points to text " + std::to_string(text) + " of " +
                             std::to_string(corpus_.texts));
  }
  const std::int64_t begin = corpus_.text_indptr[text], end = corpus_.text_indptr[text + 1];
  if (begin < 0 || end < begin || end > corpus_.tokens) {
    throw std::runtime_error("text_indptr: text " + std::to_string(text) + " spans tokens " +
                             std::to_string(begin) + ":" + std::to_string(end) + " of " +
                             std::to_string(corpus_.tokens));
  }
  return {begin, end - begin};
}

// Group -> version -> text -> tokens are dependent cache misses, so each step runs over a chunk of rows and
// asks for what the next step will read.
void Plan::locate(const Row* rows, std::size_t count, Located& out) const {
  for (auto* texts : {&out.query_texts, &out.passage_texts, &out.passage_ends}) texts->resize(count);
  for (auto* spans : {&out.query_spans, &out.passage_spans}) spans->resize(count);
  for (std::size_t from = 0; from < count; from += kChunk) {
    const std::size_t to = std::min(from + kChunk, count);
    for (std::size_t i = from; i < to; ++i) {
      __builtin_prefetch(&corpus_.version_GL[std::size_t{rows[i].group} * corpus_.languages]);
    }
    for (std::size_t i = from; i < to; ++i) {
      out.query_texts[i] = existing_version(rows[i].group, rows[i].query);
      out.passage_texts[i] = existing_version(rows[i].group, rows[i].passage);
      __builtin_prefetch(&corpus_.version_indptr[out.query_texts[i]]);
      __builtin_prefetch(&corpus_.version_indptr[out.passage_texts[i]]);
    }
    for (std::size_t i = from; i < to; ++i) {
      const std::int64_t passage = out.passage_texts[i];
      out.query_texts[i] = corpus_.version_indptr[out.query_texts[i]];
      out.passage_texts[i] = corpus_.version_indptr[passage] + 1;
      out.passage_ends[i] = corpus_.version_indptr[passage + 1];
      __builtin_prefetch(&corpus_.text_indptr[out.query_texts[i]]);
      __builtin_prefetch(&corpus_.text_indptr[out.passage_texts[i]]);
    }
    for (std::size_t i = from; i < to; ++i) {
      out.query_spans[i] = span(out.query_texts[i]);
      out.passage_spans[i] = span(out.passage_texts[i]);
    }
  }
}

Schedule::Schedule(const Plan& plan, std::uint32_t epoch, const std::vector<double>& alphas)
    : epoch_(epoch), entries_(plan.batches()) {
  const Options& options = plan.options();
  if (options.predefined_NB3) return;
  std::vector<std::uint32_t> dealt(plan.streams());
  if (alphas.size() == 1)
    alphas_.assign(1, alphas);
  else if (options.mix_rows)
    alphas_.resize(std::max<std::size_t>(plan.streams(), 2));
  double block[kBlock], alpha = 0, to_cumulative[2] = {};
  for (std::uint32_t index = 0; index < plan.batches(); ++index) {
    if (index % kBlock == 0) draw_block(options, epoch, index / kBlock, block);
    double x = block[index % kBlock];
    if (index == 0 || alphas.size() > 1) {
      alpha = alphas[index];
      to_cumulative[1] = plan.choice(true).total() / alpha;  // infinite at 0, and then not used
      to_cumulative[0] = plan.choice(false).total() / (1 - alpha);
    }
    const bool mono = !options.mix_rows && x < alpha;
    const Plan::Choice& choice = plan.choice(mono);
    if (!choice.error.empty()) throw std::invalid_argument(choice.error);
    // Which mode and stream it is cannot be predicted, so nothing here branches on it while streams are few.
    const auto& cumulative = choice.cumulative;
    x = options.mix_rows ? x * choice.total() : (mono ? x : x - alpha) * to_cumulative[mono];
    std::size_t at = 0;
    if (cumulative.size() <= 32) {
      for (std::size_t i = 0; i + 1 < cumulative.size(); ++i) at += x >= cumulative[i];
    } else {
      at = static_cast<std::size_t>(std::upper_bound(cumulative.begin(), cumulative.end() - 1, x) -
                                    cumulative.begin());
    }
    const std::uint32_t stream = choice.streams[at];
    entries_[index] = {stream, dealt[stream]++};
    if (options.mix_rows && alphas.size() > 1) alphas_[stream].push_back(alpha);
  }
}

}  // namespace hybridfast::sampler
