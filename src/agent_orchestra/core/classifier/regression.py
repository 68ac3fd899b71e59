"""Multinomial regression with fixed offsets, and logistic regression pulled to a prior."""

from __future__ import annotations

import numpy as np

from agent_orchestra.core.classifier.arrays import Floats, Ints

__all__ = ["logistic", "multinomial"]

_MEMORY = 8
_SHORTEST_STEP = 1e-3


class _Loss:
    """Weighted sum of log-losses and ``ridge / 2 |coefficients|^2``; of the bias only a thousandth of that."""

    def __init__(self, x: Floats, y: Ints, weights: Floats, offsets: Floats, ridge: float) -> None:
        self.x, self.y, self.weights, self.offsets, self.ridge = x, y, weights, offsets, ridge
        self._rows = np.arange(len(x))

    def at(self, coefficients: Floats) -> tuple[float, Floats]:
        """The loss and its gradient."""
        z = self.x @ coefficients[:-1]
        z += coefficients[-1]
        z += self.offsets
        z -= z.max(1, keepdims=True)
        own = z[self._rows, self.y]
        np.exp(z, out=z)
        total = z.sum(1)
        loss = float((self.weights * (np.log(total) - own)).sum())
        loss += self.ridge / 2 * float(np.vdot(coefficients[:-1], coefficients[:-1]))
        z *= (self.weights / total)[:, None]
        z[self._rows, self.y] -= self.weights
        gradient = np.empty_like(coefficients)
        np.matmul(self.x.T, z, out=gradient[:-1])
        gradient[:-1] += self.ridge * coefficients[:-1]
        gradient[-1] = z.sum(0) + 1e-3 * self.ridge * coefficients[-1]
        return loss, gradient


def multinomial(
    x: Floats, y: Ints, weights: Floats, offsets: Floats, *, ridge: float, steps: int, tolerance: float = 3e-3
) -> Floats:
    """Coefficients (features + 1, classes), the last row the bias, by L-BFGS from zero (Nocedal and Wright, 7.4).

    ``offsets``: (rows, classes), added to the scores. Ends after ``steps``, or when the gradient is so much shorter
    than at the start.
    """
    loss = _Loss(x, y, weights, offsets, ridge)
    now = np.zeros((x.shape[1] + 1, offsets.shape[1]), np.float32)
    value, gradient = loss.at(now)
    enough = tolerance * _length(gradient)
    scale = 1 / (float(weights.sum()) / offsets.shape[1] * 0.25 + ridge)
    pairs: list[tuple[Floats, Floats, float]] = []
    for _ in range(steps):
        direction = _two_loops(gradient, pairs, scale)
        slope, step = float(np.vdot(gradient, direction)), 1.0
        while True:
            following = now - step * direction
            new_value, new_gradient = loss.at(following)
            if new_value <= value - 1e-4 * step * slope or step < _SHORTEST_STEP:
                break
            step /= 2
        if new_value > value:
            break
        moved, turned = following - now, new_gradient - gradient
        curvature = float(np.vdot(moved, turned))
        if curvature > 1e-10:
            pairs = [*pairs[1 - _MEMORY :], (moved, turned, 1 / curvature)]
        now, value, gradient = following, new_value, new_gradient
        if _length(gradient) < enough:
            break
    return now


def _two_loops(gradient: Floats, pairs: list[tuple[Floats, Floats, float]], scale: float) -> Floats:
    """The inverse Hessian that the last steps tell of, times the gradient."""
    q = gradient.copy()
    shares: list[float] = []
    for moved, turned, rho in reversed(pairs):
        share = rho * float(np.vdot(moved, q))
        shares.append(share)
        q -= share * turned
    if pairs:
        _, turned, rho = pairs[-1]
        scale = 1 / (rho * float(np.vdot(turned, turned)))
    q *= scale
    for (moved, turned, rho), share in zip(pairs, reversed(shares), strict=True):
        q += moved * (share - rho * float(np.vdot(turned, q)))
    return q


def logistic(x: Floats, y: Floats, weights: Floats, prior: Floats, *, ridge: float) -> Floats:
    """Coefficients of a logistic regression, pulled to ``prior`` with strength ``ridge``, by Newton's method."""
    now = prior.astype(np.float64)
    for _ in range(30):
        p = 1 / (1 + np.exp(-np.clip(x @ now, -30, 30)))
        gradient = x.T @ (weights * (p - y)) + ridge * (now - prior)
        hessian = (x * (weights * p * (1 - p))[:, None]).T @ x + ridge * np.eye(len(now))
        step = np.linalg.solve(hessian, gradient)
        now -= np.clip(step, -2, 2)
        if np.abs(step).max() < 1e-4:
            break
    return now


def _length(x: Floats) -> float:
    return float(np.sqrt(np.vdot(x, x)))
