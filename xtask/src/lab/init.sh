#!/bin/bash
# The lab's first program. The kernel's command line says what to do: lab.do=tests or lab.do=shell.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8

leave() {
    sync
    echo o >/proc/sysrq-trigger
    # The kernel powers off on its own time; there must be a first program until then.
    while :; do sleep 60; done
}

fail() {
    echo "lab: $*"
    [ "$what" = shell ] || leave
}

mkdir -p /proc /sys /dev
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mountpoint -q /dev || mount -t devtmpfs devtmpfs /dev
what=$(sed -n 's/.*\blab\.do=\([a-z]*\).*/\1/p' /proc/cmdline)
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /run
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t securityfs securityfs /sys/kernel/security 2>/dev/null
mkdir -p /run/lock
hostname lab
ip link set lo up

# Not br_netfilter: isolation has to hold without it.
for module in virtio_console zfs kvm_amd vhost_vsock tun bridge nf_tables; do
    modprobe "$module" || fail "could not load the module $module"
done

# As udev does it.
groupadd -f -r kvm
chgrp kvm /dev/kvm && chmod 660 /dev/kvm && chmod 666 /dev/vhost-vsock /dev/net/tun

# Everything of one run: programs, a state folder with an image, room.
mkdir -p /lab
mount -t ext4 /dev/vdb /lab || fail "could not mount the disk of this run"
# It may have been written by an ordinary user.
chown -R 0:0 /lab
truncate -s 3G /lab/pool
zpool create -m none labpool /lab/pool || fail "could not make the pool labpool"
/lab/prepare || fail "could not prepare this run"

case $what in
    tests) /lab/xtask lab-inside /lab ;;
    shell)
        echo
        echo "This is the lab. \`exit\` or Ctrl-A X leaves it, and everything in it is lost."
        echo "Test programs are in /lab/tests. \`. /lab/environment\` sets what they are run with."
        echo
        cd /root && setsid -c bash -l </dev/ttyS0 >/dev/ttyS0 2>&1
        ;;
esac
leave
