// zmlx/plan/flight.cpp: the runs under way, and the count of a buffer's holders.
#include "zmlx/plan/flight.h"

#include <algorithm>
#include <deque>
#include <mutex>
#include <thread>

namespace zmlx {
namespace {

constexpr std::chrono::milliseconds landing_time{10};

/// Handles of an array object beyond its data. MLX keeps the count private; an array is one
/// shared_ptr and nothing else.
long handle_count(const mx::array& a) {
  static_assert(sizeof(mx::array) == sizeof(std::shared_ptr<void>));
  return reinterpret_cast<const std::shared_ptr<void>&>(a).use_count();
}

class Flights {
 public:
  static Flights& instance() {
    static Flights flights;
    return flights;
  }

  void add(std::shared_ptr<Flight> flight) {
    std::lock_guard lock(mutex_);
    queue_.push_back(std::move(flight));
  }

  struct Holders {
    long flying = 0; // runs queued or running
    bool landed = false; // a run that ended a moment ago
  };
  Holders of(const void* buffer, size_t output) {
    std::lock_guard lock(mutex_);
    while (queue_.size() > remembered && queue_.front()->landed.load(std::memory_order_acquire)) {
      queue_.pop_front();
    }
    Holders holders;
    for (auto& flight : queue_) {
      auto& held = flight->buffers;
      if ((output < held.size() && held[output] == buffer) ||
          std::find(held.begin(), held.end(), buffer) != held.end()) {
        bool landed = flight->landed.load(std::memory_order_acquire);
        holders.landed |= landed;
        holders.flying += !landed;
      }
    }
    return holders;
  }

 private:
  static constexpr size_t remembered = 4;

  std::mutex mutex_;
  std::deque<std::shared_ptr<Flight>> queue_;
};

} // namespace

std::shared_ptr<Flight> take_off(const std::vector<mx::array>& outputs) {
  auto flight = std::make_shared<Flight>();
  for (auto& out : outputs) {
    flight->buffers.push_back(out.data_shared_ptr().get());
  }
  Flights::instance().add(flight);
  return flight;
}

bool is_exclusive(
    const mx::array& a,
    size_t output,
    std::chrono::steady_clock::time_point deadline) {
  if (handle_count(a) != 1) {
    return false;
  }
  for (;;) {
    // The order matters: a run that lands between the two reads makes the count look too high,
    // never too low.
    long count = a.data_shared_ptr().use_count();
    auto holders = Flights::instance().of(a.data_shared_ptr().get(), output);
    if (count <= 1 + holders.flying) {
      return true;
    }
    if (!holders.landed || std::chrono::steady_clock::now() >= deadline) {
      return false;
    }
    std::this_thread::yield();
  }
}

std::chrono::steady_clock::time_point landing_deadline() {
  return std::chrono::steady_clock::now() + landing_time;
}

} // namespace zmlx
