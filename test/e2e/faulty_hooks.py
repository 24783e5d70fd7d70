"""A policy and a listener that raise."""

from typing import ClassVar

from sglang_layered.hooks import CohortAdmitted, Event, LayerGroupPlan, SchedulerView


class RaisingPolicy:
    """Fails on the first cohort of its process; a policy is made anew at every change of the settings."""

    has_failed: ClassVar[bool] = False

    def plan(self, view: SchedulerView) -> LayerGroupPlan:
        if not RaisingPolicy.has_failed:
            RaisingPolicy.has_failed = True
            raise RuntimeError("injected fault in a policy")
        return LayerGroupPlan.even(view.num_layers, view.num_layers)


class RaisingListener:
    """Fails when the first cohort is admitted."""

    def on_event(self, event: Event) -> None:
        if isinstance(event, CohortAdmitted):
            raise RuntimeError("injected fault in a listener")
