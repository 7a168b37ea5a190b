#!/bin/sh
# Process 1 of a guest, on the computer's own file system: makes it a usable system, runs the
# command it was given, tells the harness how that ended, and switches the machine off.

set -e
. /run/settings # sets MODULES, RELEASE, PROJECT, TERMINAL, NOTES, and the command as $@

mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts -o gid=5,mode=620,ptmxmode=666 devpts /dev/pts
mount -t tmpfs -o mode=1777 shm /dev/shm
ln -snf /proc/self/fd /dev/fd
ln -snf /proc/self/fd/0 /dev/stdin
ln -snf /proc/self/fd/1 /dev/stdout
ln -snf /proc/self/fd/2 /dev/stderr
mkdir -p /run/lock /run/home
busybox ip link set lo up

# The kernel's modules where everybody looks for them.
mkdir -p "/lib/modules/$RELEASE"
mount --bind "$MODULES" "/lib/modules/$RELEASE"

# Prints the device node of QEMU's virtio-serial port of that name, once it is there.
port() {
    while :; do
        for entry in /sys/class/virtio-ports/*; do
            if [ "$(cat "$entry/name" 2>/dev/null)" = "$1" ]; then
                echo "/dev/${entry##*/}"
                return
            fi
        done
        sleep 0.1
    done
}

# QEMU's port takes one writer at a time: a test's leftover may still be about to close it.
tell() {
    until printf '%s\n' "$1" 2>/dev/null >"$NOTES"; do
        sleep 0.1
    done
}

if [ -z "$NOTES" ]; then
    NOTES=$(port usbipshare.notes)
fi
if [ -z "$TERMINAL" ]; then
    TERMINAL=$(port usbipshare.trial)
fi
for line in "$TERMINAL" "$NOTES"; do
    case $line in
        /dev/ttyS[1-9]) stty -F "$line" raw -echo ;; # user-mode Linux: nothing but bytes
    esac
done

cd "$PROJECT"
tell booted
status=0
exec 3<>"$TERMINAL"
"$@" <&3 >&3 2>&1 3>&- || status=$?
tell "finished $status"

echo o >/proc/sysrq-trigger
# No program can be started any more: in QEMU the root file system goes first.
while :; do
    :
done
