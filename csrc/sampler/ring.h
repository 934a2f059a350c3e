// The hand-off between builders (worker threads, and the consumer when it helps) and one consumer, in order.
//
// Tickets 0, 1, 2, ... name what is to be built; ticket t uses slot t % slots. A slot's word says which
// ticket it serves and whose work won it, so one compare-and-swap from "t, nobody" to "t, builder b"
// publishes: of several builders of the same ticket one wins, and one that comes after the consumer moved on
// finds another ticket there and loses. A builder first lays its item at its own place in the slot, which
// nobody else writes, and it cannot come back to that slot with another item before the consumer has taken
// this one and opened the slot for t + slots.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace hybridfast::sampler {

template <class Item>
class Ring {
 public:
  static constexpr std::size_t kMaxBuilders = 255;
  enum class State { kEarly, kOpen, kPublished, kPast };

  Ring(std::size_t slots, std::size_t builders) : slots_(slots) {
    for (std::size_t i = 0; i < slots; ++i) {
      slots_[i].word.store(word(i, 0), std::memory_order_relaxed);
      slots_[i].offers.resize(builders);
    }
  }

  // Early: the consumer has not yet taken ticket - slots. Past: it has taken this one.
  State state(std::uint64_t ticket) const {
    const std::uint64_t now = slot(ticket).word.load(std::memory_order_acquire);
    if (now >> 8 < ticket) return State::kEarly;
    if (now >> 8 > ticket) return State::kPast;
    return now & 255 ? State::kPublished : State::kOpen;
  }

  // Only for a ticket whose slot was seen open. False: another builder won, and the item stays the caller's.
  bool publish(std::uint64_t ticket, std::size_t builder, Item* item) {
    Slot& at = slot(ticket);
    at.offers[builder] = item;
    std::uint64_t open = word(ticket, 0);
    return at.word.compare_exchange_strong(open, word(ticket, builder + 1), std::memory_order_acq_rel);
  }

  // Only the consumer, and only a published ticket.
  Item* take(std::uint64_t ticket) {
    Slot& at = slot(ticket);
    Item* item = at.offers[(at.word.load(std::memory_order_acquire) & 255) - 1];
    at.word.store(word(ticket + slots_.size(), 0), std::memory_order_release);
    return item;
  }

  std::size_t slots() const { return slots_.size(); }
  std::size_t builders() const { return slots_[0].offers.size(); }

 private:
  struct alignas(64) Slot {
    std::atomic<std::uint64_t> word;
    std::vector<Item*> offers;
  };
  static std::uint64_t word(std::uint64_t ticket, std::size_t winner) { return ticket << 8 | winner; }
  Slot& slot(std::uint64_t ticket) { return slots_[ticket % slots_.size()]; }
  const Slot& slot(std::uint64_t ticket) const { return slots_[ticket % slots_.size()]; }

  std::vector<Slot> slots_;
};

// Spare items. Bounded scans of single atomic operations: no lock that a stopped thread could hold.
template <class Item>
class Pool {
 public:
  ~Pool() {
    for (auto& place : places_) delete place.load();
  }

  std::unique_ptr<Item> get() {  // null when there is none
    for (auto& place : places_) {
      if (Item* item = place.exchange(nullptr, std::memory_order_acq_rel)) return std::unique_ptr<Item>(item);
    }
    return nullptr;
  }

  void put(std::unique_ptr<Item> item) {  // deletes it when there is no room
    for (auto& place : places_) {
      Item* empty = nullptr;
      if (place.compare_exchange_strong(empty, item.get(), std::memory_order_acq_rel)) {
        item.release();
        return;
      }
    }
  }

 private:
  std::atomic<Item*> places_[64] = {};
};

}  // namespace hybridfast::sampler
