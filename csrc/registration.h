// Each binding adds its functions to the module by itself, so that no list of operations has to name it:
// FASTADV_REGISTER(m) { m.def("cpu_box_blur", &cpu_box_blur); }
#pragma once

#include <pybind11/pybind11.h>

namespace fastadv {

class Registration {
 public:
  using Add = void (*)(pybind11::module_&);

  explicit Registration(Add add) : add_(add), next_(first()) { first() = this; }

  static void add_all(pybind11::module_& m) {
    for (const Registration* each = first(); each; each = each->next_) each->add_(m);
  }

 private:
  static const Registration*& first() {
    static const Registration* head = nullptr;
    return head;
  }

  Add add_;
  const Registration* next_;
};

}  // namespace fastadv

#define FASTADV_REGISTER(m)                                            \
  static void add_functions(pybind11::module_& m);                     \
  static const ::fastadv::Registration registration(&add_functions);   \
  static void add_functions(pybind11::module_& m)
