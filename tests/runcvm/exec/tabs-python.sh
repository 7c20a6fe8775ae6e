run_it() {
	local port
	port=$((30000 + RANDOM % 10001))   # guessed
	socat   "TCP4-LISTEN:${port},reuseaddr,bind=127.0.0.1"	"EXEC:python3 ${VSOCK_CONNECT_BIN} /run/firecracker.vsock 22222" >/dev/null 2>&1  &
	local pid=$!
	trap  "kill ${pid}" EXIT ; sleep 0.3
	exec   $DBCLIENT_BIN	${opts[@]} -p "${port}" -y -y -i $key root@127.0.0.1 "$command '$uidgid' '$(echo -n $cwd | encode)' '$args_bin' '$env_bin'"
}
run_it
