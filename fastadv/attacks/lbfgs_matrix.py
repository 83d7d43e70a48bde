"""The Hessian's approximation of L-BFGS-B in its compact form: small matrices, one an image, in float64."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastadv.attacks.lbfgs_history import History, Tables
from fastadv.attacks.per_image import column


@dataclass(frozen=True, kw_only=True)
class Compact:
    """``B = theta I - W M W'`` with ``W = [Y, theta S]`` and ``M = [[-D, L'], [L, theta S'S]]^-1``.

    D is the diagonal of ``S'Y`` and L its part in which the step is newer than the change. Without pairs B is
    ``theta I``.

    Attributes:
        theta: ``(N,)``.
        middle: M, ``(N, 2 m, 2 m)``.
        tables: Of the pairs.
        sound: ``(N,)`` bool, whether M's inverse had the signs that it has for pairs of positive curvature.

    Source: Byrd, Lu, Nocedal and Zhu 1995, "A limited memory algorithm for bound constrained optimization", eq. 3.2.
    """

    theta: Tensor
    middle: Tensor
    tables: Tables
    sound: Tensor

    @staticmethod
    def of(history: History, first: Tensor) -> Compact:
        """That of the pairs; ``first`` ``(N,)`` is theta where there are none."""
        tables = history.tables()
        some = history.count > 0
        theta = torch.where(some, tables.yy[:, 0, 0] / tables.sy[:, 0, 0], first)
        inverse = _inverse(tables, theta)
        unit = torch.eye(inverse.shape[1], dtype=torch.float64, device=inverse.device).expand_as(inverse)
        middle, sound = eliminate(inverse, unit)
        return Compact(theta=theta, middle=middle, tables=tables, sound=sound | ~some)

    def coordinates(self, products: Tensor) -> Tensor:
        """``W'v`` ``(N, 2 m, k)`` of the ring's products ``(N, 2 m, k)`` with some v."""
        tables, m = self.tables, self.tables.order.shape[1]
        order = tables.order[:, :, None].expand(-1, -1, products.shape[2])
        steps = products.gather(1, order) * self.theta[:, None, None]
        changes = products.gather(1, order + m)
        held = torch.cat([tables.held, tables.held], 1)[:, :, None]
        return torch.where(held, torch.cat([changes, steps], 1), 0.0)

    def ring(self, coordinates: Tensor) -> Tensor:
        """The weights of the ring's rows ``(N, 2 m)`` whose sum is ``W c``, of c ``(N, 2 m)``."""
        m, weights = self.tables.order.shape[1], torch.zeros_like(coordinates)
        weights.scatter_(1, self.tables.order, coordinates[:, m:] * column(self.theta))
        return weights.scatter_(1, self.tables.order + m, coordinates[:, :m])

    def form(self, a: Tensor, b: Tensor) -> Tensor:
        """``a' M b`` ``(N,)`` of coordinates ``(N, 2 m, 1)``."""
        return (a * (self.middle @ b)).sum((1, 2))

    def subspace(self, masked: Tensor, v: Tensor, free: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Minimise the quadratic model over the free variables, from the Cauchy point ``x + v``, ``v = t u`` on them.

        Args:
            masked: ``History.masked`` with the variables that are free at the Cauchy point.
            v: ``(N, 2 m, 1)``, the coordinates of v.
            free: ``(N, 2 m, 1)``, those of u, the negative gradient at x, on the free variables.
            t: ``(N,)``.

        Returns:
            ``(N, 2 m)``, c such that the minimiser is ``x + (u / theta + W c)`` on the free variables; and ``(N,)``
            bool, where it can be trusted.

        Source: Byrd et al. 1995, section 5.1; the matrix in the form of Morales and Nocedal 2011, "Remark on
            algorithm 778", whose blocks do not cancel.
        """
        tables, theta = self.tables, self.theta[:, None, None]
        m = tables.order.shape[1]
        order = torch.cat([tables.order, tables.order + m], 1)[:, :, None]
        held = torch.cat([tables.held, tables.held], 1)
        every = masked.gather(1, order.expand(-1, -1, 2 * m)).gather(2, order.mT.expand(-1, 2 * m, -1))
        every = torch.where(held[:, :, None] & held[:, None, :], every, 0.0)
        ss_held, ys_free, yy_free = every[:, :m, :m], every[:, m:, :m], every[:, m:, m:]
        # G = W'W over the free variables
        gram = _blocks(yy_free, theta * ys_free, theta.square() * (tables.ss - ss_held))
        c = self.middle @ v
        right = free * (1 - self.theta * t)[:, None, None] + gram @ c
        diagonal = torch.where(tables.held, tables.sy.diagonal(dim1=1, dim2=2), 1.0)
        inverse = _blocks(
            -(torch.diag_embed(diagonal) + yy_free / theta),
            tables.sy.triu(1).mT - ys_free,
            theta * ss_held + torch.diag_embed((~tables.held).double()),
        )
        solved, sound = eliminate(inverse, right)
        return (c / theta + solved / theta.square())[:, :, 0], sound | ~tables.held[:, 0]


def _inverse(tables: Tables, theta: Tensor) -> Tensor:
    """``[[-D, L'], [L, theta S'S]]``, with a unit diagonal for pairs that there are not."""
    diagonal = torch.where(tables.held, tables.sy.diagonal(dim1=1, dim2=2), 1.0)
    newer = tables.sy.triu(1)  # newest first: the step is newer than the change above the diagonal
    corner = theta[:, None, None] * tables.ss + torch.diag_embed((~tables.held).double())
    return _blocks(-torch.diag_embed(diagonal), newer.mT, corner)


def _blocks(first: Tensor, beside: Tensor, last: Tensor) -> Tensor:
    """The symmetric matrix ``[[first, beside], [beside', last]]``."""
    return torch.cat([torch.cat([first, beside], 2), torch.cat([beside.mT, last], 2)], 1)


def eliminate(matrix: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Solve ``A x = b`` for symmetric A whose first half of pivots is negative and whose second half is positive.

    Such a matrix needs no exchange of rows, so this is a fixed sequence of products, the same for every image.

    Args:
        matrix: ``(N, 2 m, 2 m)``.
        right: ``(N, 2 m, k)``.

    Returns:
        x ``(N, 2 m, k)``, and ``(N,)`` bool, whether all pivots had their sign.
    """
    size, all_ = matrix.shape[1], torch.cat([matrix, right], 2)
    pivots = []
    for k in range(size):
        pivot = all_[:, k, k].clone()
        line = all_[:, k, :] / column(pivot)
        factor = all_[:, :, k].clone()
        all_ -= factor[:, :, None] * line[:, None, :]
        all_[:, k] = line
        pivots.append(pivot)
    found = torch.stack(pivots, 1)
    sound = (found[:, : size // 2] < 0).all(1) & (found[:, size // 2 :] > 0).all(1)
    return all_[:, :, size:], sound & torch.isfinite(found).all(1)
