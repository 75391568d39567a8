"""What the flow asks of the world. Each port is a Protocol, with an implementation in `edge`, chosen by `app`.

The stores and the catalogs have contract suites in tests/contract, which every implementation passes.
"""

from ml_dashd.ports.catalog import Catalog, Inventory, Rounds, TakenError, gone_of
from ml_dashd.ports.inbox import Dropped, Inbox
from ml_dashd.ports.journal import Handed, Journal, JournalError, Ready, Superseded
from ml_dashd.ports.nodes import Ids, Leases, Whereabouts
from ml_dashd.ports.operations import Machine, Manifest, Meter, Supervisor
from ml_dashd.ports.pins import Feedable, NotAnArchiveError, Offer, Pins, Source, SyncRefusedError
from ml_dashd.ports.runs import Runs, ShownRuns, Tree
from ml_dashd.ports.service import Line, Service, Session
from ml_dashd.ports.sets import Sets
from ml_dashd.ports.slots import Slot, Slots
from ml_dashd.ports.store import Examiner, Folder, NotMountedError, Prober, Store
from ml_dashd.ports.system import Buffers, Clock, Faults, Strand, Threads

__all__ = [
    "Buffers",
    "Catalog",
    "Clock",
    "Dropped",
    "Examiner",
    "Faults",
    "Feedable",
    "Folder",
    "Handed",
    "Ids",
    "Inbox",
    "Inventory",
    "Journal",
    "JournalError",
    "Leases",
    "Line",
    "Machine",
    "Manifest",
    "Meter",
    "NotAnArchiveError",
    "NotMountedError",
    "Offer",
    "Pins",
    "Prober",
    "Ready",
    "Rounds",
    "Runs",
    "Service",
    "Session",
    "Sets",
    "ShownRuns",
    "Slot",
    "Slots",
    "Source",
    "Store",
    "Strand",
    "Superseded",
    "Supervisor",
    "SyncRefusedError",
    "TakenError",
    "Threads",
    "Tree",
    "Whereabouts",
    "gone_of",
]
