"""What C{usbip-host} and C{vhci_hcd} do: each test shows one fact on real kernels
(L{tests.kernel.scenarios}) and on the kernels in memory (C{tests.fakekernel}).

C{D1} to C{D12} are the numbers of the dangerous facts, C{section 1} and so on the sections of the
description of the kernel's USB/IP."""
