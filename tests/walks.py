"""A walk of one batch through a dense and a pruned model, up to where a group's producers or its consumer read."""

from contextlib import ExitStack, closing, contextmanager

import torch

from optimum_optin import OptinConfig, find_groups
from optimum_optin.compensation.refit import has_stop
from optimum_optin.passes.calibration import calibrate, dense_passes
from optimum_optin.passes.course import find_course
from optimum_optin.passes.walk import PrunedWalk, Walk, watched
from optimum_optin.running.freezing import frozen


@contextmanager
def walked_to(dense, pruned, batch, key, producers=False):
    """Yields the stop, and the pruned model's walk that has come to it; nothing is refitted on the way."""
    groups = find_groups(dense)
    (start,) = dense_passes(dense, groups, calibrate(dense, [batch]), OptinConfig())
    with ExitStack() as stack, torch.no_grad():
        for model in {dense, pruned}:
            stack.enter_context(frozen(model))
        course = find_course(dense, groups, batch).within((dense, pruned))
        for model in {dense, pruned}:
            stack.enter_context(watched(model, course, [stop for stop in course.stops if has_stop(model, stop)]))
        walk = stack.enter_context(closing(Walk(dense, course, start)))
        pruned_walk = stack.enter_context(closing(PrunedWalk(pruned, walk)))
        for stop in course.stops:
            walk.reach(stop)
            if has_stop(pruned, stop):
                assert pruned_walk.reach(stop)
                if stop.group.key == key and bool(stop.producers) == producers:
                    yield stop, pruned_walk
                    return
                pruned_walk.leave(stop)
            walk.leave(stop)
