#!/bin/busybox sh
# L1's first process: puts the host's tree, read-only by 9p, under an overlay whose upper layer is memory, so that
# everything stands at the paths that it has on the host and nothing written here reaches the host. l1-main.sh goes on.
b=/bin/busybox
$b mount -t proc proc /proc
$b mount -t sysfs sys /sys
$b mount -t devtmpfs dev /dev
for module in /modules/*.ko; do $b insmod "$module"; done

opts=trans=virtio,version=9p2000.L,msize=1048576
$b mount -t 9p -o $opts,cache=loose,ro host /host
$b mount -t tmpfs -o size=60% upper /upper
$b mkdir /upper/data /upper/work
$b mount -t overlay -o lowerdir=/host,upperdir=/upper/data,workdir=/upper/work overlay /new

$b mkdir -p /new/proc /new/sys /new/dev /new/run
$b mount --move /proc /new/proc
$b mount --move /sys /new/sys
$b mount --move /dev /new/dev
$b mkdir -p /new/dev/pts /new/dev/shm
$b ln -s /proc/self/fd /new/dev/fd  # for bash's <(...)
$b mount -t devpts -o mode=620,ptmxmode=666 devpts /new/dev/pts
$b mount -t tmpfs shm /new/dev/shm
$b mount -t tmpfs run /new/run
$b mkdir -p /new/run/fastvsock/images /new/run/fastvsock/out /new/run/tmp
$b cp $b /new/run/fastvsock/busybox
$b mount -t 9p -o $opts,cache=loose,ro images /new/run/fastvsock/images
# cache=none: the host reads these files while they grow.
$b mount -t 9p -o $opts,cache=none out /new/run/fastvsock/out
exec $b switch_root /new /run/fastvsock/busybox sh /run/fastvsock/images/l1-main.sh
