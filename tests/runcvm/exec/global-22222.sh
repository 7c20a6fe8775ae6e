socat TCP-LISTEN:22222,bind=127.0.0.1,reuseaddr,fork EXEC:"$RUNCVM_GUEST/lib/ld $RUNCVM_GUEST/usr/bin/python3 $RUNCVM_GUEST/scripts/runcvm-vsock-connect /run/firecracker.vsock 22222" 2>/dev/null &
sleep 0.5
exec "$DBCLIENT_BIN" "${opts[@]}" -p 22222 -y -y -i $key root@127.0.0.1 "$command '$uidgid' '$(echo -n $cwd | encode)' '$args_bin' '$env_bin'"
