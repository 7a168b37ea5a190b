"""
The tests: unit tests mirror the package, C{integration} runs a spawned daemon.
"""

import atexit
import os
import shutil
import tempfile

# No daemon that is started here, in this process or as a child, is to remember anything on
# this machine.
os.environ["STATE_DIRECTORY"] = tempfile.mkdtemp(prefix="usbipshare-tests-")
atexit.register(shutil.rmtree, os.environ["STATE_DIRECTORY"], ignore_errors=True)
