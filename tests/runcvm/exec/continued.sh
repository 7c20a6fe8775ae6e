PROXY_PORT=$(shuf -i 30000-40000 -n 1)

socat \
    TCP-LISTEN:$PROXY_PORT,bind=127.0.0.1,reuseaddr,fork \
    EXEC:"/usr/bin/python3 \
${VSOCK_CONNECT_BIN} /run/firecracker.vsock 22" \
    2>/dev/null &
PROXY_PID=$!
trap "kill $PROXY_PID 2>/dev/null || true" EXIT   # ends the proxy \
sleep 0.2

exec "$DBCLIENT_BIN" \
    "${opts[@]}" \
    -p \
    "$PROXY_PORT" \
    -y -y \
    -i $key root@127.0.0.1 \
    "$command '$uidgid' '$(echo -n $cwd | encode)' '$args_bin' '$env_bin'"
