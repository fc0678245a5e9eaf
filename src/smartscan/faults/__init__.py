"""A share that fails on purpose: storage that hangs, lies and is slow, for `doctor --drill` and for tests.

Touches: what `mount` touches.
"""

from smartscan.faults.mount import FaultMount, Rule, fail, fault_mount, hang, latency, slow, unmount_in

__all__ = ["FaultMount", "Rule", "fail", "fault_mount", "hang", "latency", "slow", "unmount_in"]
