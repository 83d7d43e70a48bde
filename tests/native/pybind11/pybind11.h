// What the bindings need of pybind11, without Python: m.def() keeps a function by its name, and it is called with
// numbers, as Python calls it.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

namespace pybind11 {

// A number, an address or a list of integers; converts to what a function takes.
class Value {
 public:
  using Integers = std::vector<int64_t>;

  template <class T, class = std::enable_if_t<std::is_integral_v<T>>>
  Value(T value) : held_(static_cast<int64_t>(value)) {}
  Value(double value) : held_(value) {}
  Value(const void* value) : held_(static_cast<int64_t>(reinterpret_cast<uintptr_t>(value))) {}
  Value(Integers values) : held_(std::move(values)) {}

  template <class T>
  T as() const {
    if constexpr (std::is_floating_point_v<T>) {
      return static_cast<T>(std::get<double>(held_));
    } else if constexpr (std::is_integral_v<T>) {
      return static_cast<T>(std::get<int64_t>(held_));
    } else if constexpr (std::is_same_v<T, Integers>) {
      return std::get<Integers>(held_);
    } else {
      T made{};  // an array of addresses
      for (size_t i = 0; i < made.size(); ++i) made[i] = static_cast<uintptr_t>(std::get<Integers>(held_).at(i));
      return made;
    }
  }

 private:
  std::variant<int64_t, double, Integers> held_;
};

using Values = std::vector<Value>;
using Function = std::function<Value(const Values&)>;

inline std::map<std::string, Function>& functions() {
  static std::map<std::string, Function> all;
  return all;
}

// The arguments from `values[first]` on, as the parameters of a function are.
template <class... A, class Call, size_t... I>
auto applied(const Values& values, size_t first, Call call, std::index_sequence<I...>) {
  if (values.size() != first + sizeof...(A)) throw std::invalid_argument("wrong number of arguments");
  return call(values[first + I].template as<std::decay_t<A>>()...);
}

template <class... A, class Call>
Value answered(const Values& values, size_t first, Call call) {
  constexpr auto each = std::index_sequence_for<A...>{};
  if constexpr (std::is_void_v<decltype(applied<A...>(values, first, call, each))>) {
    applied<A...>(values, first, call, each);
    return 0;
  } else {
    return applied<A...>(values, first, call, each);
  }
}

class module_ {
 public:
  template <class R, class... A>
  void def(const char* name, R (*function)(A...)) {
    functions()[name] = [function](const Values& values) { return answered<A...>(values, 0, function); };
  }
};

template <class... A>
struct init {};

template <class T>
class class_ {
 public:
  class_(module_&, const char* name) : name_(name) {}

  template <class... A>
  class_& def(init<A...>) {
    functions()[name_] = [](const Values& values) {
      return answered<A...>(values, 0, [](auto... each) {
        static std::vector<std::shared_ptr<const T>> kept;
        kept.push_back(std::make_shared<const T>(each...));
        return static_cast<const void*>(kept.back().get());
      });
    };
    return *this;
  }

  template <class R, class... A>
  class_& def(const char* name, R (T::*method)(A...) const) {
    functions()[name_ + "." + name] = [method](const Values& values) {
      const T* self = reinterpret_cast<const T*>(values.at(0).as<uintptr_t>());
      return answered<A...>(values, 1, [=](auto... each) { return (self->*method)(each...); });
    };
    return *this;
  }

 private:
  std::string name_;
};

class gil_scoped_release {
 public:
  gil_scoped_release() {}
  ~gil_scoped_release() {}
};

}  // namespace pybind11
