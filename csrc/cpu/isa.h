// Instruction sets the kernels are compiled for, and which of them this processor runs.
#pragma once

#include <string>
#include <vector>

namespace fastadv::cpu {

enum Isa : int { kBaseline = 0, kAvx2 = 1, kAvx512 = 2 };

// Names in the order of the codes above, as far as this processor goes; the last one is the fastest.
std::vector<std::string> available_isas();

// Throws std::invalid_argument for a code that does not run here.
void check_isa(int isa);

}  // namespace fastadv::cpu
