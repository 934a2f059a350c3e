// From a plan to the rows of its batches: dealing, drawing languages, parting duplicates.
#include <algorithm>
#include <bit>
#include <functional>
#include <numeric>
#include <stdexcept>
#include <utility>

#include "sampler/plan.h"

namespace hybridfast::sampler {
namespace {

constexpr std::uint32_t kTries = 16;   // partners a duplicate row asks to change places
constexpr std::size_t kWindows = 128;  // most windows a planner keeps
constexpr std::size_t kOrders = 512;   // most orders a planner keeps; those of small cells are 8 KiB each
constexpr std::size_t kAhead = 16;     // rows between a prefetch and its use

// An item and a query as keys beside the passages' hashes. To multiply by an odd number loses nothing: what
// differs still does.
std::uint64_t item_key(std::uint32_t item) {
  return (std::uint64_t{item} + 1) * 0x9E3779B97F4A7C15;
}
std::uint64_t query_key(std::uint64_t hash) {
  return (hash ^ 0xD1B54A32D192ED03) * 0x9E3779B97F4A7C15;
}

// Of a stream's first `rows` rows, those that its cells 0..S-1 deal. Each cell takes its share of what the
// earlier cells leave, rounded down. Both a share and what it leaves grow by 0 or 1 when `rows` grows by 1,
// so no cell ever takes a row back.
template <class Use>
void shares_before(const Stream& stream, std::uint64_t rows, Use use) {
  for (std::size_t i = 0; i < stream.cells.size(); ++i) {
    const Cell& cell = stream.cells[i];
    const auto share =
        static_cast<std::uint64_t>(static_cast<unsigned __int128>(rows) * cell.weight / cell.weight_left);
    use(i, share);
    rows -= share;
  }
}

}  // namespace

Planner::Planner(const Plan& plan)
    : plan_(plan),
      windows_(std::min(plan.streams(), kWindows)),
      orders_(std::min(2 * plan.cells(), kOrders)) {}

void Planner::plan(const Schedule& schedule, std::uint32_t index, PlannedBatch& out) {
  const Options& options = plan_.options();
  out.mask_groups.clear();
  out.flagged.clear();
  if (options.predefined_NB3) return predefined(index, out);

  const auto [stream_index, k] = schedule[index];
  const Stream& stream = plan_.stream(stream_index);
  const std::uint32_t rows = options.batch_size;
  out.mode = stream.mode;
  out.rows.resize(rows);

  const std::uint32_t span = options.length_buckets > 1 ? options.length_buckets : options.dedup_window;
  const std::uint32_t first = k / span * span;
  const bool items_meet =
      options.dedup != Dedup::kNone && (plan_.corpus().item_G || meets_itself(stream, first, span));
  bool crowded = false;
  if (items_meet || options.dedup == Dedup::kText || options.length_buckets > 1) {
    const Window& whole = window(schedule, stream_index, first, span, items_meet);
    std::copy_n(whole.rows.begin() + std::ptrdiff_t{k - first} * rows, rows, out.rows.begin());
    crowded = whole.crowded >> (k - first) & 1;
  } else {
    deal(schedule, stream_index, k, out.rows.data());
  }
  // Or a rank, which takes a slice, would get one source, or the long texts.
  if (stream.cells.size() > 1 || options.length_buckets > 1) {
    Random random(options.seed, word(Purpose::kShuffle), schedule.epoch(), index);
    shuffle(rows, random, [&](std::uint32_t i, std::uint32_t j) { std::swap(out.rows[i], out.rows[j]); });
  }
  if (crowded) flag(out, items_meet);
}

void Planner::predefined(std::uint32_t index, PlannedBatch& out) {
  const std::uint32_t rows = plan_.options().batch_size;
  const std::int32_t* row = plan_.options().predefined_NB3 + std::size_t{index} * rows * 3;
  out.rows.resize(rows);
  bool cross = false, several = false;
  for (std::uint32_t i = 0; i < rows; ++i, row += 3) {
    if (row[0] < 0 || static_cast<std::uint32_t>(row[0]) >= plan_.corpus().groups) {
      throw std::runtime_error("batches changed after the sampler was made: group " + std::to_string(row[0]));
    }
    out.rows[i] = {static_cast<std::uint32_t>(row[0]), static_cast<std::uint16_t>(row[1]),
                   static_cast<std::uint16_t>(row[2])};
    cross |= row[1] != row[2];
    several |= out.rows[i].query != out.rows[0].query;
  }
  out.mode = cross ? Mode::kCross : several ? Mode::kSame : Mode::kMono;
  if (plan_.options().dedup != Dedup::kNone) flag(out, true);
}

const Permutation& Planner::order(std::uint32_t epoch, const Cell& cell, std::uint32_t pass) {
  // Two places a cell: where one pass ends and the next begins, batches need both in turn.
  auto& kept = orders_[(2 * std::size_t{cell.id} + pass % 2) % orders_.size()];
  if (!kept || kept->epoch != epoch || kept->cell != cell.id || kept->pass != pass) {
    kept.emplace(
        Order{epoch, cell.id, pass,
              Permutation(cell.count, plan_.options().seed, word(Purpose::kOrder, cell.id), epoch, pass)});
  }
  return kept->permutation;
}

// Whether some cell ends a pass inside these batches, where a group of its end may meet itself.
bool Planner::meets_itself(const Stream& stream, std::uint32_t first, std::uint32_t batches) const {
  const std::uint64_t rows = plan_.options().batch_size;
  bool meets = false;
  std::uint64_t until = rows * (std::uint64_t{first} + batches);
  shares_before(stream, rows * first, [&](std::size_t i, std::uint64_t from) {
    const Cell& cell = stream.cells[i];
    const auto to =
        static_cast<std::uint64_t>(static_cast<unsigned __int128>(until) * cell.weight / cell.weight_left);
    until -= to;
    meets |= to > from && from / cell.count != (to - 1) / cell.count;
  });
  return meets;
}

void Planner::deal(const Schedule& schedule, std::uint32_t stream_index, std::uint32_t k, Row* out) {
  const Stream& stream = plan_.stream(stream_index);
  const std::uint64_t rows = plan_.options().batch_size;
  const double alpha = stream.mode == Mode::kRows ? schedule.alpha(stream_index, k) : 0;
  std::uint64_t until = rows * (std::uint64_t{k} + 1);
  shares_before(stream, rows * k, [&](std::size_t i, std::uint64_t from) {
    const Cell& cell = stream.cells[i];
    const auto to =
        static_cast<std::uint64_t>(static_cast<unsigned __int128>(until) * cell.weight / cell.weight_left);
    until -= to;
    deal_cell(stream, cell, schedule.epoch(), alpha, from, to, out);
    out += to - from;
  });
}

// The rows at positions from .. to - 1 of a cell.
void Planner::deal_cell(const Stream& stream, const Cell& cell, std::uint32_t epoch, double alpha,
                        std::uint64_t from, std::uint64_t to, Row* out) {
  while (from < to) {
    const std::uint64_t pass = from / cell.count;
    const auto at = static_cast<std::uint32_t>(from % cell.count);
    const auto count = static_cast<std::uint32_t>(std::min<std::uint64_t>(to - from, cell.count - at));
    elements_.resize(std::max<std::size_t>(elements_.size(), count));
    order(epoch, cell, static_cast<std::uint32_t>(pass)).range(at, count, elements_.data());
    const auto query = static_cast<std::uint16_t>(stream.query),
               passage = static_cast<std::uint16_t>(stream.passage);
    if (plan_.dealt_in_place(cell)) {
      for (std::uint32_t i = 0; i < count; ++i) out[i] = {cell.first + elements_[i], query, passage};
    } else {
      for (std::uint32_t i = 0; i < count; ++i) out[i] = {plan_.group(cell, elements_[i]), query, passage};
    }
    if (stream.query < 0) draw_languages(stream, cell, epoch, alpha, from, count, out);
    from += count;
    out += count;
  }
}

// Languages among those the row's group exists in, by weight, keyed by the row's position in its cell.
void Planner::draw_languages(const Stream& stream, const Cell& cell, std::uint32_t epoch, double alpha,
                             std::uint64_t from, std::uint32_t count, Row* out) const {
  const Options& options = plan_.options();
  const auto languages = static_cast<std::uint32_t>(options.languages.size());
  std::uint16_t present[kMaxLanguages];
  double weights[kMaxLanguages];
  double total = 0;
  std::uint32_t found = 0;
  const auto find = [&](std::uint32_t group) {
    found = 0, total = 0;
    for (std::uint32_t l = 0; l < languages; ++l) {
      if (!plan_.complete() && plan_.version(group, l) < 0) continue;
      present[found] = static_cast<std::uint16_t>(l);
      total += weights[found++] = options.language_weights[l];
    }
  };
  const auto draw = [&](double x) {
    std::uint32_t i = 0;
    for (x *= total; i + 1 < found && x >= weights[i]; ++i) x -= weights[i];
    return i;
  };
  if (plan_.complete()) find(0);
  PhiloxLanes words, kinds;
  for (std::uint32_t i = 0; i < count; ++i) {
    const std::uint32_t lane = i % kPhiloxLanes;
    if (lane == 0) words = philox_lanes(word(Purpose::kLanguages, cell.id), epoch, from + i, options.seed);
    bool same = stream.mode == Mode::kSame;
    if (stream.mode == Mode::kRows) {  // batches' kinds have cell 0
      if (lane == 0) kinds = philox_lanes(word(Purpose::kStream, cell.id + 1), epoch, from + i, options.seed);
      same = unit(kinds[0][lane], kinds[1][lane]) < alpha;
    }
    if (!plan_.complete()) {
      if (i + kAhead < count) {
        __builtin_prefetch(
            &plan_.corpus().version_GL[std::size_t{out[i + kAhead].group} * plan_.corpus().languages]);
      }
      find(out[i].group);
      if (found < (stream.mode == Mode::kSame ? 1 : 2)) {
        throw std::runtime_error("version_GL changed after the sampler was made: group " +
                                 std::to_string(out[i].group));
      }
    }
    std::uint32_t q, p;
    if (plan_.equal_language_weights()) {
      q = scale(words[0][lane], found);
      p = scale(words[2][lane], found - 1);
      p += p >= q;
    } else {
      q = draw(unit(words[0][lane], words[1][lane]));
      // The passage's among the others: take the query's weight away, draw, and put it back.
      const double weight = std::exchange(weights[q], 0.0);
      total -= weight;
      p = draw(unit(words[2][lane], words[3][lane]));
      if (p == q && q > 0) --p;  // where x is within rounding of 1
      weights[q] = weight;
      total += weight;
    }
    out[i].query = present[q];
    out[i].passage = present[same ? q : p];
  }
}

const Planner::Window& Planner::window(const Schedule& schedule, std::uint32_t stream, std::uint32_t first,
                                       std::uint32_t span, bool items_meet) {
  const std::uint32_t epoch = schedule.epoch();
  Window& kept = windows_[stream % windows_.size()];
  if (!kept.rows.empty() && kept.epoch == epoch && kept.stream == stream && kept.first == first) return kept;
  const std::size_t rows = plan_.options().batch_size;
  kept.rows.clear();  // should what follows throw, the window stays unused
  std::vector<Row> dealt = std::move(kept.rows);
  dealt.resize(span * rows);
  for (std::uint32_t i = 0; i < span; ++i) deal(schedule, stream, first + i, dealt.data() + i * rows);
  kept = {epoch, stream, first, 0, std::move(dealt)};
  if (plan_.options().length_buckets > 1) sort_by_length(kept, span);
  if (items_meet || plan_.options().dedup == Dedup::kText) part_duplicates(kept, span, items_meet);
  return kept;
}

// Sorted by the passage's length, then the query's; the batch of a length is drawn, or training would see it
// rise.
void Planner::sort_by_length(Window& window, std::uint32_t span) {
  const std::size_t rows = plan_.options().batch_size;
  plan_.locate(window.rows.data(), window.rows.size(), located_);
  const auto length = [](const Span& text) {
    return static_cast<std::uint64_t>(std::min<std::int64_t>(text.count, 0xFFFF));
  };
  sort_keys_.resize(window.rows.size());
  for (std::size_t i = 0; i < window.rows.size(); ++i) {
    sort_keys_[i] = length(located_.passage_spans[i]) << 48 | length(located_.query_spans[i]) << 32 | i;
  }
  std::sort(sort_keys_.begin(), sort_keys_.end());
  std::vector<std::uint32_t> place(span);
  std::iota(place.begin(), place.end(), 0U);
  Random random(plan_.options().seed, word(Purpose::kDeal, window.stream + 1), window.epoch, window.first);
  shuffle(span, random, [&](std::uint32_t i, std::uint32_t j) { std::swap(place[i], place[j]); });
  sorted_.resize(window.rows.size());
  for (std::size_t i = 0; i < sorted_.size(); ++i) {
    sorted_[place[i / rows] * rows + i % rows] = window.rows[sort_keys_[i] & 0xFFFFFFFF];
  }
  window.rows.swap(sorted_);
}

// The keys of the rows' texts, by prefetched steps: two dependent cache misses a text otherwise.
void Planner::text_keys(const Row* rows, std::size_t count) {
  const Corpus& corpus = plan_.corpus();
  const auto& columns = plan_.options().languages;
  const bool queries = corpus.query_hash_V;
  passages_.resize(count), passage_keys_.resize(count);
  queries_.resize(count), query_keys_.resize(count);
  for (std::size_t i = 0; i < count; ++i) {
    if (i + kAhead < count) {
      const Row& ahead = rows[i + kAhead];
      __builtin_prefetch(
          &corpus.version_GL[std::size_t{ahead.group} * corpus.languages + columns[ahead.passage]]);
    }
    passages_[i] = plan_.existing_version(rows[i].group, rows[i].passage);
    if (queries) queries_[i] = plan_.existing_version(rows[i].group, rows[i].query);
  }
  for (std::size_t i = 0; i < count; ++i) {
    if (i + kAhead < count) {
      __builtin_prefetch(&corpus.passage_hash_V[passages_[i + kAhead]]);
      if (queries) __builtin_prefetch(&corpus.query_hash_V[queries_[i + kAhead]]);
    }
    passage_keys_[i] = corpus.passage_hash_V[passages_[i]];
    if (queries) query_keys_[i] = query_key(corpus.query_hash_V[queries_[i]]);
  }
}

// Table values count a key's rows in each of the window's batches, four bits to a batch; 15 means 15 or more
// and stays.
void Planner::part_duplicates(Window& window, std::uint32_t span, bool items_meet) {
  const Options& options = plan_.options();
  const bool texts = options.dedup == Dedup::kText, queries = texts && plan_.corpus().query_hash_V;
  const std::size_t rows = options.batch_size, count = window.rows.size();
  if (texts) text_keys(window.rows.data(), count);
  table_.reset(count * (texts + queries + items_meet));

  const auto for_keys = [&](std::size_t i, auto use) {
    if (texts) use(table_[passage_keys_[i]]);
    if (queries) use(table_[query_keys_[i]]);
    if (items_meet) use(table_[item_key(plan_.item(window.rows[i].group))]);
  };
  const auto prefetch = [&](std::size_t i) {
    if (texts) table_.prefetch(passage_keys_[i]);
    if (queries) table_.prefetch(query_keys_[i]);
    if (items_meet) table_.prefetch(item_key(plan_.item(window.rows[i].group)));
  };
  const auto rows_in = [](std::uint64_t counts, std::size_t batch) { return counts >> (4 * batch) & 15; };
  const auto one = [](std::uint64_t counts, std::size_t batch) {
    return std::uint64_t{(counts >> (4 * batch) & 15) < 15} << (4 * batch);
  };
  const auto enter = [&](std::size_t i, std::size_t batch) {
    for_keys(i, [&](std::uint64_t& counts) { counts += one(counts, batch); });
  };
  const auto leave = [&](std::size_t i, std::size_t batch) {
    for_keys(i, [&](std::uint64_t& counts) { counts -= one(counts, batch); });
  };

  std::vector<std::uint32_t>& duplicates = elements_;
  duplicates.clear();
  for (std::size_t i = 0; i < count; ++i) {
    if (i + kAhead < count) prefetch(i + kAhead);
    const std::size_t home = i / rows;
    std::uint64_t before = 0;
    for_keys(i, [&](std::uint64_t& counts) {
      before |= rows_in(counts, home);
      counts += one(counts, home);
    });
    if (before) duplicates.push_back(static_cast<std::uint32_t>(i));
  }

  // The batches that hold one of row i's keys, as the lowest bits of their counts.
  const std::uint64_t lowest = 0x1111111111111111 >> (4 * (kMaxWindow - span));
  const auto where = [&](std::size_t i) {
    std::uint64_t held = 0;
    for_keys(i, [&](std::uint64_t counts) { held |= counts; });
    held |= held >> 2;  // any of a batch's four bits, in two steps
    return (held | held >> 1) & lowest;
  };
  Random random(options.seed, word(Purpose::kPartner, window.stream), window.epoch, window.first);
  for (std::size_t d = 0; d < duplicates.size(); ++d) {
    if (d + kAhead < duplicates.size()) prefetch(duplicates[d + kAhead]);
    const std::size_t i = duplicates[d], home = i / rows;
    std::uint64_t most = 0;
    for_keys(i, [&](std::uint64_t counts) { most = std::max(most, rows_in(counts, home)); });
    if (most == 1) continue;  // its like has left
    const std::uint64_t free = lowest & ~where(i);
    bool placed = false;
    for (std::uint32_t attempt = 0; free && !placed && attempt < kTries; ++attempt) {
      std::uint64_t choices = free;
      for (auto skip = random.below(static_cast<std::uint32_t>(std::popcount(free))); skip; --skip) {
        choices &= choices - 1;
      }
      const auto batch = static_cast<std::size_t>(std::countr_zero(choices)) / 4;
      const std::size_t other = batch * rows + random.below(static_cast<std::uint32_t>(rows));
      if (where(other) >> (4 * home) & 1) continue;
      leave(i, home), leave(other, batch);
      enter(i, batch), enter(other, home);
      std::swap(window.rows[i], window.rows[other]);
      if (texts) std::swap(passage_keys_[i], passage_keys_[other]);
      if (queries) std::swap(query_keys_[i], query_keys_[other]);
      placed = true;
    }
    if (!placed) window.crowded |= std::uint64_t{1} << home;
  }
}

// Flags the rows that repeat an earlier row's item, query or passage, and gives them its mask group.
void Planner::flag(PlannedBatch& batch, bool items_meet) {
  const bool texts = plan_.options().dedup == Dedup::kText, queries = texts && plan_.corpus().query_hash_V;
  const std::size_t rows = batch.rows.size();
  if (texts) text_keys(batch.rows.data(), rows);
  table_.reset(rows * (texts + queries + items_meet));
  batch.mask_groups.resize(rows);
  batch.flagged.assign(rows, 0);
  for (std::size_t i = 0; i < rows; ++i) {
    if (texts && i + kAhead < rows) table_.prefetch(passage_keys_[i + kAhead]);
    if (queries && i + kAhead < rows) table_.prefetch(query_keys_[i + kAhead]);
    batch.mask_groups[i] = plan_.item(batch.rows[i].group);
    const auto meet = [&](std::uint64_t key) {  // values are row numbers plus 1
      std::uint64_t& earlier = table_[key];
      if (!earlier) {
        earlier = i + 1;
        return;
      }
      const std::uint32_t theirs = batch.mask_groups[earlier - 1], ours = batch.mask_groups[i];
      if (batch.flagged[i] && theirs != ours) {  // it repeats two rows that did not know of each other
        std::replace(batch.mask_groups.begin(), batch.mask_groups.begin() + static_cast<std::ptrdiff_t>(i),
                     ours, theirs);
      }
      batch.mask_groups[i] = theirs;
      batch.flagged[i] = 1;
    };
    if (texts) meet(passage_keys_[i]);
    if (queries) meet(query_keys_[i]);
    if (items_meet) meet(item_key(plan_.item(batch.rows[i].group)));
  }
}

}  // namespace hybridfast::sampler
