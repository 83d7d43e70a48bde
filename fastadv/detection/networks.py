"""The small networks that read a trajectory: a logistic regression, a multi-layer perceptron and an LSTM."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from fastadv.core.brief import brief
from fastadv.core.errors import ArgumentError
from fastadv.core.fields import check_one_of

KINDS = ("linear", "mlp", "lstm")
STANDARDS = ("entry", "layer", "none")

_LARGEST = 1 << 20
_ROWS = 1024


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """What a detector's network is made of.

    Attributes:
        kind: ``"mlp"``: one hidden layer over the flat embedding, ReLU, dropout, one logit. ``"lstm"``: an LSTM over
            the L layers, one logit from its last state. ``"linear"``: one logit, a logistic regression (how Mahalanobis
            and LID scores of several layers are joined; not in the paper).
        layers: L.
        width: the numbers of a layer: K, or 5 with the reading ``relative``.
        hidden: units of the MLP or the LSTM; 100 in the paper.
        dropout: of the MLP, in [0, 1). **Choice**: the paper gives no rate.

    Raises:
        ValueError: a field is out of its range.

    Source:
        Massoli et al. 2021, "Detection of face recognition adversarial attacks", section 4.
    """

    kind: str
    layers: int
    width: int
    hidden: int = 100
    dropout: float = 0.5

    def __post_init__(self) -> None:
        check_one_of("kind", self.kind, KINDS)
        for name, value in (("layers", self.layers), ("width", self.width), ("hidden", self.hidden)):
            if type(value) is not int or not 1 <= value <= _LARGEST:
                raise ArgumentError(f"{name}: expected an integer from 1 to {_LARGEST}, got {brief(value)}")
        if not (math.isfinite(self.dropout) and 0 <= self.dropout < 1):
            raise ArgumentError(f"dropout: expected a share in [0, 1), got {self.dropout}")


class Network(nn.Module):
    """An embedding ``(N, L, K)`` to one logit an image: the higher, the more likely adversarial.

    Its input is standardised first: ``(t - mean) / scale``, with buffers of the network.

    Args:
        architecture: what it is made of. Weights are PyTorch's default initialisation.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        shape = (architecture.layers, architecture.width)
        self.architecture = architecture
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("scale", torch.ones(shape))
        self.lstm: nn.LSTM | None = None
        flat = math.prod(shape)
        if architecture.kind == "lstm":
            self.lstm = nn.LSTM(architecture.width, architecture.hidden, batch_first=True)
            self.logit: nn.Module = nn.Linear(architecture.hidden, 1)
        elif architecture.kind == "mlp":
            first, last = nn.Linear(flat, architecture.hidden), nn.Linear(architecture.hidden, 1)
            self.logit = nn.Sequential(first, nn.ReLU(), nn.Dropout(architecture.dropout), last)
        else:
            self.logit = nn.Linear(flat, 1)

    def forward(self, embeddings: Tensor) -> Tensor:
        """Logits.

        Args:
            embeddings: ``(N, L, K)`` float32.

        Returns:
            ``(N,)`` float32.

        Raises:
            ValueError: another shape.
        """
        if embeddings.dim() != 3 or embeddings.shape[1:] != self.mean.shape:
            expected = ", ".join(str(size) for size in self.mean.shape)
            raise ArgumentError(f"embeddings: expected shape (N, {expected}), got {tuple(embeddings.shape)}")
        values = (embeddings - self.mean) / self.scale
        if self.lstm is None:
            return self.logit(values.flatten(1))[:, 0]
        return self.logit(self.lstm(values)[0][:, -1])[:, 0]

    def parts(self) -> tuple[nn.Linear | nn.LSTM | None, nn.Linear]:
        """What stands before the last linear map, a linear map with ReLU, an LSTM or nothing; and the last one."""
        if not isinstance(self.logit, nn.Sequential):
            assert isinstance(self.logit, nn.Linear)
            return self.lstm, self.logit
        first, *_, last = self.logit
        assert isinstance(first, nn.Linear)
        assert isinstance(last, nn.Linear)
        return first, last

    def train(self, mode: bool = True) -> Network:
        """As for every module; the LSTM alone stays in training mode.

        One layer without dropout computes the same in both, and cuDNN has a backward pass for training mode only, which
        an attack on an evaluating detector needs.
        """
        super().train(mode)
        if self.lstm is not None:
            self.lstm.train()
        return self


