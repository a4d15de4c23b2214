"""Points of made-up models on made-up benchmarks, whose true means are known."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Population:
    """Problems whose chance p of success is Beta(a, b), and how points come of it.

    `scale` is `0/1/6/7` (6 or 7 with p, else 0 or 1), `0..7` (Binomial(7, p)) or `0/7`.
    """

    name: str
    a: float
    b: float
    scale: str

    def true_mean(self) -> float:
        return float(self.expected(np.array(self.a / (self.a + self.b))))

    def expected(self, chances: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Mean points of problems with these chances."""
        return 6.7 * chances + 0.4 * (1 - chances) if self.scale == "0/1/6/7" else 7 * chances

    def draw(
        self, rng: np.random.Generator, benchmarks: int, problems: int, samples: int
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Points by benchmark, problem and sample, and the true mean over each benchmark's problems."""
        chances = rng.beta(self.a, self.b, (benchmarks, problems, 1))
        shape = benchmarks, problems, samples
        solved, other = rng.random(shape) < chances, rng.random(shape)
        if self.scale == "0/1/6/7":
            points = np.where(solved, np.where(other < 0.7, 7.0, 6.0), np.where(other < 0.6, 0.0, 1.0))
        elif self.scale == "0..7":
            points = rng.binomial(7, np.broadcast_to(chances, shape)).astype(np.float64)
        else:
            points = solved * 7.0
        return points, self.expected(chances)[..., 0].mean(1)


MIDDLING, EVEN, WEAK, STRONG = (
    ("middling", 0.5, 0.5),
    ("even problems", 3.0, 2.0),
    ("weak, 20 %", 0.3, 1.2),
    ("strong, 80 %", 1.2, 0.3),
)
VERY_WEAK = ("very weak, 10 %", 0.2, 1.8)
