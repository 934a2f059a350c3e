// Which pairs a batch holds: a pure function of (seed, epoch, index).
//
// Corpus. A group is one parallel item; it exists in some of the languages and belongs to one source (data
// set). A row is (group, query language, passage language): the query in one, the passage in the other.
//
// Streams. Every batch belongs to one stream, a kind of batch drawn from a fixed list:
//   mono    one stream a language: query and passage in it (X-X-mono);
//   cross   "mixed": one stream; every row draws an ordered pair of different languages among those its group
//           exists in (X-Y). "paired": one stream per ordered pair of languages. "same": one stream; every
//           row draws one language for query and passage (X-X).
//   rows    in place of both, one stream: every row is same-language with probability alpha, else X-Y.
//   With single sources there is one of these per source.
// A batch draws its mode (mono with probability alpha), then a stream of that mode by the language weights
// and, with single sources, the source weights. All of it is one uniform number in [0, 1) looked up in
// cumulative weights. "bernoulli": an independent number per batch. "stratified": each block of 100 batches
// takes (i + u) / 100 for i in 0..99 and one u, in random order, so that every probability is met to within
// one batch. The epoch's schedule is that table of streams, with each batch's number k in its stream: 8 bytes
// a batch.
//
// Rows. A stream has one cell per source: the groups of that source that exist in the languages needed. A
// cell deals its groups in passes; each pass is a new random order of all of them (permutation.h), so within
// an epoch of the schedule a cell repeats no group before it has dealt them all. Passes start anew with each
// epoch. Of the first T rows of a stream its cells get shares that are exact to a row (shares_before), so the
// k-th batch of a stream takes from each cell the positions from its share of k B to its share of (k + 1) B:
// the k-th batch is computed without the ones before it. Every position deals one row, and what follows only
// moves rows between batches.
//
// Windows. Batches of one stream are grouped into windows of W consecutive ones (k / W).
//   length buckets: the window's rows are sorted by length and cut into W batches, those in random order.
//   de-duplication: a row whose item (possible where a pass ends and the next begins, or where several
//   groups answer one question) or, on request, query or passage text is already in its batch changes places
//   with a row of another batch of its window, if a few random tries find one that suits both. Rows that find
//   none stay where they are; those batches get their repeated rows flagged and mask groups that let the loss
//   leave them out of the negatives.
// A window whose rows cannot meet a duplicate is not built at all: each batch then costs only its own rows.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "sampler/bitmap.h"
#include "sampler/permutation.h"
#include "sampler/philox.h"
#include "sampler/table.h"

namespace hybridfast::sampler {

// A corpus file as it was when the sampler was made.
struct File {
  std::string path;
  std::int64_t bytes, modified_ns;
};

// Views of the tokenized corpus; the owner keeps them alive. token_ids and its offsets may be null: plans
// only.
struct Corpus {
  const std::int32_t* version_GL = nullptr;  // version of a group in a language, or -1
  // The groups by source are at places; those of source s from source_indptr[s] to source_indptr[s + 1] - 1.
  const std::int64_t* source_indptr = nullptr;
  const std::int32_t* order_G = nullptr;      // the group at each place; null where places are groups
  const std::uint64_t* present_LW = nullptr;  // bit i % 64 of word i / 64: the group at place i has a version
  const std::int32_t* item_G = nullptr;       // null: every group is an item of its own
  const std::uint64_t* query_hash_V = nullptr;    // may be null
  const std::uint64_t* passage_hash_V = nullptr;  // may be null
  std::uint32_t groups = 0, languages = 0, sources = 0, versions = 0;
  const std::int64_t* version_indptr = nullptr;
  const std::int64_t* text_indptr = nullptr;
  const std::uint64_t* negative_hash_H = nullptr;   // of all hard negatives, version by version; may be null
  const std::int32_t* token_ids = nullptr;          // or else
  const std::uint16_t* narrow_token_ids = nullptr;  // those of a small vocabulary
  std::int64_t texts = 0, tokens = 0;
  std::int64_t pad_id = 0;

