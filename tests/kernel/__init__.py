"""Tests against real kernels, in a virtual machine: C{python -m tests.kernel}.

The host side (this package) boots a Debian kernel under QEMU with emulated USB devices and
runs the modules of L{tests.kernel.scenarios} in it. A scenario sees the guest through
L{tests.kernel.guest}."""
