PROXY_PORT=$(shuf -i 30000-40000 -n 1 2>/dev/null || echo $((30000 + RANDOM % 10000)))
log_debug "proxy for this session on $PROXY_PORT"
log_debug "about to start dbclient"
$RUNCVM_GUEST/usr/bin/socat TCP-LISTEN:$PROXY_PORT,bind=127.0.0.1,reuseaddr EXEC:"$RUNCVM_GUEST/bin/bash $RUNCVM_GUEST/scripts/runcvm-vsock-connect /run/firecracker.vsock 22222" &
PROXY_PID=$!
trap "kill $PROXY_PID 2>/dev/null" EXIT
sleep 0.5
exec "$DBCLIENT_BIN" "${opts[@]}" -p $PROXY_PORT -y -y -i $key root@127.0.0.1 "$command '$uidgid' '$(echo -n $cwd | encode)' '$args_bin' '$env_bin'"
