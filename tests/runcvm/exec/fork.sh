if [ -z "$TCP_ONLY" ]; then
   # One proxy for this session, on some high port
   PROXY_PORT=$(( 30000 + RANDOM % 10000 ))

   SOCAT_BIN="socat"
   if ! command -v socat >/dev/null 2>&1; then
      if [ -x "/.runcvm/guest/usr/bin/socat" ]; then
         SOCAT_BIN="/.runcvm/guest/usr/bin/socat"
      else
         echo "Error: no socat" >&2
         exit 1
      fi
   fi

   # The transport speaks to Firecracker
   $SOCAT_BIN TCP-LISTEN:$PROXY_PORT,bind=127.0.0.1,fork,reuseaddr EXEC:"$VSOCK_CONNECT_BIN /run/firecracker.vsock 22" &
   PROXY_PID=$!

   # It ends with us
   trap 'kill $PROXY_PID 2>/dev/null' EXIT

   sleep 0.1

   exec "$DBCLIENT_BIN" "${opts[@]}" -p $PROXY_PORT -y -y -i $key root@127.0.0.1 "$command '$uidgid' '$(echo -n $cwd | encode)' '$args_bin' '$env_bin'"

else
   exec "$DBCLIENT_BIN" "${opts[@]}" -p 22222 -y -y -i $key root@10.0.0.2 "$command '$uidgid' '$(echo -n $cwd | encode)' '$args_bin' '$env_bin'"
fi
