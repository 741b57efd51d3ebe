"""A clock that models move: a pass takes as long as the shapes of weights say, so that what is timed is known."""

import math

from torch import nn

FIXED, LINEAR = 5e-3, 1e-6  # seconds: of a pass, and of a weight


class Clock:
    """Time that passes only while a model runs.

    Args:
        multiple: widths between two multiples of it take as long as the wider one.
        helped: share of what a cut saves that is really saved.
        slow: how much longer a pass takes whose feed-forward width is odd.
        jitter: share by which every other pass is late.
    """

    def __init__(self, multiple=1, helped=1.0, slow=0.0, jitter=0.0):
        self.now, self.passes = 0.0, 0
        self.multiple, self.helped, self.slow, self.jitter = multiple, helped, slow, jitter
        self.dense = None

    def perf_counter(self):
        return self.now

    def seconds(self, model):
        """What a pass takes."""
        weights = [each.weight for each in model.modules() if isinstance(each, nn.Linear | nn.Conv2d)]
        stairs = [[math.ceil(size / self.multiple) * self.multiple for size in each.shape[:2]] for each in weights]
        odd = any(len(each) % 2 for each in weights if len(each) > 40)
        took = FIXED + LINEAR * sum(
            math.prod([*stair, *each.shape[2:]]) for stair, each in zip(stairs, weights, strict=True)
        )
        self.dense = took if self.dense is None else self.dense
        return (self.dense - self.helped * (self.dense - took)) * (1 + self.slow * odd)

    def runner(self, model, batch, backend):
        took = self.seconds(model)

        def run():
            self.passes += 1
            self.now += took * (1 + self.jitter * (self.passes % 4 > 1))

        return run
