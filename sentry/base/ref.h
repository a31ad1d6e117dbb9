// Intrusive reference counting for kernel objects that Linux counts.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>

namespace base {

// Base of counted objects. The count starts at 1, owned by the Ref that MakeRef returns.
class RefCounted {
 public:
  RefCounted(const RefCounted&) = delete;
  RefCounted& operator=(const RefCounted&) = delete;

  void IncRef() const { refs_.fetch_add(1, std::memory_order_relaxed); }
  // Drops a reference; the last one deletes the object.
  void DecRef() const {
    if (refs_.fetch_sub(1, std::memory_order_acq_rel) == 1)
      const_cast<RefCounted*>(this)->OnZeroRefs();
  }
  // Takes a reference unless the count is zero already; for weak tables that hold raw pointers
  // removed by the destructor under the table's lock.
  bool TryIncRef() const {
    uint32_t n = refs_.load(std::memory_order_relaxed);
    while (n != 0) {
      if (refs_.compare_exchange_weak(n, n + 1, std::memory_order_acq_rel)) return true;
    }
    return false;
  }
  uint32_t ref_count() const { return refs_.load(std::memory_order_acquire); }

 protected:
  RefCounted() = default;
  virtual ~RefCounted() = default;
  // Called when the last reference goes. The default deletes the object.
  virtual void OnZeroRefs() { delete this; }

 private:
  mutable std::atomic<uint32_t> refs_{1};
};

// A counted pointer to T (derived from RefCounted). May be null.
template <typename T>
class Ref {
 public:
  Ref() = default;
  Ref(std::nullptr_t) {}  // NOLINT(google-explicit-constructor)
  // Takes a new reference to `p`.
  explicit Ref(T* p) : p_(p) {
    if (p_) p_->IncRef();
  }
  Ref(const Ref& o) : Ref(o.p_) {}
  Ref(Ref&& o) noexcept : p_(std::exchange(o.p_, nullptr)) {}
  template <typename U>
    requires(std::is_convertible_v<U*, T*>)
  Ref(const Ref<U>& o) : Ref(static_cast<T*>(o.get())) {}  // NOLINT
  template <typename U>
    requires(std::is_convertible_v<U*, T*>)
  Ref(Ref<U>&& o) noexcept : p_(o.release()) {}  // NOLINT
  Ref& operator=(Ref o) noexcept {
    std::swap(p_, o.p_);
    return *this;
  }
  ~Ref() {
    if (p_) p_->DecRef();
  }
  // Adopts the reference that the caller holds.
  static Ref Adopt(T* p) {
    Ref r;
    r.p_ = p;
    return r;
  }
  T* get() const { return p_; }
  T* operator->() const { return p_; }
  T& operator*() const { return *p_; }
  explicit operator bool() const { return p_ != nullptr; }
  // Gives up ownership of the reference to the caller.
  T* release() { return std::exchange(p_, nullptr); }
  void reset() { *this = Ref(); }
  friend bool operator==(const Ref& a, const Ref& b) { return a.p_ == b.p_; }
  friend bool operator==(const Ref& a, std::nullptr_t) { return a.p_ == nullptr; }

 private:
  T* p_ = nullptr;
};

template <typename T, typename... Args>
Ref<T> MakeRef(Args&&... args) {
  return Ref<T>::Adopt(new T(std::forward<Args>(args)...));
}

}  // namespace base
