#include "sampler/gather.h"

#include <sys/stat.h>

#include <algorithm>
#include <cstring>
#include <new>
#include <stdexcept>

#include "sampler/courtesy.h"

namespace hybridfast::sampler {
namespace {

constexpr std::size_t kAhead = 16;                     // texts between a prefetch and its use
constexpr std::size_t kTurn = 64;                      // texts between two chances for others: some 10 us
constexpr std::uint64_t kSeveral = ~std::uint64_t{0};  // mask groups of one passage

}  // namespace

void Memory::grow(std::size_t bytes) {
  if (bytes <= bytes_) return;
  std::free(data_);
  bytes_ = 0;
  const std::size_t lines =
      (bytes + bytes / 4) / 64 + 1;  // room to spare, or every record length reallocates
  data_ = std::aligned_alloc(64, lines * 64);
  if (!data_) throw std::bad_alloc();
  bytes_ = lines * 64;
}

// To read a mapped file beyond its new end would end the process (SIGBUS).
void Gatherer::check_files() const {
  for (const File& file : plan_.corpus().files) {
    struct stat now{};
    if (stat(file.path.c_str(), &now) != 0) throw std::runtime_error("corpus file is gone: " + file.path);
    const std::int64_t modified = now.st_mtim.tv_sec * std::int64_t{1000000000} + now.st_mtim.tv_nsec;
    if (now.st_size != file.bytes || modified != file.modified_ns) {
      throw std::runtime_error("corpus file was changed after the sampler was made: " + file.path + " (" +
                               std::to_string(file.bytes) + " bytes then, " + std::to_string(now.st_size) +
                               " now)");
    }
  }
}

void Gatherer::build(const Schedule& schedule, std::uint32_t index, Batch& out) {
  check_files();
  planner_.plan(schedule, index, planned_);
  if (options_.second != Second::kNone) choose_seconds(schedule.epoch(), index);
  give_way();

  const std::size_t rows = planned_.rows.size() / options_.world_size;
  const std::size_t first = rows * options_.rank;
  const Row* row = planned_.rows.data() + first;
  out.epoch = schedule.epoch();
  out.index = index;
  out.mode = planned_.mode;
  out.rows = rows;
  auto* groups = out.groups.resize<std::int64_t>(rows);
  auto* query_languages = out.query_languages.resize<std::int64_t>(rows);
  auto* passage_languages = out.passage_languages.resize<std::int64_t>(rows);
  auto* mask_groups = out.mask_groups.resize<std::int64_t>(rows);
  auto* flagged = out.flagged.resize<std::uint8_t>(rows);
  out.flagged_found = 0;
  out.query_language_rows.assign(plan_.options().languages.size(), 0);
  out.passage_language_rows.assign(plan_.options().languages.size(), 0);
  for (std::size_t i = 0; i < rows; ++i) {
    groups[i] = row[i].group;
    query_languages[i] = row[i].query;
    passage_languages[i] = row[i].passage;
    mask_groups[i] = mask_group(first + i);
    flagged[i] = planned_.flagged.empty() ? 0 : planned_.flagged[first + i];
    out.flagged_found += flagged[i];
    ++out.query_language_rows[row[i].query];
    ++out.passage_language_rows[row[i].passage];
  }
  copy_vectors(row, out);
  if (options_.second != Second::kNone) {
    auto* second_queries = out.second_query_languages.resize<std::int64_t>(rows);
    auto* second_passages = out.second_passage_languages.resize<std::int64_t>(rows);
    for (std::size_t i = 0; i < rows; ++i) {
      second_queries[i] = seconds_[first + i].query;
      second_passages[i] = seconds_[first + i].passage;
    }
  }
  const Corpus& corpus = plan_.corpus();
  if (!corpus.has_tokens()) return;

  plan_.locate(row, rows, located_);
  write(located_.query_spans, out.queries);
  write(located_.passage_spans, out.passages);
  if (options_.negatives) {
    choose_negatives(out);
    negative_spans_.resize(negative_texts_.size());
    for (std::size_t i = 0; i < negative_texts_.size(); ++i)
      negative_spans_[i] = plan_.span(negative_texts_[i]);
    write(negative_spans_, out.negatives);
  }
  if (options_.second == Second::kNone) return;
  plan_.locate(seconds_.data() + first, rows, located_);
  if (options_.wants(Second::kQueries)) write(located_.query_spans, out.second_queries);
  if (options_.wants(Second::kPassages)) write(located_.passage_spans, out.second_passages);
}

// Another language of each row's group for its query, and one for its passage, all in equal probability;
// where there is none, the row's own. Keyed by the row's place in the global batch. A side that is not asked
// for keeps its language, and the other's draw does not depend on it.
void Gatherer::choose_seconds(std::uint32_t epoch, std::uint32_t index) {
  const auto count = static_cast<std::uint16_t>(plan_.options().languages.size());
  seconds_ = planned_.rows;
  for (std::size_t i = 0; i < seconds_.size(); ++i) {
    Row& row = seconds_[i];
    languages_.clear();
    for (std::uint16_t l = 0; l < count; ++l) {
      if (plan_.version(row.group, l) >= 0) languages_.push_back(l);
    }
    if (languages_.size() < 2) continue;
    Random random(plan_.options().seed, word(Purpose::kSecond, static_cast<std::uint32_t>(i)), epoch, index);
    const auto other = [&](std::uint16_t than) {
      const std::uint32_t drawn = random.below(static_cast<std::uint32_t>(languages_.size()) - 1);
      // Of the others, in order: those from `than` on lie one further.
      return languages_[drawn + (languages_[drawn] >= than)];
    };
    const std::uint16_t query = other(row.query), passage = other(row.passage);
    if (options_.wants(Second::kQueries)) row.query = query;
    if (options_.wants(Second::kPassages)) row.passage = passage;
  }
  if (options_.wants(Second::kPassages)) unite_seconds();
}

// Rows are masked alike, too, where one's second passage is another's passage, or its second one: it would be
// a positive and a negative else.
void Gatherer::unite_seconds() {
  const Corpus& corpus = plan_.corpus();
  if (plan_.options().dedup != Dedup::kText || !corpus.passage_hash_V) return;
  const std::size_t rows = planned_.rows.size();
  auto& masks = planned_.mask_groups;
  if (planned_.flagged.empty()) {
    planned_.flagged.assign(rows, 0);
    masks.resize(rows);
    for (std::size_t i = 0; i < rows; ++i) masks[i] = plan_.item(planned_.rows[i].group);
  }
  passages_.reset(2 * rows);
  for (const auto* all : {&planned_.rows, &seconds_}) {
    for (std::size_t i = 0; i < rows; ++i) {
      const Row& row = (*all)[i];
      const std::uint32_t version = plan_.existing_version(row.group, row.passage);
      std::uint64_t& first = passages_[corpus.passage_hash_V[version]];  // row with this text, plus 1
      if (!first) first = i + 1;
      const std::uint32_t theirs = masks[first - 1], ours = masks[i];
      if (theirs != ours) std::replace(masks.begin(), masks.end(), ours, theirs);
    }
  }
}

void Gatherer::copy_vectors(const Row* row, Batch& out) const {
  out.group_vectors.resize(options_.group_vectors.size());
  for (std::size_t a = 0; a < out.group_vectors.size(); ++a) {
    const auto& [rows, bytes] = options_.group_vectors[a];
    auto* to = out.group_vectors[a].resize<std::byte>(out.rows * bytes);
    for (std::size_t i = 0; i < out.rows; ++i, to += bytes) {
      if (i % kTurn == 0) give_way();
      std::memcpy(to, rows + std::size_t{row[i].group} * bytes, bytes);
    }
  }
}

void Gatherer::prefetch(const Span& span) const {
  constexpr std::int64_t kLine = 64;
  const Corpus& corpus = plan_.corpus();
  const auto fetch = [&](const auto* ids) {
    const char* const bytes = reinterpret_cast<const char*>(ids + span.first);
    const auto count = span.count * static_cast<std::int64_t>(sizeof(*ids));
    for (std::int64_t at = 0; at < count + kLine - 1; at += kLine) __builtin_prefetch(bytes + at);
  };
  corpus.narrow_token_ids ? fetch(corpus.narrow_token_ids) : fetch(corpus.token_ids);
}

// What row i of the global batch is masked by.
std::uint32_t Gatherer::mask_group(std::size_t i) const {
  return planned_.flagged.empty() ? plan_.item(planned_.rows[i].group) : planned_.mask_groups[i];
}

// The mask group of each passage of the global batch, by its text.
void Gatherer::find_passages() {
  const Corpus& corpus = plan_.corpus();
  passages_.reset(planned_.rows.size());
  for (std::size_t i = 0; i < planned_.rows.size(); ++i) {
    const Row& row = planned_.rows[i];
    std::uint64_t& known = passages_[corpus.passage_hash_V[plan_.existing_version(row.group, row.passage)]];
    const std::uint64_t own = std::uint64_t{mask_group(i)} + 1;
    known = known == 0 || known == own ? own : kSeveral;
  }
}

// Up to `negatives` of each row's, keyed by the row's place in the global batch; all in equal probability.
// One that equals a passage of the batch is masked as that passage is; where the rows with that passage are
// not masked alike, it is left out.
void Gatherer::choose_negatives(Batch& out) {
  const Corpus& corpus = plan_.corpus();
  const bool compare = corpus.negative_hash_H && corpus.passage_hash_V;
  if (compare) find_passages();
  const std::size_t rows = out.rows, first_row = rows * options_.rank;
  auto* negative_rows = out.negative_rows.resize<std::int64_t>(rows * options_.negatives);
  auto* mask_groups = out.negative_mask_groups.resize<std::int64_t>(rows * options_.negatives);
  negative_texts_.clear();
  for (std::size_t i = 0; i < rows; ++i) {
    candidates_.clear();
    const std::int64_t first = located_.passage_texts[i] + 1;
    const Row& row = planned_.rows[first_row + i];
    // Two texts of every version up to this one are no negatives.
    const std::int64_t before = 2 * (std::int64_t{plan_.existing_version(row.group, row.passage)} + 1);
    for (std::int64_t text = first; text < located_.passage_ends[i]; ++text) {
      if (compare && (text < before || text - before >= corpus.negatives()))
        throw std::runtime_error("version_indptr: version " + std::to_string(before / 2 - 1) +
                                 " has texts that are no hard negatives");
      const std::uint64_t known = compare ? passages_.find(corpus.negative_hash_H[text - before]) : 0;
      if (known != kSeveral) candidates_.emplace_back(text, static_cast<std::int64_t>(known) - 1);
    }
    auto left = static_cast<std::uint32_t>(candidates_.size());
    std::uint32_t wanted = std::min(left, options_.negatives);
    Random random(plan_.options().seed, word(Purpose::kNegatives, static_cast<std::uint32_t>(first_row + i)),
                  out.epoch, out.index);
    // Selection sampling, in one pass and in order (Knuth, The Art of Computer Programming, sec. 3.4.2).
    for (auto candidate = candidates_.begin(); wanted; ++candidate, --left) {
      if (wanted < left && random.below(left) >= wanted) continue;
      negative_rows[negative_texts_.size()] = static_cast<std::int64_t>(i);
      mask_groups[negative_texts_.size()] = candidate->second;
      negative_texts_.push_back(candidate->first);
      --wanted;
    }
  }
  out.negatives_found = negative_texts_.size();
}

void Gatherer::write(const std::vector<Span>& spans, Texts& out) {
  out.texts = spans.size();
  out.tokens = out.length = 0;
  for (const Span& span : spans) {
    out.tokens += static_cast<std::size_t>(span.count);
    out.length = std::max(out.length, static_cast<std::size_t>(span.count));
  }
  const std::size_t multiple = options_.pad_to_multiple_of;
  out.length = std::max<std::size_t>((out.length + multiple - 1) / multiple * multiple, 1);
  out.padding = options_.flat ? 0 : out.texts * out.length - out.tokens;
  if (options_.flat) {
    options_.wide ? write_flat<std::int64_t>(spans, out) : write_flat<std::int32_t>(spans, out);
  } else {
    options_.wide ? write_padded<std::int64_t>(spans, out) : write_padded<std::int32_t>(spans, out);
  }
}

template <class Int>
void Gatherer::write_padded(const std::vector<Span>& spans, Texts& out) const {
  const Corpus& corpus = plan_.corpus();
  Int* ids = out.ids.resize<Int>(out.texts * out.length);
  Int* mask = out.mask.resize<Int>(out.texts * out.length);
  const auto pad = static_cast<Int>(corpus.pad_id);
  for (std::size_t i = 0; i < spans.size(); ++i, ids += out.length, mask += out.length) {
    if (i % kTurn == 0) give_way();
    if (i + kAhead < spans.size()) prefetch(spans[i + kAhead]);
    const auto count = static_cast<std::size_t>(spans[i].count);
    corpus.copy_tokens(spans[i].first, count, ids);
    std::fill(ids + count, ids + out.length, pad);
    std::fill_n(mask, count, Int{1});
    std::fill(mask + count, mask + out.length, Int{0});
  }
}

template <class Int>
void Gatherer::write_flat(const std::vector<Span>& spans, Texts& out) const {
  const Corpus& corpus = plan_.corpus();
  Int* ids = out.ids.resize<Int>(std::max<std::size_t>(out.tokens, 1));
  Int* offsets = out.mask.resize<Int>(std::max<std::size_t>(out.texts, 1));
  Int offset = 0;
  for (std::size_t i = 0; i < spans.size(); ++i) {
    if (i % kTurn == 0) give_way();
    if (i + kAhead < spans.size()) prefetch(spans[i + kAhead]);
    offsets[i] = offset;
    corpus.copy_tokens(spans[i].first, static_cast<std::size_t>(spans[i].count), ids + offset);
    offset += static_cast<Int>(spans[i].count);
  }
}

}  // namespace hybridfast::sampler
