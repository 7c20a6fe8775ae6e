if [ "$USE_VSOCK" != "0" ]; then
  # A proxy for this session alone
  PROXY_PORT=$(shuf -i 30000-40000 -n 1 2>/dev/null || echo $((30000 + RANDOM % 10000)))
  log_debug "proxy on $PROXY_PORT"

  $RUNCVM_GUEST/usr/bin/socat TCP-LISTEN:$PROXY_PORT,bind=127.0.0.1,reuseaddr EXEC:"sh -c 'exec python3 $VSOCK_CONNECT_BIN /run/firecracker.vsock 22222'" 2>/dev/null &
  PROXY_PID=$!
  trap "kill $PROXY_PID 2>/dev/null" EXIT
  sleep 0.5

  exec "$DBCLIENT_BIN" "${opts[@]}" -p $PROXY_PORT -y -y -i $key root@127.0.0.1 "$command '$uidgid' '$(echo -n $cwd | encode)' '$args_bin' '$env_bin'"
else
  exec "$DBCLIENT_BIN" "${opts[@]}" -p 22222 -y -y -i $key root@10.0.0.2 "$command '$uidgid' '$(echo -n $cwd | encode)' '$args_bin' '$env_bin'"
fi
