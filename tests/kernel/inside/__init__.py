"""What L{tests.kernel.guest} is made of. Runs in the guest only, as root."""
