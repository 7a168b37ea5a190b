"""USB devices implemented in Python, on the kernel's C{raw_gadget} driver.

L{descriptors} encodes descriptors, L{device} answers requests, L{controller} has the ioctls,
L{plugged} runs a device in a process, and L{models} has the devices that the scenarios use."""
