#!/.runcvm/guest/bin/bash -e
# What the runtime calls in the container, in place of the command that `kubectl exec` names.

. $RUNCVM_GUEST/scripts/runcvm-ctr-defaults

env() {
  busybox env "$@"
}

encode() {
  tr "\011\012\040\047\042\134" '\200\201\202\203\204\205'
}

log_debug() { :; }

command="$RUNCVM_GUEST/scripts/runcvm-vm-exec"
uidgid="$1"
cwd="$2"
tty="$4"
shift 4
args=("$@")

if [ ${#args[@]} -gt 0 ]; then
  args_bin=$(printf '%s\n' "${args[@]}" | encode)
fi

DBCLIENT_BIN="$RUNCVM_GUEST/usr/bin/dbclient"
VSOCK_CONNECT_BIN="$RUNCVM_GUEST/scripts/runcvm-vsock-connect"
key=${KEY:-/.runcvm/dropbear/key}

# The runtime's own variables are not the command's
export -n RUNCVM_GUEST KEY
mapfile -t env < <(env -u _ -u SHLVL -u PWD)

if [ ${#env[@]} -gt 0 ]; then
  env_bin=$(printf '%s\n' "${env[@]}" | encode)
fi

if [ "$tty" = "true" ]; then
  opts=(-t)
fi

