"""
The tests: unit tests mirror the package, C{integration} runs a spawned daemon.
"""

import atexit
import os
import shutil
import tempfile
import time

from twisted.internet.base import ReactorBase

# No daemon that is started here, in this process or as a child, is to remember anything on
# this machine.
os.environ["STATE_DIRECTORY"] = tempfile.mkdtemp(prefix="usbipshare-tests-")
atexit.register(shutil.rmtree, os.environ["STATE_DIRECTORY"], ignore_errors=True)

# Setting the clock of the machine affects no test, as it affects no daemon. Reactors are not
# imported here, as that would make one, which processes must not share (tests/support/forking.py).
ReactorBase.seconds = staticmethod(time.monotonic)
