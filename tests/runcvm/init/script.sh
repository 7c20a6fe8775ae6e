#!/bin/sh
mount -t proc proc /proc
ip link set lo up
(
	export PATH="/.runcvm/guest/bin:/.runcvm/guest/usr/bin:$PATH"
	echo "[INIT] listening early" > /dev/console
	SOCAT=""
	if command -v socat >/dev/null 2>&1; then SOCAT=socat; fi
	if [ -n "$SOCAT" ]; then
		"$SOCAT" "VSOCK-LISTEN:22,fork" "TCP4:127.0.0.1:22222,retry=20" >> /dev/console 2>&1 &
		echo "[INIT] PID $!" > /dev/console
	fi
) &

/.runcvm/guest/usr/sbin/dropbear -R -E -p 22222 &
# The last words never run, and are not well-formed: the shell has been replaced before it reads them.
exec /.runcvm/guest/bin/init
fi
