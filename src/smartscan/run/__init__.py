"""The outer program: opens a scan, drives the supervisor, closes the account.

Touches: the catalogue, attempt folders, the engine. Never the share, not even with stat: a dead mount would
hang it. `scan` opens and closes, `controller` is the loop, `attempts` has the folders of attempts, `workers`
asks the engine, `chunks` makes chunks, `collect` takes in what attempts brought, `patience` waits for our own
disk, `story` has the words of events.
"""

from smartscan.run.request import Request
from smartscan.run.scan import Report, retry, scan, survey

__all__ = ["Report", "Request", "retry", "scan", "survey"]
