"""Mean and spread of all numbers seen so far, without keeping them."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Moments(NamedTuple):
    """Of n numbers, each [..]; none seen yet: three zeros."""

    count: Tensor
    mean: Tensor
    squares: Tensor  # sum of squared deviations from the mean

    @property
    def std(self) -> Tensor:
        """[..] population standard deviation."""
        return (self.squares / self.count.clamp(min=1)).sqrt()


def merged(seen: Moments, values: Tensor) -> Moments:
    """The moments [..] once values [.., n] are seen, too. Chan, Golub & LeVeque 1979."""
    n, own = values.shape[-1], values.mean(-1)
    total, apart = seen.count + n, own - seen.mean
    within = (values - own[..., None]).square().sum(-1)
    squares = seen.squares + within + apart.square() * seen.count * n / total
    return Moments(total, seen.mean + apart * n / total, squares)
