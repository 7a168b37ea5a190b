"""
USB devices that are a program of ours, on the kernel's C{raw_gadget} driver.

L{descriptors} says what a device looks like, L{device} what it does, L{controller} how the
kernel is asked for it, L{plugged} has it plugged in for as long as a C{with} lasts, and
L{models} has the devices that the scenarios use.
"""