  bool has_tokens() const { return token_ids || narrow_token_ids; }
  // The ids from place `first` on, to the end of what `out` has room for.
  template <class Int>
  void copy_tokens(std::int64_t first, std::size_t count, Int* out) const {
    if (narrow_token_ids) {
      std::copy_n(narrow_token_ids + first, count, out);
    } else {
      std::copy_n(token_ids + first, count, out);
    }
  }
  std::int64_t negatives() const { return texts - 2 * std::int64_t{versions}; }  // hard ones, of all versions
  std::vector<File> files;                                                       // that the arrays map
};

enum class Cross { kMixed, kPaired, kSame };
enum class Dedup { kNone, kGroup, kText };
constexpr std::uint32_t kMaxWindow = 16;       // batches
constexpr std::uint32_t kMaxLanguages = 4096;  // that one plan draws from

enum class Mode : std::uint8_t { kMono, kCross, kSame, kRows };

struct Options {
  std::uint64_t seed = 0;
  std::uint32_t batch_size = 0;
  Cross cross = Cross::kMixed;
  bool mix_rows = false;  // kinds of pairs in every batch, not kinds of batches
  bool stratified = false;
  std::vector<std::uint32_t> languages;  // columns of version_GL
  std::vector<std::string> language_names;
  std::vector<double> language_weights;
  bool single_source = false;
  std::vector<std::string> source_names;
  std::vector<double> source_weights;  // empty: by size
  double temperature = 1;
  Dedup dedup = Dedup::kGroup;
  std::uint32_t dedup_window = 1;
  std::uint32_t length_buckets = 1;
  std::uint32_t batches_per_epoch = 0;           // 0: versions / batch_size
  const std::int32_t* predefined_NB3 = nullptr;  // batches_per_epoch x batch_size rows (group, languages)
};

struct Row {
  std::uint32_t group;
  std::uint16_t query, passage;  // positions in Options::languages
};

// A text's tokens.
struct Span {
  std::int64_t first, count;
};

// The texts of some rows, each array as long as they are many.
struct Located {
  std::vector<std::int64_t> query_texts, passage_texts;
  std::vector<std::int64_t> passage_ends;  // one past the version's last text, so past its hard negatives
  std::vector<Span> query_spans, passage_spans;
};

// A batch of the plan, all ranks' rows.
struct PlannedBatch {
  Mode mode = Mode::kMono;
  std::vector<Row> rows;
  std::vector<std::uint32_t> mask_groups;  // empty: equal to the items, nothing flagged
  std::vector<std::uint8_t> flagged;       // empty with mask_groups
};

struct Cell {
  std::uint32_t id;  // unique in the plan
  std::uint32_t source;
  std::uint32_t bitmap;  // of Plan's
  std::uint32_t first;   // rank in the bitmap of its first group
  std::uint32_t count;
  std::uint64_t weight, weight_left;  // its own, and its own and the later cells' of the stream
};

struct Stream {
  Mode mode;
  int query = -1, passage = -1;  // -1: drawn per row
  std::vector<Cell> cells;
};

// Immutable once built, and so shared by all threads.
class Plan {
 public:
  Plan(const Corpus& corpus, Options options);

  // Streams of a mode and their cumulative probabilities; `error` says why there are none.
  struct Choice {
    std::vector<std::uint32_t> streams;
    std::vector<double> cumulative;
    std::string error;

    double total() const { return cumulative.empty() ? 0 : cumulative.back(); }
  };

  const Corpus& corpus() const { return corpus_; }
  const Options& options() const { return options_; }
  std::uint32_t batches() const { return batches_; }
  const Stream& stream(std::uint32_t i) const { return streams_[i]; }
  std::size_t streams() const { return streams_.size(); }
  std::size_t cells() const { return cell_count_; }
  const Choice& choice(bool mono) const { return mono && !options_.mix_rows ? mono_ : cross_; }
  const std::vector<std::uint32_t>& coverage() const { return coverage_; }  // groups of each language
  const std::vector<std::string>& left_out() const { return left_out_; }    // streams too small for a batch

  std::uint32_t group(const Cell& cell, std::uint32_t element) const {
    const std::uint32_t place = bitmaps_[cell.bitmap].select(cell.first + element);
    if (!corpus_.order_G) return place;
    const auto group = static_cast<std::uint32_t>(corpus_.order_G[place]);
    if (group < corpus_.groups) return group;
    throw std::runtime_error("order_G holds " + std::to_string(group) + ", not one of " +
                             std::to_string(corpus_.groups) + " groups");
  }
  bool dealt_in_place(const Cell& cell) const { return !corpus_.order_G && bitmaps_[cell.bitmap].full(); }
  std::int32_t version(std::uint32_t group, std::uint32_t language) const {
    return corpus_.version_GL[std::size_t{group} * corpus_.languages + options_.languages[language]];
  }
  // The version of a row, which must still exist: the arrays may be files that someone changed. Throws.
  std::uint32_t existing_version(std::uint32_t group, std::uint32_t language) const;

