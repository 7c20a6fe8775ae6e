#!/bin/sh
# boot.sh UDS: runs a Firecracker of its own in the foreground, its console on stdout, until it is killed (by the pid
# of this very process, which becomes Firecracker's). The guest says "guest ready" when it listens.
# It stays on one processor: a vCPU that moves between two dies or stands still within minutes of traffic (README.md).
# FASTVSOCK_TEST_NOFILE: its limit of open descriptors (8192; Firecracker takes one a connection).
set -eu
uds=$1
images=$FASTVSOCK_TEST_IMAGES
rm -f "$uds"
cat >"$uds.json" <<END
{
  "boot-source": {
    "kernel_image_path": "$images/vmlinux2",
    "initrd_path": "$FASTVSOCK_TEST_INITRD",
    "boot_args": "console=ttyS0 reboot=k panic=1 quiet rdinit=/init mitigations=off init_on_alloc=0 nokaslr"
  },
  "drives": [],
  "machine-config": {"vcpu_count": 1, "mem_size_mib": 256},
  "vsock": {"guest_cid": 3, "uds_path": "$uds"}
}
END
ulimit -n "${FASTVSOCK_TEST_NOFILE:-8192}"
exec taskset -c 1 "$images/firecracker" --no-api --config-file "$uds.json" </dev/null
