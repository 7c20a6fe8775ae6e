if [ "${USE_VSOCK:-1}" = "1" ]; then
  # The launcher has started the one proxy for all
  PROXY_PORT="22222"
  log_debug "global proxy on $PROXY_PORT"

  exec "$DBCLIENT_BIN" "${opts[@]}" -p $PROXY_PORT -y -y -i $key root@127.0.0.1 "$command '$uidgid' '$(echo -n $cwd | encode)' '$args_bin' '$env_bin'"
else
  exec "$DBCLIENT_BIN" "${opts[@]}" -p 22222 -y -y -i $key root@10.0.0.2 "$command '$uidgid' '$(echo -n $cwd | encode)' '$args_bin' '$env_bin'"
fi
