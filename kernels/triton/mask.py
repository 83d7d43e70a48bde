"""The mask of feature dropout for a batch in either memory order: shared by the kernels that drop."""

from __future__ import annotations

import triton
import triton.language as tl

from .philox import MASK_ROUNDS, four_words, in_order, wide

DRAWS = tl.constexpr(16)  # of 16 bits, from a block; which ones, says kernels/common/feature_dropout.h


@triton.jit
def two_draws(word, next_word):
    return word ^ (next_word & 0x00FF00FF)


@triton.jit
def swapped(word):
    return ((word << 8) & 0xFF00FF00) | ((word >> 8) & 0x00FF00FF)


@triton.jit
def mask_words(blocks, key, second, id_lo, id_hi):
    # The words of a block that hold its draws as halves: the even ones, then the odd ones.
    a0, a1, a2, a3 = four_words(blocks, key, second, id_lo, id_hi, MASK_ROUNDS)
    s0, s1, s2, s3 = swapped(a0), swapped(a1), swapped(a2), swapped(a3)
    even = (two_draws(s0, s1), two_draws(s1, s2), two_draws(s2, s3), two_draws(s3, s0))
    return even, (two_draws(a0, a1), two_draws(a1, a2), two_draws(a2, a3), two_draws(a3, a0))


@triton.jit
def two_bits(word, least, FIRST: tl.constexpr):
    # Whether the draws that are the halves of a word keep elements FIRST and FIRST + 2, as bits of those numbers.
    low = ((word & 0xFFFF) >= least).to(tl.int64)
    high = ((word >> 16) >= least).to(tl.int64)
    return (low | (high << 2)) << FIRST


@triton.jit
def kept_of_block(blocks, key, second, id_lo, id_hi, threshold):
    # Which of the elements of a block are kept: bit k for element k.
    even, odd = mask_words(blocks, key, second, id_lo, id_hi)
    least = wide(threshold).to(tl.uint32)
    kept = two_bits(even[0], least, 0) | two_bits(odd[0], least, 1)
    kept |= two_bits(even[1], least, 4) | two_bits(odd[1], least, 5)
    kept |= two_bits(even[2], least, 8) | two_bits(odd[2], least, 9)
    return kept | two_bits(even[3], least, 12) | two_bits(odd[3], least, 13)


@triton.jit
def kept_pixels(blocks, shift, key, second, id_lo, id_hi, threshold, WHOLE: tl.constexpr):
    # The same for the pixels of a group, whose first block has `shift` elements before them.
    kept = kept_of_block(blocks, key, second, id_lo, id_hi, threshold)
    if not WHOLE:
        kept = (kept | (kept_of_block(blocks + 1, key, second, id_lo, id_hi, threshold) << 16)) >> shift
    return kept


@triton.jit
def kept_in_order(blocks, key, second, id_lo, id_hi, threshold):
    # Whether each of the elements of neighbouring blocks is kept.
    even_words, odd_words = mask_words(blocks, key, second, id_lo, id_hi)
    even = in_order(even_words[0], even_words[1], even_words[2], even_words[3])
    odd = in_order(odd_words[0], odd_words[1], odd_words[2], odd_words[3])
    first = tl.interleave(even & 0xFFFF, even >> 16)
    second_each = tl.interleave(odd & 0xFFFF, odd >> 16)
    return tl.interleave(first, second_each) >= wide(threshold).to(tl.uint32)


@triton.jit
def keep(kept, value, factor):
    return tl.where(kept, value * factor, 0.0)
