"""Dynamic loss scaling: half-precision gradients are kept from vanishing by a factor on the loss.

After Micikevicius et al. 2018 ("Mixed Precision Training", section 3.2); the constants are those of
`torch.amp.GradScaler`.
"""

START = 2.0**16
GROWTH_INTERVAL = 2000
"""Steps without an overflow after which the scale is doubled."""


class LossScale:
    """The factor on the loss; always 1 where none is needed. All its state is two numbers."""

    def __init__(self, *, enabled: bool) -> None:
        self.enabled = enabled
        self.value = START if enabled else 1.0
        self.good_steps = 0
        """Since the scale last changed."""

    def overflowed(self) -> None:
        """Halve it: the gradients of a step were not finite."""
        self._change(0.5)

    def held(self) -> None:
        """A step was taken: double it after enough of them."""
        if self.enabled:
            self.good_steps += 1
        if self.good_steps == GROWTH_INTERVAL:
            self._change(2.0)

    def _change(self, factor: float) -> None:
        if self.enabled:
            self.value *= factor
            self.good_steps = 0
