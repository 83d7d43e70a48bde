"""A convolution with untied biases: one for each channel and position of its output."""

from __future__ import annotations

from torch import Tensor, nn

from fastadv.core.errors import ArgumentError


class UntiedBiasConv2d(nn.Conv2d):
    """``y = W * x + b`` with a bias ``b`` of shape ``(1, C, H, W)``, that of the output.

    A batch norm ``s x + t`` and the zero-padded convolution behind it are one: ``W * (s x + t) = (W s) * x + W * t``.
    The zeros of the padding are not shifted by ``t``: where the kernel reaches over the border, less of ``W * t`` is
    summed.

    Args:
        convolution: its weights are shared, not copied; its own bias is left out.
        bias: `(1, C, H, W)`, for inputs of that size.
        input_size: height and width of the inputs.
    """

    def __init__(self, convolution: nn.Conv2d, bias: nn.Parameter, *, input_size: tuple[int, int]) -> None:
        super().__init__(
            convolution.in_channels,
            convolution.out_channels,
            convolution.kernel_size,  # type: ignore[arg-type]
            convolution.stride,  # type: ignore[arg-type]
            convolution.padding,  # type: ignore[arg-type]
            convolution.dilation,  # type: ignore[arg-type]
            groups=convolution.groups,
            bias=False,
            padding_mode=convolution.padding_mode,
            device="meta",
        )
        self.weight = convolution.weight
        self.untied_bias = bias
        self.input_size = input_size
        self.train(convolution.training)

    def forward(self, input: Tensor) -> Tensor:
        """The output for `(N, C, *input_size)`.

        Raises:
            ValueError: the input has another size, for which the biases are others.
        """
        # in place: the backward pass of a convolution needs no output
        return self.without_bias(input).add_(self.untied_bias)

    def without_bias(self, input: Tensor) -> Tensor:
        """The output but for the bias, which is left to the caller; raises as `forward`."""
        if input.shape[2:] != self.input_size:
            raise ArgumentError(
                f"input: expected shape (N, {self.in_channels}, {str(self.input_size)[1:]}, the size for which a batch "
                f"norm was folded into this convolution, got {tuple(input.shape)}; fold for that image_shape"
            )
        return super().forward(input)


def pads_with_zeros(convolution: nn.Conv2d) -> bool:
    """Whether some of what the kernel reads is not the input but zeros around it."""
    return convolution.padding_mode == "zeros" and any(convolution._reversed_padding_repeated_twice)
