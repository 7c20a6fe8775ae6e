write_init() {
  cat > "$1" << HEAD
#!${RUNCVM_GUEST}/bin/sh
HEAD
  cat >> "$1" << 'INIT'
log() { echo "[$1] $2"; }
hostname -F /etc/hostname 2>/dev/null || true

# Reachable before the network is
(
  log INFO "socat VSOCK-LISTEN:22 comes first"

  SOCAT=""
  if [ -x "/.runcvm/guest/bin/socat-static" ]; then SOCAT="/.runcvm/guest/bin/socat-static"
  elif command -v socat >/dev/null 2>&1; then SOCAT=socat
  elif [ -x "/.runcvm/guest/usr/bin/socat" ]; then SOCAT="/.runcvm/guest/usr/bin/socat"
  fi

  if [ -n "$SOCAT" ]; then
     # dropbear comes later, so it's tried again
     $SOCAT VSOCK-LISTEN:22,fork TCP:127.0.0.1:22222,retry=20,interval=0.5 >> /dev/console 2>&1 &
     log INFO "it runs (PID $!)"
  else
     log INFO "no socat"
  fi
) &
# ======

ip link set lo up
INIT
  chmod +x "$1"
}
