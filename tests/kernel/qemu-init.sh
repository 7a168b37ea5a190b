#!/bin/busybox sh
# The /init of a guest in QEMU. Makes the host's root file system, read-only over 9p and with a writable
# layer in memory on top, the guest's own, and goes on there with guest.sh.

busybox=/bin/busybox
set -e
trap '$busybox echo "qemu-init.sh failed"; $busybox poweroff -f' EXIT

for module in /modules/*.ko; do
    $busybox insmod "$module"
done

$busybox mount -t 9p -o trans=virtio,version=9p2000.L,ro,msize=1048576,cache=loose host /host
$busybox mount -t tmpfs -o size=75% writable /writable
$busybox mkdir /writable/upper /writable/work
$busybox mount -t overlay \
    -o lowerdir=/host,upperdir=/writable/upper,workdir=/writable/work guest /root

$busybox mount -t tmpfs -o mode=755 run /root/run
$busybox cp /settings /root/run/settings
. /settings

# As process 1, so that the kernel's own calls of /sbin/modprobe see the new root too.
exec $busybox switch_root /root /bin/sh "$GUEST_SCRIPT"
