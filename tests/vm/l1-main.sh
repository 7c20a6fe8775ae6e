# L1 with its file systems in place: starts Firecracker, waits for the guest, runs the host's command, powers off.
# The host (machine.py) follows `phase`, `output.log` and `status` in the folder `out`.
run=/run/fastvsock
out=$run/out
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/run/tmp SHELL=/bin/sh TMPDIR=/run/tmp
export FASTVSOCK_VM=1
export FASTVSOCK_TEST_IMAGES=$run/images
export FASTVSOCK_TEST_INITRD=$run/initrd2
export FASTVSOCK_TEST_UDS=$run/v.sock
export FASTVSOCK_TEST_CONSOLE=$run/console.log
export FASTVSOCK_TEST_BOOT=$run/boot.sh
export FASTVSOCK_TEST_KEY=$run/key

finish() { # STATUS
    cp $FASTVSOCK_TEST_CONSOLE $out/firecracker.log
    echo "$1" >$out/status
    $run/busybox reboot -f
}

echo l1 >>$out/phase
mkdir -p $run/bin
$run/busybox --install -s $run/bin
PATH=$PATH:$run/bin
cp $run/images/boot.sh $run/images/key $run/
cat $run/images/initrd2 $out/initrd2-more >$FASTVSOCK_TEST_INITRD
chmod 755 $run/boot.sh
chmod 600 $run/key
ip link set lo up
hostname l1
ulimit -n 16384

: >$FASTVSOCK_TEST_CONSOLE
$run/boot.sh $FASTVSOCK_TEST_UDS >>$FASTVSOCK_TEST_CONSOLE 2>&1 &
firecracker=$!
until grep -q 'guest ready' $FASTVSOCK_TEST_CONSOLE; do
    kill -0 $firecracker || finish 70 # the host's patience is what ends a boot that hangs
    cp $FASTVSOCK_TEST_CONSOLE $out/firecracker.log
    sleep 0.2
done
echo l2 >>$out/phase

# command.sh is the host's: environment, folder, command.
/bin/sh $out/command.sh </dev/null >$out/output.log 2>&1
finish $?