def side_by_side(*groups: Sequence[Network]) -> Network:
    r"""One network whose logit is the mean of the logits of several; those of a group read the same columns.

    .. math:: f(t) = \frac{1}{M} \sum_g \sum_{m \in g} f_m(t_g)

    with the numbers t of a layer cut into one part t_g for each group, as wide as its networks read, and M networks in
    all. They are LSTMs, logistic regressions, or MLPs with or without logistic regressions among them: two hidden
    units, :math:`\max(0, z) - \max(0, -z)`, are a linear map. What does not read a column has the weight 0 for it.

    Args:
        groups: Networks of one number of layers, in evaluation mode.

    Returns:
        A network of the columns of all groups, in evaluation mode, its parameters frozen.

    Raises:
        ValueError: A group is empty; there are LSTMs and others; networks differ in the number of layers or the device,
            or those of a group in width or standardisation.
    """
    networks = [network for group in groups for network in group]
    kinds = sorted({network.architecture.kind for network in networks})
    if not groups or not all(groups) or (len(kinds) > 1 and "lstm" in kinds):
        sizes = [len(group) for group in groups]
        raise ArgumentError(f"groups: expected networks in each, LSTMs or others, got {sizes}, {kinds}")
    if len({network.architecture.layers for network in networks}) > 1:
        raise ArgumentError("groups: expected networks of one number of layers, got several")
    where = {network.mean.device for network in networks}
    if len(where) > 1:
        raise ArgumentError(f"groups: expected networks on one device, got {', '.join(sorted(map(str, where)))}")
    for group in groups:
        first = group[0]
        if any(not torch.equal(n.mean, first.mean) or not torch.equal(n.scale, first.scale) for n in group):
            raise ArgumentError("groups: expected one standardisation in a group, got several")
    width = sum(group[0].architecture.width for group in groups)
    kind = "mlp" if "mlp" in kinds else kinds[0]
    units = [2 if kind == "mlp" and n.architecture.kind == "linear" else n.architecture.hidden for n in networks]
    about = next(n.architecture for n in networks if n.architecture.kind == kind)
    made = Network(replace(about, width=width, hidden=sum(units))).to(networks[0].mean.device)
    fill = {"lstm": _fill_lstm, "mlp": _fill_perceptron, "linear": _fill_linear}[kind]
    column = unit = 0
    with torch.no_grad():
        made.mean.copy_(torch.cat([group[0].mean for group in groups], dim=1))
        made.scale.copy_(torch.cat([group[0].scale for group in groups], dim=1))
        for value in made.parameters():
            value.zero_()
        for group in groups:
            columns = slice(column, column + group[0].architecture.width)
            for network in group:
                own = slice(unit, unit + units[0])
                units = units[1:]
                fill(made, network, columns, own, len(networks))
                unit = own.stop
            column = columns.stop
    return made.eval().requires_grad_(False)


def _fill_lstm(made: Network, network: Network, columns: slice, own: slice, count: int) -> None:
    lstm, last = made.parts()
    given, logit = network.parts()
    assert isinstance(lstm, nn.LSTM)
    assert isinstance(given, nn.LSTM)
    for name, value in given.named_parameters():
        gates = lstm.get_parameter(name).unflatten(0, (4, -1))[:, own]  # a view
        read = {"weight_ih_l0": columns, "weight_hh_l0": own}.get(name)  # inputs, or the units' own last outputs
        (gates if read is None else gates[..., read]).copy_(value.unflatten(0, (4, -1)))
    last.weight[:, own] = logit.weight / count
    last.bias.add_(logit.bias / count)


def _fill_perceptron(made: Network, network: Network, columns: slice, own: slice, count: int) -> None:
    hidden, last = made.parts()
    given, logit = network.parts()
    assert isinstance(hidden, nn.Linear)
    if isinstance(given, nn.Linear):
        parts: tuple[Tensor, ...] = (given.weight, given.bias, logit.weight)
        last.bias.add_(logit.bias / count)
    else:
        signs = torch.tensor([[1.0], [-1.0]], device=logit.weight.device)
        parts = (signs * logit.weight, signs[:, 0] * logit.bias, signs.T)
    weight, bias, out = parts
    layers = made.architecture.layers
    hidden.weight.unflatten(1, (layers, -1))[own, :, columns] = weight.unflatten(1, (layers, -1))
    hidden.bias[own] = bias
    last.weight[:, own] = out / count


def _fill_linear(made: Network, network: Network, columns: slice, own: slice, count: int) -> None:
    _, last = made.parts()
    _, logit = network.parts()
    layers = made.architecture.layers
    last.weight.unflatten(1, (layers, -1))[..., columns] += logit.weight.unflatten(1, (layers, -1)) / count
    last.bias.add_(logit.bias / count)


def standards(embeddings: Tensor, rows: Tensor, how: str) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation to standardise by.

    Args:
        embeddings: ``(N, L, K)`` float32.
        rows: ``(M,)`` int64, which of them to measure.
        how: ``"entry"``, every one of the L K numbers by itself; ``"layer"``, one mean and deviation for a layer's K
            numbers, which keeps how the classes differ (of the reading ``raw``: the columns of ``relative`` have
            different units); ``"none"``, 0 and 1.

    Returns:
        Two ``(L, K)`` float32. A deviation of 0 is replaced by 1.
    """
    shape = embeddings.shape[1:]
    if how == "none":
        return torch.zeros(shape), torch.ones(shape)
    total = torch.zeros(shape, dtype=torch.float64)
    squares = torch.zeros(shape, dtype=torch.float64)
    parts = rows.split(_ROWS)
    for part in parts:
        total += embeddings[part].sum(0, dtype=torch.float64).cpu()
    mean = total / len(rows)
    if how == "layer":
        mean = mean.mean(1, keepdim=True).expand(shape)
    for part in parts:
        squares += (embeddings[part].cpu().double() - mean).square().sum(0)
    variance = squares / len(rows)
    if how == "layer":
        variance = variance.mean(1, keepdim=True).expand(shape)
    deviation = variance.sqrt().float()
    return mean.float().contiguous(), torch.where(deviation == 0, 1.0, deviation).contiguous()
