#!/bin/sh
# Process 1 of a guest in user-mode Linux. Its root is the computer's own file system, read-only.
# Puts a writable layer in memory on top and goes on there with guest.sh. The kernel's command
# line has set RUN_FOLDER, the folder with the settings.

set -e
mount -n -t tmpfs -o size=75% writable /mnt
mkdir /mnt/upper /mnt/work /mnt/root
mount -n -t overlay -o lowerdir=/,upperdir=/mnt/upper,workdir=/mnt/work guest /mnt/root
mount -n -t tmpfs -o mode=755 run /mnt/root/run
cp "$RUN_FOLDER/settings" /mnt/root/run/settings
. /mnt/root/run/settings

# As process 1, so that the kernel's own calls of /sbin/modprobe see the new root too.
exec chroot /mnt/root /bin/sh "$GUEST_SCRIPT"
