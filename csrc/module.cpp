#include <pybind11/pybind11.h>

namespace fastadv {
void register_cpu(pybind11::module_& m);
void register_cuda(pybind11::module_& m);
void register_sign_step(pybind11::module_& m);
void register_momentum_step(pybind11::module_& m);
void register_philox(pybind11::module_& m);
void register_feature_dropout(pybind11::module_& m);
void register_feature_dropout_bn_prelu(pybind11::module_& m);
void register_box_blur(pybind11::module_& m);
void register_add_noise(pybind11::module_& m);
void register_average_pool(pybind11::module_& m);
void register_centroid_distances(pybind11::module_& m);
void register_pooled_centroid_distances(pybind11::module_& m);
void register_knn_score(pybind11::module_& m);
void register_trajectory_score(pybind11::module_& m);
}  // namespace fastadv

PYBIND11_MODULE(_C, m) {
  m.doc() = "Compiled kernels of fastadv: raw addresses in, exceptions out. Private; use fastadv.ops.";
  fastadv::register_cpu(m);
  fastadv::register_cuda(m);
  fastadv::register_sign_step(m);
  fastadv::register_momentum_step(m);
  fastadv::register_philox(m);
  fastadv::register_feature_dropout(m);
  fastadv::register_feature_dropout_bn_prelu(m);
  fastadv::register_box_blur(m);
  fastadv::register_add_noise(m);
  fastadv::register_average_pool(m);
  fastadv::register_centroid_distances(m);
  fastadv::register_pooled_centroid_distances(m);
  fastadv::register_knn_score(m);
  fastadv::register_trajectory_score(m);
}
