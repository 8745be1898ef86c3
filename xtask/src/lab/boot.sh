#!/bin/busybox sh
# The lab's /init: loads what its disk needs, and goes there.
b=/bin/busybox
$b mkdir -p /proc /dev /root
$b mount -t proc proc /proc
$b mount -t devtmpfs devtmpfs /dev
for module in $($b cat /modules/order); do $b insmod "/modules/$module.ko" || $b echo "lab: could not load $module"; done
tries=0
until [ -b /dev/vda ]; do
    tries=$((tries + 1))
    [ "$tries" -gt 100 ] && { $b echo "lab: there is no disk"; $b poweroff -f; }
    $b sleep 0.1
done
$b mount -t ext4 /dev/vda /root || { $b echo "lab: could not mount the root"; $b poweroff -f; }
$b cp /lab-init /root/lab-init
exec $b switch_root /root /lab-init
