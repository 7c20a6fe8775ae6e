#!/bin/busybox sh
# The guest's first process. Ports: see README.md.
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox mkdir -p /dev/pts
/bin/busybox mount -t devpts devpts /dev/pts
for module in /modules/*.ko; do /bin/busybox insmod "$module"; done
/bin/busybox --install -s /bin
export PATH=/bin:/usr/bin HOME=/home
ip link set lo up
hostname guest

listens() { # PID SOCKETS: vsock listeners are in no table of /proc, but a process that opened its sockets is done soon
    until [ "$(ls -l /proc/$1/fd | grep -c socket:)" -ge "$2" ]; do sleep 0.1; done
}
agent --vsock 7 echo --vsock 9 discard --vsock 19 chargen --vsock 1000 command \
    --vsock 1001 sleep 1 source 1000000 --vsock 1002 close --vsock 1003 source 1000000 &
agent=$!
ln -s /.runcvm/guest/bin/fastvsock /bin/
sh /runcvm-init # RunCVM's, which starts the agent: see guests_files() in run.py
socat VSOCK-LISTEN:22,reuseaddr,fork TCP:127.0.0.1:22222 &
socat=$!
dropbear -F -E -s -p 127.0.0.1:22222 -r /etc/hostkey &
listens $agent 7
listens $socat 1
listens $! 1
until grep -q listening /tmp/agent.log; do sleep 0.1; done
sleep 0.1
echo 'guest ready'
while :; do wait; sleep 1000; done