  // Where a text's tokens lie. Throws where the offsets do not fit the arrays.
  Span span(std::int64_t text) const;

  // Where the texts of these rows lie. Throws like span() and existing_version().
  void locate(const Row* rows, std::size_t count, Located& out) const;

  // What the loss masks by and a batch holds once: the group or, where several answer one question, that.
  std::uint32_t item(std::uint32_t group) const {
    return corpus_.item_G ? static_cast<std::uint32_t>(corpus_.item_G[group]) : group;
  }

  bool complete() const { return complete_; }  // every group exists in every language
  bool equal_language_weights() const { return equal_language_weights_; }

 private:
  void find_languages();
  void add_streams(Mode mode, int query, int passage, double weight, std::uint32_t bitmap, bool optional,
                   Choice& choice, std::vector<double>& weights);
  void build_mono();
  void build_cross();
  std::string too_small(Mode mode, int query, int passage, const Cell* cell, std::uint64_t groups) const;

  Corpus corpus_;
  Options options_;
  std::uint32_t batches_ = 0;
  bool complete_ = false, equal_language_weights_ = false;
  std::vector<std::uint32_t> coverage_;
  std::vector<Bitmap> bitmaps_;  // the languages' first
  std::vector<Stream> streams_;
  std::uint32_t cell_count_ = 0;
  Choice mono_, cross_;
  std::vector<std::string> left_out_;
};

// The streams of one epoch's batches.
class Schedule {
 public:
  // alphas: one for all batches, or one for each.
  Schedule(const Plan& plan, std::uint32_t epoch, const std::vector<double>& alphas);

  struct Entry {
    std::uint32_t stream, k;
  };
  std::uint32_t epoch() const { return epoch_; }
  const Entry& operator[](std::uint32_t index) const { return entries_[index]; }
  // Of the k-th batch of a stream, where rows are mixed; of the last one for those beyond the epoch, with
  // which a window ends.
  double alpha(std::uint32_t stream, std::uint32_t k) const {
    if (alphas_.size() == 1) return alphas_[0][0];
    const auto& of_stream = alphas_[stream];
    return of_stream[std::min<std::size_t>(k, of_stream.size() - 1)];
  }

 private:
  std::uint32_t epoch_;
  std::vector<Entry> entries_;
  std::vector<std::vector<double>> alphas_;  // a single one, or batch by batch of each stream
};

// Plans batches; one per thread, since it keeps scratch memory and the last window of each stream.
class Planner {
 public:
  explicit Planner(const Plan& plan);

  void plan(const Schedule& schedule, std::uint32_t index, PlannedBatch& out);

 private:
  struct Window {
    std::uint32_t epoch = 0, stream = 0, first = 0;
    std::uint64_t crowded = 0;  // batches with a row that found no better place
    std::vector<Row> rows;      // empty: unused
  };
  struct Order {
    std::uint32_t epoch, cell, pass;
    Permutation permutation;
  };
  void predefined(std::uint32_t index, PlannedBatch& out);
  const Permutation& order(std::uint32_t epoch, const Cell& cell, std::uint32_t pass);
  bool meets_itself(const Stream& stream, std::uint32_t first, std::uint32_t batches) const;
  void deal(const Schedule& schedule, std::uint32_t stream, std::uint32_t k, Row* out);
  void deal_cell(const Stream& stream, const Cell& cell, std::uint32_t epoch, double alpha,
                 std::uint64_t from, std::uint64_t to, Row* out);
  void draw_languages(const Stream& stream, const Cell& cell, std::uint32_t epoch, double alpha,
                      std::uint64_t from, std::uint32_t count, Row* out) const;
  const Window& window(const Schedule& schedule, std::uint32_t stream, std::uint32_t first,
                       std::uint32_t span, bool items_meet);
  void sort_by_length(Window& window, std::uint32_t span);
  void part_duplicates(Window& window, std::uint32_t span, bool items_meet);
  void text_keys(const Row* rows, std::size_t count);
  void flag(PlannedBatch& batch, bool items_meet);

  const Plan& plan_;
  std::vector<Window> windows_;
  std::vector<std::optional<Order>> orders_;
  std::vector<std::uint32_t> elements_;
  std::vector<std::uint64_t> passage_keys_, query_keys_, sort_keys_;
  std::vector<std::uint32_t> passages_, queries_;  // versions
  std::vector<Row> sorted_;
  Located located_;
  Table table_;
};

}  // namespace hybridfast::sampler
